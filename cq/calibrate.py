"""Runs a float32 model over samples and lets one observer watch each site where static int8 needs a range. Knows no
schemes.

Samples run in batches, here or in a worker. A token's result does not depend on its batch, the number of threads or the
CPU, and observers see one sample at a time and merge without loss: the result does not depend on who ran what.
"""

import copy
import itertools
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Sized
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import DTypeLike

from . import observers
from .errors import CalibrationError, CqError
from .model import Transformer
from .model.batch import Sequence
from .model.inputs import as_items, check_samples, is_pair
from .observers.tokens import Tokens

Sites = dict[str, observers.Observer]  # by the name of the site
Found = tuple[Sites, Sites, dict[str, Tokens]]  # of samples with even numbers, with odd ones; of all
Prototype = tuple[observers.Observer, dict[str, int]]  # of each site's observer; how many tokens to keep of which sites
Seen = TypeVar("Seen", observers.Observer, Tokens)
Progress = Callable[[int, int | None], None]

FEW = 3  # with fewer samples there is a warning
KEEP = 256  # tokens of each site, for choices that look at layers' outputs
_TASK = 8  # samples: their observers come back together, up to 128 KiB a site
_BATCH = 2048  # tokens of samples that run together: their layers' weights are read once
_IN_FLIGHT = 64  # tasks; each holds its samples and its result
_models: dict[str, Transformer] = {}  # in a worker: the model of the last run that it took part in


@dataclass(frozen=True)
class Calibration:
    """What the observers saw. observer: as given to calibrate(). samples: their number. sites: name of each site
    (model/sites.py) → the observer that saw all of its values; halves: the same for the samples at even and at odd
    numbers alone. tokens: name of each site that a layer reads → a sample of its tokens and each channel's extremes; of
    values the extremes alone."""

    observer: str | observers.Observer
    samples: int
    sites: Sites
    halves: tuple[Sites, Sites]
    tokens: dict[str, Tokens] = field(default_factory=dict)
    _found: dict[tuple, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict, init=False, repr=False)

    def qparams(self, site: str, dtype: DTypeLike, symmetric: bool) -> tuple[np.ndarray, np.ndarray]:
        """Scale and zero point of a site, as its observer gives them: worked out once, since many models may ask.
        Raises CalibrationError for a site that no observer saw."""
        if site not in self.sites:
            raise CalibrationError(f"calibration: it knows no site {site!r}; it was made with another model")
        kind = site, dtype, symmetric
        if kind not in self._found:
            self._found[kind] = self.sites[site].qparams(dtype, symmetric)
        return self._found[kind]

    def movement(self, dtype: DTypeLike = "uint8", symmetric: bool = False) -> dict[str, float]:
        """Is the set large enough? Site → how far a range end lies from where half of the samples would have put it:
        the larger distance over halves, ends and channels, as a share of the whole range. 0: more samples would change
        nothing. Empty where there was only one sample."""
        if self.samples < 2:
            return {}
        return {
            site: max(_moved(half[site], whole, dtype, symmetric) for half in self.halves if site in half)
            for site, whole in self.sites.items()
        }


def calibrate(
    model: Transformer,
    samples: Iterable,
    observer: str | observers.Observer,
    progress: Progress | None = None,
    executor: Executor | None = None,
    tokens: int = KEEP,
) -> Calibration:
    """Shows `samples` to the model and a copy of `observer` everything that flows through each site.

    samples: any iterable, gone over once, of samples, each a text, a pair of texts (a tuple), a 1-D int array of token
    ids, or a list of either (a batch); 100-500 are usual, and fewer than 3 give a warning. Memory does not grow with
    their number. observer: a name that observers.make takes, or an observer that has seen nothing and can merge.
    progress(done, total or None) is called as samples pass.
    executor: any concurrent.futures.Executor, such as a ProcessPoolExecutor or Dask's Client(...).get_executor(): it
    runs the samples, in tasks of 8, and the result has the same bits as without it; the model is pickled to each worker
    about once. tokens: so many are kept of each site that a layer reads, in float32, drawn evenly from all, for
    Static's smooth and correct_bias, which need them; 0: none.
    Raises CalibrationError where there are no samples; CqError for a sample that the model cannot take, or that makes
    NaN or Inf, with its number, from 0, and the site; BrokenExecutor's cause as CqError. Tasks not yet begun are then
    cancelled."""
    check_samples(samples, "calibration")
    if executor is not None and not isinstance(executor, Executor):
        raise CqError(f"executor: need a concurrent.futures.Executor (Dask: client.get_executor()), got {executor!r}")
    if type(tokens) is not int or tokens < 0:
        raise CqError(f"tokens: need a whole number of at least 0, got {tokens!r}")
    prototype = _prototype(observer), _kept(model, tokens)
    samples = as_items(samples)
    total = len(samples) if isinstance(samples, Sized) else None
    numbered = enumerate(samples)
    found: Found = {}, {}, {}
    done = 0
    counts = _in_turn(model, prototype, numbered, found)
    if executor is not None:
        counts = _spread(model, prototype, numbered, found, executor)
    for count in counts:
        done += count
        if progress is not None:
            progress(done, total)
    sites = copy.deepcopy(found[0])
    _merge(sites, found[1])
    if not sites:
        raise CalibrationError("calibration: no samples came; give 100-500 typical texts or token arrays")
    if done < FEW:
        warnings.warn(
            f"calibration: ranges come from {done} sample{'s' * (done > 1)} alone; 100-500 typical ones are usual",
            stacklevel=3,
        )
    return Calibration(observer, done, sites, found[:2], found[2])


