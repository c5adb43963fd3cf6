"""Times models in turns, so that whatever else the machine does hits all alike. Knows no strategies."""

import time
from collections.abc import Callable

import numpy as np

from .samples import Samples

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


def timed(models, samples: Samples, repeats: int, progress) -> tuple[list[float], list[float], dict]:
    """Median seconds of every model for one sequence and for a batch, and what those were. Round robin, so that
    whatever else the machine does hits all models alike."""
    one, batch = timing_inputs(samples)
    progress("time", 0, repeats)
    for model in models:  # the first call is slower than any later one
        model.forward(batch)
    seconds = {}  # (which model, which input) → seconds of every call
    calls = [max(1, int(_TURN_SECONDS / _seconds(models[0], tokens))) for tokens in (one, batch)]
    for done in range(repeats):
        for i, model in enumerate(models):
            for j, tokens in enumerate((one, batch)):
                rest()
                seconds.setdefault((i, j), []).extend(_seconds(model, tokens) for _ in range(calls[j]))
        progress("time", done + 1, repeats)
    timing = {
        "latency_tokens": len(one[0]),
        "batch_sequences": len(batch),
        "batch_tokens": sum(map(len, batch)),
        "repeats": repeats,
    }
    latency, throughput = ([float(np.median(seconds[i, j])) for i in range(len(models))] for j in (0, 1))
    return latency, throughput, timing


def fastest(models, run: Callable, repeats: int) -> list[float]:
    """The least seconds of `run(model)` for each model, in as many rounds; they take turns."""
    seconds = [[] for _ in models]
    for model in models:
        run(model)
    for _ in range(repeats):
        for model, found in zip(models, seconds):
            rest()
            end = time.perf_counter() + _TURN_SECONDS
            while True:
                start = time.perf_counter()
                run(model)
                found.append(time.perf_counter() - start)
                if time.perf_counter() > end:
                    break
    return [min(found) for found in seconds]


def timing_inputs(samples: Samples) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The sequence of median length, and a batch of sequences spread over the data."""
    by_length = sorted(samples.tokens, key=len)
    spread = Samples(samples.tokens).limit(_BATCH_SEQUENCES).tokens
    ends = np.cumsum([len(ids) for ids in spread])
    return [by_length[len(by_length) // 2]], spread[: max(1, int(np.searchsorted(ends, _BATCH_TOKENS, side="right")))]


def _seconds(model, tokens) -> float:
    start = time.perf_counter()
    model.forward(tokens)
    return time.perf_counter() - start
