"""float32 and every strategy measured side by side on one model and its data: size, memory, speed, accuracy. Knows no
terminal."""

import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from ..errors import CqError
from ..formats import save
from ..quantize import quantize
from ..strategies import QAT, STRATEGIES, Dynamic, Mixed, Scheme, Static, WeightOnly
from ..system import info
from .evaluate import Evaluation, metric_names
from .inputs import Ready, calibration_for, checked, needs_samples, opened
from .record import Report, Row
from .samples import Samples, listed, read
from .sensitivity import sensitivity
from .timing import timed


def default_strategies(qat: int | None = None, learning_rate: float = QAT.learning_rate) -> tuple:
    """Weight-only, dynamic and static, and with `qat` steps of training, at this rate, QAT for static, each with the
    production default and with the textbook scheme."""
    found = []
    for scheme, observer in ((Scheme(), Static.observer), (Scheme.textbook(), "minmax")):
        static = Static(scheme=scheme, observer=observer)
        found += [WeightOnly(scheme=scheme), Dynamic(scheme=scheme), static]
        found += [QAT(target=Static(scheme=scheme), steps=qat, learning_rate=learning_rate)] if qat else []
    return tuple(found)


def compare(
    model,
    data,
    strategies: Iterable | None = None,
    calibration=None,
    metric: str | Callable | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    repeats: int = 7,
    layers: bool = False,
) -> Report:
    """Quantizes `model` by every strategy and measures each beside the float32 original.

    model: a float32 Transformer, or a path to load one from.
    data: what accuracy is reported on and calls are timed with; all that `samples.read` takes.
    strategies: strategy objects, and paths of checkpoints that were quantized from the model before, which go by their
    files' names; None is `default_strategies()`.
    calibration: samples for static strategies, and for QAT to train on, never those of `data`; None takes the shipped
    model's own slice, for that model.
    metric: "perplexity", "bits_per_token", "top1", "kl" or "flips" for a causal language model, "spearman" (×100, on
    scored pairs) or "cosine" (to the float32 embedding) for an encoder, or a function (model, data) -> float, which is
    given the data as it came here (as Samples if it was a path). None: perplexity and bits, or Spearman and cosine
    (neither where the model does not pool). progress: called with (what, done, total). repeats: rounds of timing; in
    each, every model runs in turn. layers: whether to measure each layer alone as well, as cq.sensitivity does, by the
    first WeightOnly, Dynamic and Static among the strategies.

    Speed is of `model.forward`: for a language model the prefill, without its head. All models stay in memory until the
    end, because the timing takes turns among them. Raises CalibrationError if a static strategy has nothing to
    calibrate on; CqError for data or a metric that do not fit the model, and for calibration on the data that is
    reported."""
    progress = progress or (lambda what, done, total: None)
    if type(repeats) is not int or repeats < 1:
        raise CqError(f"repeats must be a positive integer, got {repeats!r}")
    name, model, own_calibration = opened(model, "compare")
    strategies = default_strategies() if strategies is None else checked(strategies, model)
    data = data if isinstance(data, (str, os.PathLike, Samples)) else listed(data)
    samples = read(data, model)
    names = metric_names(metric, model, samples)
    calibration = calibration_for(
        strategies, calibration if calibration is not None else own_calibration, model, samples
    )
    alone = _first_of_each(strategies) if layers else ()

    models = [model]
    for i, strategy in enumerate(strategies):
        progress("quantize", i, len(strategies))
        if isinstance(strategy, Ready):
            models.append(strategy.model)
            continue
        kind = f"train {_labels(strategy)[0]}" if isinstance(strategy, QAT) else "calibrate"
        models.append(
            quantize(
                model,
                strategy,
                calibration.tokens if needs_samples(strategy) else None,
                lambda done, total: progress(kind, done, total),
            )
        )
    sizes = [_file_bytes(m) for m in models]
    progress("quantize", len(strategies), len(strategies))
    latency, batch, timing = timed(models, samples, repeats, progress)
    accuracies = Evaluation(model, samples, (*names, "sqnr_db"))(models, progress)
    if callable(metric):
        for m, accuracy in zip(models, accuracies):
            accuracy[names[0]] = float(metric(m, samples if isinstance(data, (str, os.PathLike)) else data))

    found = sensitivity(model, samples, alone, calibration, metric, progress) if layers else None
    rows = []
    for i, (m, strategy) in enumerate(zip(models, [None, *strategies])):
        sqnr = accuracies[i].pop("sqnr_db")
        rows.append(
            Row(
                *_labels(strategy),
                sizes[i],
                m.nbytes,
                latency[i],
                latency[0] / latency[i],
                timing["batch_tokens"] / batch[i],
                batch[0] / batch[i],
                accuracies[i],
                sqnr,
            )
        )
    return Report(
        name,
        names,
        tuple(rows),
        _machine(),
        samples.described(),
        calibration.described() if calibration else None,
        timing,
        found,
    ).named(name)


def _first_of_each(strategies) -> tuple:
    """Of the strategies that a layer alone can have."""
    found = {
        strategy.name: strategy for strategy in reversed(strategies) if isinstance(strategy, tuple(STRATEGIES.values()))
    }
    if not found:
        raise CqError(
            "layers: none of the strategies is WeightOnly, Dynamic or Static, which a layer alone can have; add one"
        )
    return tuple(found.values())


def _file_bytes(model) -> int:
    """Size of the model's checkpoint on disk."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save(model, path)
        return path.stat().st_size


def _labels(strategy) -> tuple[str, str, str, str]:
    """Row.name, .strategy, .scheme, .choices"""
    if strategy is None:
        return "float32", "float32", "", ""
    if isinstance(strategy, Ready):
        return strategy.name, "file", *_labels(strategy.model.strategy)[2:]
    if isinstance(strategy, Mixed):
        return strategy.name, strategy.name, "custom", repr(strategy)
    target = strategy.target if isinstance(strategy, QAT) else strategy
    scheme = {Scheme(): "default", Scheme.textbook(): "textbook"}.get(target.scheme, "custom")
    parts = [
        strategy.name,
        "" if target is strategy or target.name == "static" else target.name,
        scheme.removeprefix("default"),
    ]
    return " ".join(part for part in parts if part), strategy.name, scheme, repr(strategy)


def _machine() -> dict:
    facts = info()
    return {key: facts[key] for key in ("cpu", "cores", "threads", "isa", "version")}