def _kept(model: Transformer, tokens: int) -> dict[str, int]:
    """How many tokens to keep of each site that a layer reads; of values 0: their extremes alone."""
    if not tokens:
        return {}
    return dict.fromkeys(model.graph.sites, tokens) | {block.attention.value: 0 for block in model.graph.blocks}


def _prototype(observer: str | observers.Observer) -> observers.Observer:
    if isinstance(observer, str):
        return observers.make(observer)
    if not isinstance(observer, observers.Observer):
        raise CqError(f"observer: need a name or a cq.observers object, got {observer!r}")
    if observer.seen:
        raise CqError(f"observer: need one that has seen nothing yet, got {observer!r}")
    return copy.deepcopy(observer).merge(observer)  # one that cannot merge says so here, before the work


def _moved(half: observers.Observer, whole: observers.Observer, dtype: DTypeLike, symmetric: bool) -> float:
    (lo, hi), (half_lo, half_hi) = (
        (np.minimum(lo, 0), np.maximum(hi, 0))
        for lo, hi in (observer.range(dtype, symmetric) for observer in (whole, half))
    )
    moved = np.maximum(abs(half_lo - lo), abs(half_hi - hi))
    return float(np.max(moved / np.where(hi > lo, hi - lo, np.inf)))


def _merge(mine: dict[str, Seen], theirs: dict[str, Seen]) -> None:
    for site, observer in theirs.items():
        if site in mine:
            mine[site].merge(observer)
        else:
            mine[site] = copy.deepcopy(observer)


def _in_turn(model: Transformer, prototype: Prototype, numbered: Iterator, found: Found) -> Iterator[int]:
    """Fills `found`; yields after each sample."""
    for count in show(model, numbered, lambda *seen: _watch(prototype, found, *seen)):
        yield from [1] * count


def _spread(
    model: Transformer, prototype: Prototype, numbered: Iterator, found: Found, executor: Executor
) -> Iterator[int]:
    """Fills `found`; yields the number of samples of each task that ended. A task is sent without the model at first; a
    worker that lacks it says so, and the task goes out again with it. The number in flight grows with the tasks that
    ended, so that few workers lack it at a time."""
    run, flying, limit = uuid.uuid4().hex, {}, 2

    def send(task: list, model: Transformer | None) -> None:
        try:
            flying[executor.submit(_work, run, model, prototype, task)] = task
        except RuntimeError as error:
            raise CqError(f"executor: it takes no more work: {error}") from error

    try:
        while True:
            while len(flying) < limit and (task := list(itertools.islice(numbered, _TASK))):
                send(task, None)
            if not flying:
                return
            ended = wait(flying, return_when=FIRST_COMPLETED).done
            # as sent, so that it is the first that complains
            for future in [future for future in flying if future in ended]:
                task = flying.pop(future)
                part = _result(future, task)
                if part is None:
                    send(task, model)
                    continue
                _merge(found[0], part[0])
                _merge(found[1], part[1])
                _merge(found[2], part[2])
                limit = min(limit + 1, _IN_FLIGHT)
                yield len(task)
    finally:
        for future in flying:
            future.cancel()
        _models.pop(run, None)  # where the workers are threads of this process


def _result(future: Future[Found | None], task: list) -> Found | None:
    try:
        return future.result()
    except BrokenExecutor as error:
        raise CqError(
            f"executor: a worker died while samples {task[0][0]} to {task[-1][0]} were under way ({error})"
        ) from error


