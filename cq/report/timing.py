"""Times models in turns, so that whatever else the machine does hits all alike. Knows no strategies."""

import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from ..model import Transformer
from .samples import Progress, Samples

_BATCH_SEQUENCES, _BATCH_TOKENS = 32, 2048  # of the timed batch: whichever is reached first
_TURN_SECONDS = 0.05  # of calls in a row, so that a fast model's median is of many
_WINDOW, _BUSY, _LONGEST = 0.009, 0.001, 0.3  # seconds; CPU time of other threads is counted in ticks of 4 ms


def rest() -> None:
    """Waits until no thread of this process runs, 0.3 s at most: those of other libraries, such as NumPy's BLAS, may
    spin for 50 ms and more after a call, and take a core from whoever is next."""
    end = time.perf_counter() + _LONGEST
    while time.perf_counter() < end:
        start = time.process_time()
        time.sleep(_WINDOW)
        if time.process_time() - start < _BUSY:
            return


def turn(call: Callable[[], object], turn_s: float, warm: bool) -> list[float]:
    """Seconds of each call in a row for turn_s, and at least of one. warm: one more goes before, with cold caches, and
    does not count."""
    if warm:
        call()
    seconds: list[float] = []
    end = time.perf_counter() + turn_s
    while not seconds or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return seconds


def in_turns(
    calls: Sequence[Callable[[], object]],
    rounds: int,
    warm: bool = False,
    after_round: Callable[[int], None] = lambda done: None,
) -> list[list[float]]:
    """Seconds of every call of each contestant, which take a turn in every round. after_round: called with the number
    of rounds that are done."""
    seconds: list[list[float]] = [[] for _ in calls]
    for done in range(rounds):
        for call, found in zip(calls, seconds):
            rest()
            found += turn(call, _TURN_SECONDS, warm)
        after_round(done + 1)
    return seconds


def timed(
    models: list[Transformer], samples: Samples, repeats: int, progress: Progress
) -> tuple[list[float], list[float], dict[str, int]]:
    """Median seconds of every model for one sequence and for a batch, and what those were."""
    one, batch = timing_inputs(samples)
    progress("time", 0, repeats)
    for model in models:  # the first call is slower than any later one
        model.forward(batch)
    calls: list[Callable[[], object]] = [partial(model.forward, tokens) for model in models for tokens in (one, batch)]
    seconds = in_turns(calls, repeats, after_round=lambda done: progress("time", done, repeats))
    medians = [float(np.median(found)) for found in seconds]
    timing = {
        "latency_tokens": len(one[0]),
        "batch_sequences": len(batch),
        "batch_tokens": sum(map(len, batch)),
        "repeats": repeats,
    }
    return medians[::2], medians[1::2], timing


def fastest(models: list[Transformer], run: Callable[[Transformer], object], repeats: int) -> list[float]:
    """The least seconds of `run(model)` for each model, in as many rounds; they take turns."""
    for model in models:
        run(model)
    return [min(found) for found in in_turns([partial(run, model) for model in models], repeats)]


def timing_inputs(samples: Samples) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The sequence of median length, and a batch of sequences spread over the data."""
    by_length = sorted(samples.tokens, key=len)
    spread = Samples(samples.tokens).limit(_BATCH_SEQUENCES).tokens
    ends = np.cumsum([len(ids) for ids in spread])
    return [by_length[len(by_length) // 2]], spread[: max(1, int(np.searchsorted(ends, _BATCH_TOKENS, side="right")))]
