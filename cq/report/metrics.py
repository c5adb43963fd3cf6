"""How far one array of outputs is from another, in the field's usual numbers: pure NumPy in float64. Knows no model and
no file."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike

from .. import functions
from ..errors import CqError

_BLOCK = 2**20  # logits turned to float64 at once: 8 MiB, which malloc keeps; what is larger is mapped anew each time
_LOG_2, _LOG_10 = 0.6931471805599453, 2.302585092994046


def spearman(x: ArrayLike, y: ArrayLike) -> float:
    """Spearman's rank correlation of two 1-D arrays, −1…1: Pearson's correlation of the ranks, ties sharing their
    average rank. NaN where one side is constant (no ranking to compare). Raises CqError for other shapes, fewer than 2
    values, NaN or Inf."""
    first, second = _pair(x, y, "spearman", ndim=1)
    if len(first) < 2:
        raise CqError(f"spearman: needs at least 2 pairs, got {len(first)}")
    first, second = _ranks(first), _ranks(second)
    first, second = first - first.mean(), second - second.mean()
    norm = np.sqrt((first * first).sum() * (second * second).sum())
    return float(np.clip((first * second).sum() / norm, -1.0, 1.0)) if norm > 0 else float("nan")


def cosine(a: ArrayLike, b: ArrayLike) -> np.ndarray:
    """Cosine of the angle between matching rows: (n, dim), (n, dim) → (n,) float64, −1…1; 0 where a row is all zero.
    Raises CqError for other shapes, NaN or Inf."""
    a, b = _pair(a, b, "cosine", ndim=2)
    norm = np.sqrt((a * a).sum(axis=1)) * np.sqrt((b * b).sum(axis=1))
    return np.asarray(np.clip((a * b).sum(axis=1) / np.where(norm > 0, norm, 1.0), -1.0, 1.0))


def sqnr_db(reference: ArrayLike, quantized: ArrayLike) -> float:
    """Signal to quantization noise in decibels, 10 log10 Σ ref² / Σ (ref − quantized)², over arrays of one shape; 6 dB
    are one bit. Infinite where they are equal. Raises CqError for unequal shapes, empty arrays, NaN or Inf."""
    reference, quantized = _pair(reference, quantized, "sqnr_db")
    noise = reference - quantized
    with np.errstate(divide="ignore"):
        noise, signal = np.square(noise).sum(), np.square(reference).sum()
        return float(10.0 / _LOG_10 * functions.log(signal / noise)) if noise > 0 else float("inf")


def token_nll(logits: ArrayLike, tokens: ArrayLike) -> np.ndarray:
    """Negative log-likelihood in nats of every token but the first: logits (n, vocab), tokens (n,) → (n − 1,) float64.
    Row i of the logits predicts token i + 1. Raises CqError for shapes that do not match or a token outside the
    vocabulary."""
    logits, tokens = np.asarray(logits), np.asarray(tokens)
    if logits.ndim != 2 or tokens.shape != logits.shape[:1] or tokens.dtype.kind not in "iu":
        raise CqError(
            f"token_nll: wanted logits (n, vocab) and n integer tokens, got {logits.shape} and {tokens.dtype} "
            f"{tokens.shape}"
        )
    following = tokens[1:].astype(np.int64)
    if following.size and not 0 <= following.min() <= following.max() < logits.shape[1]:
        raise CqError(f"token_nll: tokens must be 0…{logits.shape[1] - 1}, got {following.min()}…{following.max()}")
    nll = np.empty(len(following))
    for rows in _blocks(len(following), logits.shape[1]):
        x, _, total = _exponents(logits[rows])
        nll[rows] = functions.log(total) - x[np.arange(len(x)), following[rows]]
    return nll


def perplexity(nll: ArrayLike) -> float:
    """exp of the mean negative log-likelihood per token (nats, from `token_nll`): 1 is certainty, vocab_size is a blind
    guess. Infinite where it overflows float64. Raises CqError for no tokens."""
    with np.errstate(over="ignore"):
        return float(functions.exp(_mean_nll(nll)))


def bits_per_token(nll: ArrayLike) -> float:
    """Mean negative log-likelihood per token in bits: log2 of the perplexity. Raises CqError for no tokens."""
    return _mean_nll(nll) / _LOG_2


def top1_match(reference: ArrayLike, logits: ArrayLike) -> np.ndarray:
    """Where both prefer the same token: (n, vocab), (n, vocab) → (n,) bool; its mean is the top-1 agreement. The lowest
    id wins a tie. Raises CqError for other shapes."""
    reference, logits = _same_shape(reference, logits, "top1_match", ndim=2)
    return np.asarray(reference.argmax(1) == logits.argmax(1))


def flips(reference: ArrayLike, logits: ArrayLike, tokens: ArrayLike) -> np.ndarray:
    """Where one of the two predicts the next token right and the other does not: (n, vocab), (n, vocab), tokens (n,) →
    (n − 1,) bool; its mean is the share of answers that changed between right and wrong, which an unchanged accuracy
    hides (Dutta et al. 2024, "Accuracy is not all you need"). The lowest id wins a tie. Raises CqError for shapes that
    do not match."""
    reference, logits = _same_shape(reference, logits, "flips", ndim=2)
    tokens = np.asarray(tokens)
    if tokens.shape != logits.shape[:1] or tokens.dtype.kind not in "iu":
        raise CqError(
            f"flips: wanted {len(logits)} integer tokens, one for each row of logits, got {tokens.dtype} {tokens.shape}"
        )
    return np.asarray((reference[:-1].argmax(1) == tokens[1:]) != (logits[:-1].argmax(1) == tokens[1:]))


def kl_divergence(reference: ArrayLike, logits: ArrayLike) -> np.ndarray:
    """Kullback-Leibler divergence KL(softmax(reference) ‖ softmax(logits)) of every row in nats: (n, vocab), (n, vocab)
    → (n,) float64 ≥ 0. Raises CqError for other shapes."""
    reference, logits = _same_shape(reference, logits, "kl_divergence", ndim=2)
    kl = np.empty(len(reference))
    for rows in _blocks(*reference.shape):
        (x, p, total), (y, _, other_total) = _exponents(reference[rows]), _exponents(logits[rows])
        x -= y
        p *= x
        kl[rows] = p.sum(axis=1) / total - functions.log(total) + functions.log(other_total)
    return np.maximum(kl, 0.0)  # rounding can leave −1e-17


def _ranks(x: np.ndarray) -> np.ndarray:
    """1-D → ranks from 1, equal values sharing the average of the places they take."""
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def _exponents(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of rows in float64: the logits less the largest one, their exponentials, and the sums of these (n,)."""
    x = logits.astype(np.float64)
    x -= x.max(axis=1, keepdims=True)
    exponentials = functions.exp(x)
    return x, exponentials, exponentials.sum(axis=1)


