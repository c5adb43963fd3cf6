"""The search for a mix: a strategy for each layer, the fastest that keeps to a budget of accuracy. Changes no model;
knows no terminal.

Every group of layers that reads one input is probed alone with every strategy, for the noise that it makes (as
cq.sensitivity does), and every kind of group is timed with every strategy inside a whole model. Starting from the
cheapest strategy of each, the next step is always the one that takes away the most noise for its price, as in the
greedy solution of a multiple-choice knapsack; so there is one row of candidates, from the cheapest to the most
accurate. Bisection finds the first within the budget, and each of its steps is then tried without. What decides is
measured on whole models."""

import dataclasses
import hashlib
import itertools
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np

from .. import functions
from ..calibrate import Calibration
from ..errors import CqError
from ..model import Transformer
from ..model.deferred import read as read_array
from ..quantize import quantize
from ..strategies import Dynamic, Mixed, Single, Static, WeightOnly
from ..system import info
from .evaluate import LOWER_IS_BETTER, Evaluation, is_lm, metric_names
from .inputs import calibration_for, opened
from .samples import Progress, Samples, Source, listed, read
from .sensitivity import KEPT_BYTES, by_name, quantize_only, ranges
from .timing import fastest, timing_inputs
from .trials import Mix, Search, Trial

_PROBE_TOKENS = 1024  # of the data, for the noise of one group alone
_ROUNDS = 5
_LOGITS = 2**24  # of a timed batch: 64 MiB
_FREE = 1e-4  # of a pass: the least price of a step
# of a pass: the price of as many bytes as the reference has, lest a table be float32 for 0.1 % of time
_MEMORY = 0.1


class _Unit(NamedTuple):
    """Layers that one input goes to. kind: the same in every block; pattern: of their names."""

    kind: str
    pattern: str
    names: tuple[str, ...]


def mix(
    model: str | os.PathLike | Transformer,
    data: Source,
    budget: float,
    strategies: Iterable | None = None,
    calibration: Source | None = None,
    metric: str | Callable | None = None,
    record: str | os.PathLike | None = None,
    max_trials: int = 24,
    progress: Progress | None = None,
) -> Mix:
    """Finds the fastest strategy of each layer that keeps a budget of accuracy.

    A layer becomes static, dynamic, weight-only or stays float32. Time is that of a batch of the data through
    `model.forward`, or `model.logits` for a language model.

    Args:
        model: As for `compare`.
        data: What the budget is held to. Best neither what is calibrated on nor what is reported in the end.
        budget: How much of the metric may be lost against float32, in its own units: 0.1 of Spearman ×100, 0.002 of a
            cosine, 0.01 of a perplexity.
        strategies: `WeightOnly`, `Dynamic` and `Static` objects, one of each at most. None: one of each. float32 is
            always possible.
        calibration: As for `compare`.
        metric: As for `compare`; one only.
        record: A JSON file that keeps what was measured after every step. A search that was cut short, or one for
            another budget, continues from it.
        max_trials: Number of whole candidates to measure at most, beside each strategy throughout.
        progress: As for `compare`.

    Returns:
        A `Mix`; `quantize` takes its `strategy`.

    Raises:
        CalibrationError: A static strategy has nothing to calibrate on.
        FormatError: The record is no record.
        CqError: Data or metric do not fit the model, or the record is of another search.
    """
    progress = progress or (lambda what, done, total: None)
    if isinstance(budget, bool) or not isinstance(budget, (int, float)) or not 0 <= budget < math.inf:
        raise CqError(f"budget must be a number from 0 on, in the metric's units, got {budget!r}")
    if type(max_trials) is not int or max_trials < 1:
        raise CqError(f"max_trials must be a positive whole number, got {max_trials!r}")
    _, float32, own_calibration = opened(model, "mix")
    chosen = by_name((WeightOnly(), Dynamic(), Static()) if strategies is None else strategies, "mix")
    samples = read(data if isinstance(data, (str, os.PathLike, Samples)) else listed(data), float32)
    name = next(iter(metric_names(metric, float32, samples)), None)
    if name is None:
        raise CqError(
            "metric: this model neither pools nor has a language-model head; give a function (model, data) -> float"
        )
    calibration = own_calibration if calibration is None else calibration
    calibrated_on = calibration_for(chosen.values(), calibration, float32, samples)
    everywhere = {kind: dataclasses.replace(s, include=("*",), exclude=()) for kind, s in chosen.items()}
    search = Search(record, _subject(float32, everywhere, calibrated_on, samples, name), budget)
    seen = ranges(float32, everywhere.values(), calibrated_on, progress)
    work = _Work(float32, samples, everywhere, seen, metric if callable(metric) else name, search, progress)
    best = _searched(work, _Tries(work, budget, max_trials, progress))
    progress("trials", max_trials, max_trials)
    return Mix(name, work.float32, budget, work.base, best, tuple(search.trials))