def _work(run: str, model: Transformer | None, prototype: Prototype, task: list) -> Found | None:
    """In a worker: what is seen of the task's samples, or None where the run's model is not here."""
    if model is not None:
        _models.clear()
        _models[run] = copy.deepcopy(model)  # Dask hands over views into its message, unaligned at times
    elif run not in _models:
        return None
    found: Found = {}, {}, {}
    for _ in show(_models[run], iter(task), lambda *seen: _watch(prototype, found, *seen)):
        pass
    return found


def _watch(prototype: Prototype, found: Found, site: str, x: np.ndarray, number: int, start: int) -> None:
    """Shows part of a sample to its observer; samples with even and with odd numbers have observers of their own."""
    observer, keep = prototype
    seen = found[1] if number % 2 else found[0]
    if site not in seen:
        seen[site] = copy.deepcopy(observer)
    seen[site].update(x, order=number)
    if site in keep:
        found[2].setdefault(site, Tokens(keep[site])).update(x, number, start)


# (site, float32 (rows, n), number of the sample, its first row's number)
Watch = Callable[[str, np.ndarray, int, int], None]


def show(model: Transformer, numbered: Iterator[tuple[int, object]], watch: Watch) -> Iterator[int]:
    """Runs (number, sample) pairs in batches of some 2,000 tokens; yields the number of samples of each. `watch` sees
    what flows where, one sample at a time; a number is what errors call the sample by."""
    waiting: list[tuple[int, list[np.ndarray | Sequence]]] = []
    tokens = 0
    for number, sample in numbered:
        sequences = _sequences(model, number, sample)
        size = sum(map(len, sequences))
        if waiting and tokens + size > _BATCH:
            yield _show_batch(model, waiting, watch)
            waiting, tokens = [], 0
        waiting.append((number, sequences))
        tokens += size
    if waiting:
        yield _show_batch(model, waiting, watch)


def beginning(model: Transformer, samples: list, most: int) -> list:
    """The first samples that have `most` tokens together, or all of them."""
    tokens = 0
    for number, sample in enumerate(samples):
        tokens += sum(map(len, _sequences(model, number, sample)))
        if tokens >= most:
            return samples[: number + 1]
    return samples


def _sequences(model: Transformer, number: int, sample: object) -> list[np.ndarray | Sequence]:
    batch = sample if isinstance(sample, (list, tuple)) and not _is_one(sample) else [sample]
    with _sample(number):
        return model.tokens_of(batch)


def _show_batch(model: Transformer, batch: list[tuple[int, list[np.ndarray | Sequence]]], watch: Watch) -> int:
    """Runs one sample, or several that fit one pass of the model."""
    lengths = [sum(map(len, sequences)) for _, sequences in batch]
    counts = [len(sequences) for _, sequences in batch]
    came: dict[str, int] = {}
    watched = True

    def split(site: str, x: np.ndarray) -> None:
        """x has rows of all samples, or of those that the model runs together, in order: one for each token, or for
        each sequence in a classifier's head."""
        nonlocal watched
        first = came.get(site, 0)
        came[site], end = first + len(x), 0
        for (number, _), rows in zip(batch, counts if site.startswith("classifier.") else lengths):
            begin, end = end, end + rows
            low, high = max(begin, first), min(end, first + len(x))
            watched = False
            if low < high:
                with _sample(number, site):
                    watch(site, x[low - first : high - first], number, low - begin)
            watched = True

    try:
        model.observe([ids for _, sequences in batch for ids in sequences], split)
    except Exception:
        if watched:  # the model failed, and not what watches it: find the sample
            for number, sequences in batch:
                with _sample(number):
                    model.observe(sequences, lambda site, x: None)
        raise
    return len(batch)


@contextmanager
def _sample(number: int, site: str | None = None) -> Iterator[None]:
    """Errors inside name the sample, and the site."""
    try:
        yield
    except CqError as error:
        raise type(error)(f"calibration: sample {number}: {'' if site is None else site + ': '}{error}") from None
    except Exception as error:
        error.add_note(f"calibration: sample {number}")
        raise


def _is_one(sample: list | tuple) -> bool:
    """A list of plain numbers is one sequence of ids, and a tuple of two texts one pair, not a batch."""
    ids = bool(sample) and all(isinstance(item, (int, np.integer)) for item in sample)
    return ids or isinstance(sample, tuple) and is_pair(sample)
