"""float32 and every strategy measured side by side on one model and its data: size, memory, speed, accuracy. Knows no
terminal."""

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from ..errors import CqError
from ..formats import save
from ..model import Transformer
from ..quantize import quantize
from ..strategies import QAT, Dynamic, Mixed, Scheme, Single, Static, WeightOnly
from ..system import info
from .evaluate import Evaluation, metric_names
from .inputs import Chosen, Ready, calibration_for, checked, needs_samples, opened
from .record import Report, Row
from .samples import Progress, Samples, Source, listed, read
from .sensitivity import sensitivity
from .timing import timed

_ENOUGH = 1e-3  # nats per token: 0.1 % of a perplexity


def default_strategies(qat: int | None = None, learning_rate: float = QAT.learning_rate) -> tuple[Chosen, ...]:
    """Weight-only, dynamic and static, and with `qat` steps of training, at this rate, QAT for static, each with the
    production default and with the textbook scheme."""
    found: list[Chosen] = []
    for scheme, observer in ((Scheme(), Static.observer), (Scheme.textbook(), "minmax")):
        static = Static(scheme=scheme, observer=observer)
        found += [WeightOnly(scheme=scheme), Dynamic(scheme=scheme), static]
        found += [QAT(target=Static(scheme=scheme), steps=qat, learning_rate=learning_rate)] if qat else []
    return tuple(found)


def compare(
    model: str | os.PathLike | Transformer,
    data: Source,
    strategies: Iterable | None = None,
    calibration: Source | None = None,
    metric: str | Callable | None = None,
    progress: Progress | None = None,
    repeats: int = 7,
    layers: bool = False,
    full: bool = False,
) -> Report:
    """Quantizes a model by every strategy and measures each beside the float32 original.

    Speed is that of `model.forward`: for a language model the prefill without its head. All models stay in memory until
    the end, because they are timed in turns.

    Args:
        model: A float32 `Transformer`, or a path to load one from.
        data: What accuracy is judged on and calls are timed with: a path, glob or folder of .tsv and .txt files, or an
            iterable of samples.
        strategies: Strategy objects, and paths of checkpoints that were quantized from the model before. None:
            weight-only, dynamic and static, each with the production and the textbook scheme.
        calibration: Samples for static to calibrate and for QAT to train on, never those of `data`. None: the bundled
            model's own text, for that model.
        metric: "perplexity", "bits_per_token", "top1", "kl" or "flips" for a language model; "spearman" (×100, on
            scored pairs) or "cosine" (with the float32 embeddings) for an encoder; or a function (model, data) ->
            float. None: perplexity and bits per token, or Spearman and cosine.
        progress: Called with (what, done, total) as work proceeds.
        repeats: Number of timing rounds; in each, every model runs in turn.
        layers: Whether to measure each layer alone as well, as `sensitivity` does.
        full: Whether to evaluate all of the data. Otherwise a language model's perplexity is found on evenly spread
            windows, as many as bring the standard error of each row's difference from float32 to 0.1 %.

    Returns:
        A `Report` with a row for float32 and one for each strategy; it has `table()`, `to_markdown()` and `to_json()`.

    Raises:
        CalibrationError: A static strategy has nothing to calibrate on.
        CqError: Data or metric do not fit the model, or the calibration is on the data that is reported.
    """
    progress = progress or (lambda what, done, total: None)
    if type(repeats) is not int or repeats < 1:
        raise CqError(f"repeats must be a positive integer, got {repeats!r}")
    name, float32, own_calibration = opened(model, "compare")
    chosen = default_strategies() if strategies is None else checked(strategies, float32)
    data = data if isinstance(data, (str, os.PathLike, Samples)) else listed(data)
    samples = read(data, float32)
    names = metric_names(metric, float32, samples)
    calibrated_on = calibration_for(
        chosen, calibration if calibration is not None else own_calibration, float32, samples
    )
    alone = _first_of_each(chosen) if layers else ()

    models = [float32, *_quantized(float32, chosen, calibrated_on, progress)]
    sizes = [_file_bytes(one) for one in models]
    progress("quantize", len(chosen), len(chosen))
    latency, batch, timing = timed(models, samples, repeats, progress)
    evaluation = Evaluation(float32, samples, (*names, "sqnr_db"), enough=None if full else _ENOUGH)
    accuracies = evaluation(models, progress)
    if callable(metric):
        for one, accuracy in zip(models, accuracies):
            accuracy[names[0]] = float(metric(one, samples if isinstance(data, (str, os.PathLike)) else data))

    found = sensitivity(float32, samples, alone, calibrated_on, metric, progress) if layers else None
    sqnr = [accuracy.pop("sqnr_db") for accuracy in accuracies]
    rows = tuple(
        Row(
            *_labels(strategy),
            sizes[i],
            models[i].nbytes,
            latency[i],
            latency[0] / latency[i],
            timing["batch_tokens"] / batch[i],
            batch[0] / batch[i],
            accuracies[i],
            sqnr[i],
        )
        for i, strategy in enumerate((None, *chosen))
    )
    calibration_facts = None if calibrated_on is None else calibrated_on.described()
    data = evaluation.evaluated.described() | ({"of": len(samples)} if len(evaluation.evaluated) < len(samples) else {})
    report = Report(name, names, rows, _machine(), data, calibration_facts, timing, found)
    return report.named(name)


def _quantized(
    float32: Transformer, strategies: tuple[Chosen, ...], calibration: Samples | None, progress: Progress
) -> Iterator[Transformer]:
    """The model by each strategy."""
    for i, strategy in enumerate(strategies):
        progress("quantize", i, len(strategies))
        if isinstance(strategy, Ready):
            yield strategy.model
            continue
        kind = f"train {_labels(strategy)[0]}" if isinstance(strategy, QAT) else "calibrate"
        given = calibration.tokens if calibration is not None and needs_samples(strategy) else None
        yield quantize(float32, strategy, given, lambda done, total: progress(kind, done, total))


def _first_of_each(strategies: tuple[Chosen, ...]) -> tuple[Single, ...]:
    """Of the strategies that a layer alone can have."""
    able = (strategy for strategy in reversed(strategies) if isinstance(strategy, (WeightOnly, Dynamic, Static)))
    found = {strategy.name: strategy for strategy in able}
    if not found:
        raise CqError(
            "layers: none of the strategies is WeightOnly, Dynamic or Static, which a layer alone can have; add one"
        )
    return tuple(found.values())


def _file_bytes(model: Transformer) -> int:
    """Size of the model's checkpoint on disk."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save(model, path)
        return path.stat().st_size


def _labels(strategy: Chosen | None) -> tuple[str, str, str, str]:
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
