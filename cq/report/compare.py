"""float32 and every strategy measured side by side on one model and its data: size, memory, speed, accuracy. Knows no
terminal."""
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from ..errors import CalibrationError, CqError
from ..formats import load, save
from ..quantize import quantize
from ..strategies import QAT, STRATEGIES, Dynamic, Scheme, Static, WeightOnly
from ..system import info
from . import metrics
from .record import Report, Row
from .samples import Samples, listed, read, shipped_model
from .timing import timed

_LM, _ENCODER = ("perplexity", "bits_per_token", "top1", "kl", "flips"), ("spearman", "cosine")
_CHUNK_TOKENS, _CHUNK_LOGITS = 4096, 2**25  # evaluated at once; 2**25 float32 logits are 128 MiB


def default_strategies(qat: int | None = None) -> tuple:
    """Weight-only, dynamic and static, and with `qat` steps of training QAT for static, each with the production default and with
    the textbook scheme."""
    found = []
    for scheme, observer in ((Scheme(), Static.observer), (Scheme.textbook(), "minmax")):
        static = Static(scheme=scheme, observer=observer)
        found += [WeightOnly(scheme=scheme), Dynamic(scheme=scheme), static]
        found += [QAT(target=static, steps=qat, ranges="learned")] if qat else []
    return tuple(found)


def compare(model, data, strategies: Iterable | None = None, calibration=None, metric: str | Callable | None = None,
            progress: Callable[[str, int, int], None] | None = None, repeats: int = 7) -> Report:
    """Quantizes `model` by every strategy and measures each beside the float32 original.

    model: a float32 Transformer, or a path to load one from.
    data: what accuracy is reported on and calls are timed with; all that `samples.read` takes.
    strategies: strategy objects; None is `default_strategies()`.
    calibration: samples for static strategies, and for QAT to train on, never those of `data`; None takes the shipped model's own
    slice, for that model.
    metric: "perplexity", "bits_per_token", "top1", "kl" or "flips" for a causal language model, "spearman" (×100, on scored pairs)
    or "cosine" (to the float32 embedding) for an encoder, or a function (model, data) -> float, which is given the data as it
    came here (as Samples if it was a path). None: perplexity and bits, or Spearman and cosine (neither where
    the model does not pool).
    progress: called with (what, done, total). repeats: rounds of timing; in each, every model runs in turn.

    Speed is of `model.forward`: for a language model the prefill, without its head. All models stay in memory until the end,
    because the timing takes turns among them. Raises CalibrationError if a static strategy has nothing to calibrate on;
    CqError for data or a metric that do not fit the model, and for calibration on the data that is reported."""
    progress = progress or (lambda what, done, total: None)
    if type(repeats) is not int or repeats < 1:
        raise CqError(f"repeats must be a positive integer, got {repeats!r}")
    name, model, own_calibration = _opened(model)
    strategies = default_strategies() if strategies is None else _strategies(strategies)
    data = data if isinstance(data, (str, os.PathLike, Samples)) else listed(data)
    samples = read(data, model)
    names = _metric_names(metric, model, samples)
    calibration = _calibration(calibration if calibration is not None else own_calibration, strategies, model, samples)

    models = [model]
    for i, strategy in enumerate(strategies):
        progress("quantize", i, len(strategies))
        kind = f"train {_labels(strategy)[0]}" if isinstance(strategy, QAT) else "calibrate"
        models.append(quantize(model, strategy, calibration.tokens if isinstance(strategy, (Static, QAT)) else None,
                               lambda done, total: progress(kind, done, total)))
    sizes = [_file_bytes(m) for m in models]
    progress("quantize", len(strategies), len(strategies))
    latency, batch, timing = timed(models, samples, repeats, progress)
    accuracies = _evaluated(models, samples, names, progress)
    if callable(metric):
        for m, accuracy in zip(models, accuracies):
            accuracy[names[0]] = float(metric(m, samples if isinstance(data, (str, os.PathLike)) else data))

    rows = []
    for i, (m, strategy) in enumerate(zip(models, [None, *strategies])):
        sqnr = accuracies[i].pop("sqnr_db")
        rows.append(Row(*_labels(strategy), sizes[i], m.nbytes, latency[i], latency[0] / latency[i],
                        timing["batch_tokens"] / batch[i], batch[0] / batch[i], accuracies[i], sqnr))
    return Report(name, names, tuple(rows), _machine(), _described(samples),
                  _described(calibration) if calibration else None, timing)