def _searched(work: "_Work", tries: "_Tries") -> Trial:
    """Tries each strategy throughout, then candidates; the best of all that was tried."""
    for kind in work.strategies:
        tries(dict.fromkeys(work.units, kind))
    row = list(_candidates(work))
    chosen = _first_within(row, tries)
    if tries.left and tries(chosen):
        _without_needless(chosen, row[0], work, tries)
    found = work.search.best()
    if found is None:
        tries(dict.fromkeys(work.units, "float32"))
        found = work.search.best()
    assert found is not None, "float32 loses nothing"
    return found


class _Tries:
    """Calls say whether a choice keeps to the budget, measured on a whole model. left: how many candidates may still be
    measured; who counts them decides which are."""

    def __init__(self, work: "_Work", budget: float, most: int, progress: Progress):
        self.work, self.budget, self.most, self.left, self.progress = work, budget, most, most, progress
        self._number = itertools.count(1)

    def __call__(self, choices: dict[_Unit, str]) -> bool:
        self.progress("trials", min(next(self._number), self.most), self.most)
        return self.work.trial(_mixed(choices, self.work.strategies)).loss <= self.budget


def _first_within(row: list[dict[_Unit, str]], tries: _Tries) -> dict[_Unit, str]:
    """The first candidate within the budget, by bisection, as far as the tries last."""
    low, high = 0, len(row) - 1
    while low < high and tries.left:
        middle = 0 if tries.left == tries.most else (low + high) // 2  # the fastest first: it may do
        tries.left -= 1
        if tries(row[middle]):
            high = middle
        else:
            low = middle + 1
    return dict(row[high])


def _without_needless(chosen: dict[_Unit, str], fastest: dict[_Unit, str], work: "_Work", tries: _Tries) -> None:
    """Tries to go without each step that was taken from the fastest candidate, the dearest first."""

    def gap(unit: _Unit) -> float:
        return work.gap(unit, chosen[unit], fastest[unit])

    for unit in sorted((u for u in chosen if chosen[u] != fastest[u]), key=gap, reverse=True):
        if tries.left <= 1 or gap(unit) <= _FREE:
            return
        tries.left -= 1
        if not tries(chosen | {unit: fastest[unit]}):
            continue
        chosen[unit] = fastest[unit]


