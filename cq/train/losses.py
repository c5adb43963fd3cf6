"""Losses and their gradients. Knows outputs of models, no models. Those of words are large, and become their gradients
in place."""

from collections.abc import Iterator

import numpy as np

from .. import functions
from ..model import Config
from .passes import dot, dot_parts, dot_rows, exponents, whole_spans


def next_token(logits: list[np.ndarray], ids: list[np.ndarray]) -> float:
    """Mean cross-entropy, in nats, of every token but each sequence's first: logits (len, vocab), row i of which
    predicts ids i + 1, and which become their gradients. A batch of single tokens has loss 0."""
    predicted = sum(len(s) - 1 for s in ids)
    total = 0.0
    for rows, s in zip(logits, ids):
        at = np.arange(len(s) - 1), s[1:]
        said = rows[at]
        log_sum = _softmax(rows)
        total += float((log_sum[:-1] - said).sum(dtype=np.float64))
        rows[at] -= 1
        rows[-1] = 0
        rows /= max(predicted, 1)
    return total / max(predicted, 1)


def logit_distillation(logits: list[np.ndarray], targets: list[np.ndarray]) -> float:
    """Mean KL(softmax(target) ‖ softmax(logits)) of every token, in nats (Hinton et al. 2015): both lists of (len,
    vocab), of which logits become their gradients."""
    tokens, total = sum(map(len, logits)), 0.0
    for rows, wanted in zip(logits, targets):
        total += dot_parts(_distilled(rows, wanted, tokens))
    return total / tokens


def _distilled(logits: np.ndarray, targets: np.ndarray, tokens: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Some rows after another: what words' shares are to be, and by how much their logarithms are off."""
    step = whole_spans(logits.shape[1])
    for start in range(0, len(logits), step):
        p, wanted = logits[start : start + step], targets[start : start + step]
        off, t = p.copy(), np.array(wanted, order="C")
        log_sum, target_sum = _softmax(p), _softmax(t)
        off -= log_sum[:, None]
        np.subtract(wanted - target_sum[:, None], off, out=off)
        yield t, off
        p -= t
        p /= tokens


def hidden_distillation(hidden: list[np.ndarray], targets: list[np.ndarray]) -> tuple[float, list[np.ndarray]]:
    """Squared distance from the target states as a share of their squared length, over all tokens: both lists of (len,
    hidden) → (loss, gradients). -10 log10 of the loss is the signal to noise ratio in dB."""
    length = functions.total(dot(t, t) for t in targets) or 1.0
    gradients = [h - t for h, t in zip(hidden, targets)]
    loss = functions.total(dot(d, d) for d in gradients) / length
    for d in gradients:
        d *= 2 / length
    return loss, gradients


def embedding_distillation(embeddings: np.ndarray, targets: np.ndarray) -> tuple[float, np.ndarray]:
    """Mean of 1 - cosine between matching rows (n, dim) → (loss, gradient)."""
    cosine, of_first, _ = _cosine(embeddings, targets)
    return float(1 - cosine.mean()), -of_first / len(cosine)


def pair_similarity(embeddings: np.ndarray, scores: np.ndarray) -> tuple[float, np.ndarray]:
    """Mean squared distance of the cosine of rows 2i and 2i + 1 (2n, dim) from scores (n,), -1 … 1 (Reimers, Gurevych
    2019) → (loss, gradient)."""
    cosine, first, second = _cosine(embeddings[::2], embeddings[1::2])
    off = cosine - scores
    slope = (2 / len(off) * off)[:, None].astype(embeddings.dtype)
    gradient = np.empty_like(embeddings)
    gradient[::2], gradient[1::2] = slope * first, slope * second
    return float(np.mean(off * off)), gradient


def pool(hidden: list[np.ndarray], config: Config) -> np.ndarray:
    """One row for each sequence (n, dim), pooled as the configuration says; lengths stay, since losses of cosines
    ignore them."""
    kind = config.pooling
    if kind in ("cls", "last"):
        return np.stack([h[0 if kind == "cls" else -1] for h in hidden])
    if kind == "max":
        return np.stack([h.max(axis=0) for h in hidden])
    return np.stack([h.sum(axis=0) for h in hidden])


def pool_back(gradient: np.ndarray, hidden: list[np.ndarray], config: Config) -> list[np.ndarray]:
    """The reverse of `pool`: gradients (len, hidden)."""
    kind, result = config.pooling, []
    for g, h in zip(gradient, hidden):
        if kind in ("mean", "mean_sqrt_len"):
            result.append(np.broadcast_to(g, h.shape))
            continue
        d = np.zeros_like(h)
        if kind == "max":
            d[h.argmax(axis=0), np.arange(len(g))] = g
        else:
            d[0 if kind == "cls" else -1] = g
        result.append(d)
    return result


def _softmax(x: np.ndarray) -> np.ndarray:
    """Of each row, in place; gives the logarithms of their sums of exponentials."""
    top = x.max(axis=1, keepdims=True)
    exponents(x, 1.0, False)
    total = x.sum(axis=1, keepdims=True)
    x /= total
    return np.asarray((functions.log(total) + top)[:, 0])


def _cosine(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cosines of matching rows (n,), and their gradients with respect to a and b (n, dim); rows of zeros give 0."""
    lengths = [np.maximum(np.sqrt(dot_rows(x, x)), np.finfo(x.dtype).tiny)[:, None] for x in (a, b)]
    a, b = a / lengths[0], b / lengths[1]
    cosine = dot_rows(a, b)
    return cosine, (b - cosine[:, None] * a) / lengths[0], (a - cosine[:, None] * b) / lengths[1]