def _opened(model) -> tuple[str, object, Path | None]:
    """Name, float32 model and, for the shipped one, the file to calibrate on."""
    if isinstance(model, (str, os.PathLike)):
        path, model = Path(model), load(model)
        shipped = path.resolve() == shipped_model()
        name, calibration = (path.name, shipped_model() / "calibration.txt") if shipped else (str(path), None)
    else:
        name, calibration = getattr(model.config, "family", "model"), None
    if model.strategy is not None:
        raise CqError(f"compare needs a float32 model, got one already quantized ({model.strategy.name}): load its original")
    return name, model, calibration


def _strategies(strategies) -> tuple:
    strategies = tuple(strategies) if isinstance(strategies, Iterable) else (strategies,)
    for strategy in strategies:
        if not isinstance(strategy, (*STRATEGIES.values(), QAT)):
            raise CqError(f"strategies must be WeightOnly, Dynamic, Static or QAT objects, got {strategy!r}")
    return strategies


def _metric_names(metric, model, samples: Samples) -> tuple[str, ...]:
    if callable(metric):
        return (getattr(metric, "__name__", "metric"),)
    lm = model.config.causal and model.config.lm_head
    scored = 0 if samples.scores is None else int(np.isfinite(samples.scores).sum())
    possible = _LM if lm else () if model.config.pooling is None else _ENCODER if scored >= 2 else _ENCODER[1:]
    if metric is None:
        return possible[:2]
    if metric not in possible:
        why = "spearman needs at least 2 scored pairs" if metric == "spearman" and not lm else "the metric does not fit"
        raise CqError(f"metric {metric!r}: {why}; for this model and data: {', '.join(possible)}, or a function")
    return (metric,)


def _calibration(calibration, strategies, model, samples: Samples) -> Samples | None:
    """The samples to calibrate on, or None where no strategy needs any."""
    needs = next((strategy.name for strategy in strategies if isinstance(strategy, (Static, QAT))), None)
    if needs is None:
        return None
    if calibration is None:
        raise CalibrationError(f"{needs} needs samples to calibrate on: give calibration (--calibration on the command line), "
                               f"100–500 unlabeled samples that are not in the data, or leave {needs} out of the strategies")
    calibration = read(calibration, model)
    shared = {path.resolve() for path in calibration.sources} & {path.resolve() for path in samples.sources}
    if shared:
        raise CqError(f"calibration and data share {min(shared)}: never calibrate on what is reported; give other samples")
    if {ids.tobytes() for ids in calibration} == {ids.tobytes() for ids in samples}:
        raise CqError("calibration and data are the same samples: never calibrate on what is reported; give other samples")
    return calibration