class _Work:
    """Measures noise, time and loss, each once."""

    def __init__(
        self,
        model: Transformer,
        samples: Samples,
        strategies: dict[str, Single],
        seen: Calibration | None,
        metric: str | Callable,
        search: Search,
        progress: Progress,
    ):
        self.model, self.samples, self.strategies, self.seen, self.search = model, samples, strategies, seen, search
        self.metric, self.progress, self.units, self.base = metric, progress, _units(model), list(strategies)[-1]
        names = (metric,) if isinstance(metric, str) else ()
        self._probe = Evaluation(model, samples.fewer(_PROBE_TOKENS), ("sqnr_db",), KEPT_BYTES)
        self._judge = Evaluation(model, samples, names, KEPT_BYTES)
        self._tokens = _timed_tokens(model, samples)
        self.float32 = search.value("float32", lambda: self._accuracy(model))
        self._base = quantize(model, strategies[self.base], seen if self.base == "static" else None)
        self.noise, self.price = self._noises(), self._prices()

    def options(self, unit: _Unit) -> tuple[str, ...]:
        """A word table runs alike under all strategies."""
        return (self.base, "float32") if unit.kind == "embed.word" else (*self.strategies, "float32")

    def gap(self, unit: _Unit, this: str, that: str) -> float:
        """What the unit costs more by `this`, as a share of the reference's pass."""
        return self.price[unit, this] - self.price[unit, that]

    def trial(self, strategy: Mixed) -> Trial:
        def measured() -> tuple[float, float]:
            candidate = self.quantized(strategy)
            accuracy = self._accuracy(candidate)
            loss = accuracy - self.float32 if self.metric in LOWER_IS_BETTER else self.float32 - accuracy
            reference = strategy == Mixed((("*", self.strategies[self.base]),))
            return loss if math.isfinite(loss) else math.inf, 1.0 if reference else self._against_base(candidate)

        return self.search.trial(strategy, measured)

    def quantized(self, strategy: Mixed) -> Transformer:
        static = any(isinstance(part, Static) for _, part in strategy.choices)
        return quantize(self.model, strategy, self.seen if static else None)

    def _accuracy(self, model: Transformer) -> float:
        if isinstance(self.metric, str):
            return self._judge([model])[0][self.metric]
        return float(self.metric(model, self.samples))

    def _noises(self) -> dict[tuple[_Unit, str], float]:
        """Noise over signal of the model's outputs where the unit alone is quantized; they about add up."""
        probes = [(unit, kind) for unit in self.units for kind in self.options(unit)]
        found = {}
        for done, (unit, kind) in enumerate(probes):
            self.progress("noise of layers", done, len(probes))
            found[unit, kind] = (
                0.0
                if kind == "float32"
                else self.search.value(
                    f"noise {unit.pattern} {kind}",
                    lambda: functions.power(
                        10,
                        -self._probe([quantize_only(self.model, unit.names, self.strategies[kind], self.seen)])[0][
                            "sqnr_db"
                        ]
                        / 10,
                    ).item(),
                )
            )
        self.progress("noise of layers", len(probes), len(probes))
        return found

    def _prices(self) -> dict[tuple[_Unit, str], float]:
        """What each unit costs more than by the base strategy, in passes of a model that has that throughout. Time:
        units of a kind are switched together, and share the difference. Memory: of float32, three bytes more a
        weight."""
        number = Counter(unit.kind for unit in self.units)
        kinds = {unit.kind: self.options(unit) for unit in self.units}
        probes = [(kind, option) for kind, options in kinds.items() for option in options if option != self.base]
        found = {(kind, self.base): 0.0 for kind in kinds}
        for done, (kind, option) in enumerate(probes):
            self.progress("time of layers", done, len(probes))
            choices = {unit: option if unit.kind == kind else self.base for unit in self.units}
            found[kind, option] = (
                self.search.value(
                    f"time {kind} {option}",
                    lambda: self._against_base(self.quantized(_mixed(choices, self.strategies))) - 1,
                )
                / number[kind]
            )
        self.progress("time of layers", len(probes), len(probes))
        sizes = {place.name: place.shape[0] * place.shape[1] for place in self.model.coverage() if place.shape}
        more = {
            unit: _MEMORY
            * 3
            * sum(sizes[name] for name in unit.names if (unit.kind, name) != ("head", "embed.word"))
            / self._base.nbytes
            for unit in self.units
        }
        return {
            (unit, option): found[unit.kind, option] + (more[unit] if option == "float32" else 0.0)
            for unit in self.units
            for option in kinds[unit.kind]
        }

    def _against_base(self, model: Transformer) -> float:
        """Seconds over the base model's, timed in turns."""
        run = Transformer.logits if is_lm(self.model) else Transformer.forward
        base, seconds = fastest([self._base, model], lambda one: run(one, self._tokens), _ROUNDS)
        return seconds / base