def _blocks(n: int, width: int) -> Iterator[slice]:
    step = max(1, _BLOCK // max(1, width))
    return (slice(start, min(start + step, n)) for start in range(0, n, step))


def _mean_nll(nll: ArrayLike) -> float:
    nll = np.asarray(nll, np.float64)
    if nll.size == 0:
        raise CqError("perplexity needs at least one scored token: the first token of a sequence has no prediction")
    return float(nll.mean())


def _same_shape(a: ArrayLike, b: ArrayLike, name: str, ndim: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape or a.size == 0 or (ndim is not None and a.ndim != ndim):
        raise CqError(
            f"{name}: wanted two non-empty arrays of one shape{f' with {ndim} axes' if ndim else ''}, "
            f"got {a.shape} and {b.shape}"
        )
    return a, b


def _pair(a: ArrayLike, b: ArrayLike, name: str, ndim: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Both as float64, checked: one shape, finite."""
    a, b = (np.asarray(x, np.float64) for x in _same_shape(a, b, name, ndim))
    for which, x in (("first", a), ("second", b)):
        if not np.isfinite(x).all():
            index = tuple(int(i) for i in np.argwhere(~np.isfinite(x))[0])
            raise CqError(f"{name}: the {which} array holds {x[index]} at index {index}")
    return a, b