def _file_bytes(model) -> int:
    """Size of the model's checkpoint on disk."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save(model, path)
        return path.stat().st_size


def _evaluated(models, samples: Samples, names: tuple[str, ...], progress) -> list[dict[str, float]]:
    """Accuracies and "sqnr_db" of every model. The data goes by in chunks, so that no more than a chunk of outputs is
    held."""
    lm = models[0].config.causal and models[0].config.lm_head
    parts = [{} for _ in models]
    progress("evaluate", 0, len(samples))
    done = 0
    for chunk in _chunks(samples, models[0].config.vocab_size if lm else 1):
        run = (lambda m: m.logits(chunk)) if lm else (lambda m: m.forward(chunk))
        reference = run(models[0])
        for i, model in enumerate(models):
            outputs = run(model) if i else reference
            found = [_lm_parts(names, *each) for each in zip(reference, outputs, chunk)] if lm else \
                [{"sqnr_db": [metrics.sqnr_db(*each)]} for each in zip(reference, outputs)]
            if set(names) & set(_ENCODER):
                found.append({"embedding": model.embed(chunk)})
            for part in found:
                for key, values in part.items():
                    parts[i].setdefault(key, []).append(values)
        done += len(chunk)
        progress("evaluate", done, len(samples))
    joined = [{key: np.concatenate(values) for key, values in part.items()} for part in parts]
    return [{"sqnr_db": float(part["sqnr_db"].mean())} | _accuracies(names, part, joined[0], samples) for part in joined]


def _chunks(samples: Samples, width: int) -> Iterator[list[np.ndarray]]:
    """Consecutive sequences of together at most _CHUNK_TOKENS tokens and _CHUNK_LOGITS outputs of this width, or one
    sequence."""
    most, chunk, size = min(_CHUNK_TOKENS, _CHUNK_LOGITS // width), [], 0
    for ids in samples:
        if chunk and size + len(ids) > most:
            yield chunk
            chunk, size = [], 0
        chunk.append(ids)
        size += len(ids)
    yield chunk


def _lm_parts(names, reference, logits, tokens) -> dict:
    """What one sequence adds to a language model's accuracy."""
    parts = {"sqnr_db": [metrics.sqnr_db(reference, logits)]}
    if {"perplexity", "bits_per_token"} & set(names):
        parts["nll"] = metrics.token_nll(logits, tokens)
    if "top1" in names:
        parts["top1"] = metrics.top1_match(reference, logits)
    if "flips" in names:
        parts["flips"] = metrics.flips(reference, logits, tokens)
    if "kl" in names:
        parts["kl"] = metrics.kl_divergence(reference, logits)
    return parts


def _accuracies(names, part: dict, float32: dict, samples: Samples) -> dict[str, float]:
    ways = {
        "perplexity": lambda: metrics.perplexity(part["nll"]),
        "bits_per_token": lambda: metrics.bits_per_token(part["nll"]),
        "top1": lambda: float(part["top1"].mean()),
        "kl": lambda: float(part["kl"].mean()),
        "flips": lambda: float(part["flips"].mean()),
        "cosine": lambda: float(metrics.cosine(float32["embedding"], part["embedding"]).mean()),
        "spearman": lambda: _spearman(part["embedding"], samples.scores),
    }
    return {name: ways[name]() for name in names if name in ways}


def _spearman(embedding: np.ndarray, scores: np.ndarray) -> float:
    """×100, of the pairs' cosines with their scores, over the scored pairs. embedding: (2 pairs, dim)."""
    scored = np.isfinite(scores)
    return 100.0 * metrics.spearman(metrics.cosine(embedding[::2], embedding[1::2])[scored], scores[scored])


def _labels(strategy) -> tuple[str, str, str, str]:
    """Row.name, .strategy, .scheme, .choices"""
    if strategy is None:
        return "float32", "float32", "", ""
    target = strategy.target if isinstance(strategy, QAT) else strategy
    scheme = {Scheme(): "default", Scheme.textbook(): "textbook"}.get(target.scheme, "custom")
    parts = [strategy.name, "" if target is strategy or target.name == "static" else target.name, scheme.removeprefix("default")]
    return " ".join(part for part in parts if part), strategy.name, scheme, repr(strategy)


def _described(samples: Samples) -> dict:
    return {"files": [path.name for path in samples.sources], "samples": len(samples), "tokens": samples.num_tokens}


def _machine() -> dict:
    facts = info()
    return {key: facts[key] for key in ("cpu", "cores", "threads", "isa", "version")}