def _candidates(work: _Work) -> Iterator[dict[_Unit, str]]:
    """Choices from the fastest to those without noise, each one step from the one before."""
    chosen = {unit: _fastest(work, unit) for unit in work.units}
    while True:
        yield dict(chosen)
        steps = [(_worth(work, unit, chosen[unit], kind), unit, kind) for unit in chosen for kind in work.options(unit)]
        worth, unit, kind = max(steps)
        if worth <= 0:
            return
        chosen[unit] = kind


def _fastest(work: _Work, unit: _Unit) -> str:
    """The option of the least price; of equals, the one of less noise."""
    return min(work.options(unit), key=lambda kind: (work.price[unit, kind], work.noise[unit, kind]))


def _worth(work: _Work, unit: _Unit, now: str, kind: str) -> float:
    """The noise that a step from one option to another takes away, for its price."""
    return (work.noise[unit, now] - work.noise[unit, kind]) / max(_FREE, work.gap(unit, kind, now))


def _units(model: Transformer) -> list[_Unit]:
    tied = model.head is not None and model.config.tied
    beside = {"head.input": ("embed.word",)} if tied else {}
    found = [
        _Unit(_kind(site.pattern), site.pattern, site.readers + beside.get(site.name, ())) for site in model.graph.trunk
    ]
    return found if tied else [*found, _Unit("embed.word", "embed.word", ("embed.word",))]


def _kind(pattern: str) -> str:
    """What blocks have in common: "layers.3.ffn.down" → "ffn.down"."""
    return pattern.split(".", 2)[2] if pattern.startswith("layers.") else pattern


def _mixed(choices: dict[_Unit, str], strategies: dict[str, Single]) -> Mixed:
    """As few patterns as say it: what differs from others of its kind, kinds that differ from the rest, the rest."""
    rest = Counter(choices.values()).most_common(1)[0][0]
    found = []
    for kind in dict.fromkeys(unit.kind for unit in choices):
        mine = {unit: choice for unit, choice in choices.items() if unit.kind == kind}
        usual = Counter(mine.values()).most_common(1)[0][0]
        found += [(unit.pattern, choice) for unit, choice in mine.items() if choice != usual]
        alike = kind == "embed.word" and "float32" not in (usual, rest)  # under all strategies
        if usual != rest and not alike:
            found.append((f"layers.*.{kind}" if len(mine) > 1 else next(iter(mine)).pattern, usual))
    return Mixed(tuple((pattern, strategies.get(choice)) for pattern, choice in [*found, ("*", rest)]))


def _timed_tokens(model: Transformer, samples: Samples) -> list[np.ndarray]:
    _, batch = timing_inputs(samples)
    if is_lm(model):
        most = max(1, _LOGITS // model.config.vocab_size)
        ends = np.cumsum([len(ids) for ids in batch])
        batch = batch[: int(np.searchsorted(ends, most, side="right"))] or [batch[0][:most]]
    return batch


def _subject(
    model: Transformer, strategies: dict[str, Single], calibration: Samples | None, samples: Samples, metric: str
) -> dict:
    """What measurements hold for, in a form that can be compared."""
    machine = info()
    return {
        "model": _digest([repr(model.config.to_dict()).encode(), *(np.ascontiguousarray(a) for a in _arrays(model))]),
        "data": _digest(samples.tokens),
        "scores": _digest([] if samples.scores is None else [samples.scores]),
        "calibration": _digest([] if calibration is None else calibration.tokens),
        "metric": metric,
        "strategies": [strategy.to_dict() for strategy in strategies.values()],
        "machine": [machine["cpu"], machine["isa"], machine["threads"]],
        "cq": machine["version"],
    }


def _arrays(model: Transformer) -> Iterator[np.ndarray]:
    yield from map(read_array, model.embedding.word_arrays())
    yield from model.tables().values()
    for _, layer in (*model.linears(), *model.norms(), *model.beside()):
        yield from map(read_array, layer.arrays())


def _digest(parts: Iterable) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
        digest.update(b"|")
    return digest.hexdigest()
