"""Accuracy: models' outputs on one set of samples beside a float32 model's. Knows no strategy and no clock."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from ..errors import CqError
from ..model import Transformer
from ..model.pooling import pool
from . import metrics
from .samples import Progress, Samples

LM, ENCODER = ("perplexity", "bits_per_token", "top1", "kl", "flips"), ("spearman", "cosine")
LOWER_IS_BETTER = ("perplexity", "bits_per_token", "kl", "flips")
_LEAST_WINDOWS = 32
_CHUNK_TOKENS, _CHUNK_LOGITS = 4096, 2**25  # evaluated at once; 2**25 float32 logits are 128 MiB


def metric_names(metric: str | Callable | None, model: Transformer, samples: Samples) -> tuple[str, ...]:
    """Names of the accuracies that `metric` (a name, a function or None) asks for. Raises CqError where it does not
    fit."""
    if callable(metric):
        return (getattr(metric, "__name__", "metric"),)
    lm = is_lm(model)
    scored = 0 if samples.scores is None else int(np.isfinite(samples.scores).sum())
    possible: tuple[str, ...] = ()
    if lm:
        possible = LM
    elif model.config.pooling is not None:
        possible = ENCODER if scored >= 2 else ENCODER[1:]
    if metric is None:
        return possible[:2]
    if metric not in possible:
        why = "spearman needs at least 2 scored pairs" if metric == "spearman" and not lm else "the metric does not fit"
        raise CqError(f"metric {metric!r}: {why}; for this model and data: {', '.join(possible)}, or a function")
    return (metric,)


def is_lm(model: Transformer) -> bool:
    return model.config.causal and model.config.lm_head


class Evaluation:
    """Calls give the accuracies `names` of each model; "sqnr_db" may be one: mean decibels of the outputs. Outputs are
    logits of a language model, hidden states of others. "cosine" is of the embeddings, or of the rows of outputs where
    the model does not pool.

    The data goes by in chunks, so that no more than a chunk of outputs is held, and the float32 model's, up to `keep`
    bytes, for the next call. enough: of a language model's windows, evenly spread ones are evaluated until the standard
    error of each model's mean difference from float32 in nats per token is at most this; None: all are.
    `evaluated` is then what was."""

    def __init__(
        self, float32: Transformer, samples: Samples, names: tuple[str, ...], keep: int = 0, enough: float | None = None
    ):
        self.float32, self.names, self.keep = float32, names, keep
        self.lm = is_lm(float32)
        self.enough = enough if self.lm and "perplexity" in names and samples.scores is None else None
        self.samples = samples if self.enough is None else samples.spread()
        self.evaluated = self.samples
        # whether float32's outputs are needed
        self._beside = bool({"sqnr_db", "cosine", "top1", "kl", "flips"} & set(names))
        self.embeds = float32.config.pooling is not None and not self.lm and bool(set(names) & set(ENCODER))
        self._kept: dict[int, list[np.ndarray]] = {}

    def __call__(self, models: Iterable[Transformer], progress: Progress | None = None) -> list[dict[str, float]]:
        models, progress = list(models), progress or (lambda what, done, total: None)
        parts: list[dict[str, list[np.ndarray]]] = [{} for _ in models]
        embeddings: list[np.ndarray] = []  # the float32 model's
        done = 0
        progress("evaluate", 0, len(self.samples))
        for place, chunk in enumerate(_chunks(self.samples, self.float32.config.vocab_size if self.lm else 1)):
            reference = self._reference(place, chunk) if self._beside else None
            if reference is not None and self.embeds and "cosine" in self.names:
                embeddings.append(_embedded(self.float32, reference))
            for model, part in zip(models, parts):
                outputs = reference if reference and model is self.float32 else self._outputs(model, chunk)
                for found in self._found(model, reference, outputs, chunk):
                    for key, values in found.items():
                        part.setdefault(key, []).append(values)
            done += len(chunk)
            progress("evaluate", done, len(self.samples))
            if self.enough is not None and _error(parts, models.index(self.float32)) <= self.enough:
                break
        self.evaluated = Samples(self.samples.tokens[:done], self.samples.scores, self.samples.sources)
        return [
            self._accuracies({key: np.concatenate(values) for key, values in part.items()}, embeddings)
            for part in parts
        ]

    def _outputs(self, model: Transformer, chunk: list[np.ndarray]) -> list[np.ndarray]:
        return model.logits(chunk) if self.lm else model.forward(chunk)

    def _reference(self, place: int, chunk: list[np.ndarray]) -> list[np.ndarray]:
        if place in self._kept:
            return self._kept[place]
        outputs = self._outputs(self.float32, chunk)
        if sum(a.nbytes for arrays in (*self._kept.values(), outputs) for a in arrays) <= self.keep:
            self._kept[place] = outputs
        return outputs

    def _found(
        self, model: Transformer, reference: list[np.ndarray] | None, outputs: list[np.ndarray], chunk: list[np.ndarray]
    ) -> Iterator[dict[str, np.ndarray]]:
        """What a chunk's sequences add to a model's accuracy."""
        for theirs, ours, tokens in zip(reference or outputs, outputs, chunk):
            part: dict[str, np.ndarray] = {}
            if "sqnr_db" in self.names:
                part["sqnr_db"] = np.array([metrics.sqnr_db(theirs, ours)])
            if self.lm and {"perplexity", "bits_per_token"} & set(self.names):
                part["nll"] = metrics.token_nll(ours, tokens)
            if "top1" in self.names:
                part["top1"] = metrics.top1_match(theirs, ours)
            if "kl" in self.names:
                part["kl"] = metrics.kl_divergence(theirs, ours)
            if "flips" in self.names:
                part["flips"] = metrics.flips(theirs, ours, tokens)
            if "cosine" in self.names and not self.embeds:
                part["rows"] = metrics.cosine(theirs, ours)
            yield part
        if self.embeds:
            yield {"embedding": _embedded(model, outputs)}

    def _accuracies(self, part: dict[str, np.ndarray], embeddings: list[np.ndarray]) -> dict[str, float]:
        ways = {
            "sqnr_db": lambda: float(part["sqnr_db"].mean()),
            "perplexity": lambda: metrics.perplexity(part["nll"]),
            "bits_per_token": lambda: metrics.bits_per_token(part["nll"]),
            "top1": lambda: float(part["top1"].mean()),
            "kl": lambda: float(part["kl"].mean()),
            "flips": lambda: float(part["flips"].mean()),
            "cosine": lambda: float(
                (metrics.cosine(np.concatenate(embeddings), part["embedding"]) if self.embeds else part["rows"]).mean()
            ),
            "spearman": lambda: _spearman(part["embedding"], self.samples.scores),
        }
        return {name: ways[name]() for name in self.names if name in ways}


def _error(parts: list[dict[str, list[np.ndarray]]], float32: int) -> float:
    """The largest standard error of a model's mean difference from float32, window by window; infinite below 32 of
    them, whose spread says too little."""
    means = np.array([[float(nll.mean()) for nll in part["nll"]] for part in parts])
    if means.shape[1] < _LEAST_WINDOWS:
        return float("inf")
    return float((means - means[float32]).std(axis=1, ddof=1).max() / np.sqrt(means.shape[1]))


def _embedded(model: Transformer, hidden: list[np.ndarray]) -> np.ndarray:
    return model.pooled([pool(rows, model.config.modes) for rows in hidden])


def _chunks(samples: Samples, width: int) -> Iterator[list[np.ndarray]]:
    """Consecutive sequences of together at most _CHUNK_TOKENS tokens and _CHUNK_LOGITS outputs of this width, or one
    sequence."""
    most, size = min(_CHUNK_TOKENS, _CHUNK_LOGITS // width), 0
    chunk: list[np.ndarray] = []
    for ids in samples:
        if chunk and size + len(ids) > most:
            yield chunk
            chunk, size = [], 0
        chunk.append(ids)
        size += len(ids)
    yield chunk


def _spearman(embedding: np.ndarray, scores: np.ndarray | None) -> float:
    """×100, of the pairs' cosines with their scores, over the scored pairs. embedding: (2 pairs, dim)."""
    assert scores is not None, "metric_names saw scores"
    scored = np.isfinite(scores)
    return 100.0 * metrics.spearman(metrics.cosine(embedding[::2], embedding[1::2])[scored], scores[scored])
