"""compensate(model, samples) → a float32 model whose weights lie on int8's codes, each rounded so that it takes back
the errors of those before it, once channels that hid others from the codes were made alike. Knows no strategy."""

from collections.abc import Iterable, Iterator, Sized
from typing import NamedTuple

import numpy as np

from .. import affine, functions
from ..calibrate import Progress, show
from ..coding import quantize_weight
from ..errors import CalibrationError, CqError
from ..model import Transformer
from ..model.inputs import check_samples
from ..observers.tokens import Tokens
from ..qtensor import QTensor
from .cholesky import inverse_factor

STRENGTHS = (0.25, 0.4, 0.5, 0.6, 0.75, 1.0)  # the exponent of a channel's size in what divides it
NARROWEST = 1e-3  # a channel counts as at least this share of the largest one
DAMPING = 0.01  # of the mean of the inputs' squares, added to each: as in the paper
KEEP = 512  # tokens of a place by which a strength is chosen
_COLUMNS = 128  # inputs whose errors wait before all others take them back at once
_ROWS = 4096  # outputs that are rounded at once


class _Place(NamedTuple):
    """Where `layers` read their inputs, `site` in calibration's names. source: the layer that the place's channels are
    linear in, output by output, where there is one; group: so many neighbouring heads of `dim` channels each share its
    outputs."""

    site: str
    layers: tuple[str, ...]
    source: str | None = None
    group: int = 1
    dim: int = 1

    def shared(self, scale: np.ndarray) -> np.ndarray:
        """A scale for each of the source's outputs from one for each channel: the geometric mean of those that share
        it."""
        return functions.exp(functions.log(scale).reshape(-1, self.group, self.dim).mean(1)).reshape(-1)

    def spread(self, scale: np.ndarray) -> np.ndarray:
        """The other way."""
        return np.repeat(scale.reshape(-1, 1, self.dim), self.group, 1).reshape(-1)


def compensate(
    model: Transformer, calibration: Iterable, progress: Progress | None = None, *, group_size: int | None = None
) -> Transformer:
    """Rounds a model's weights so that they compensate each other's errors, at no cost at inference.

    First the channels between layers are equalized: the inputs of attention's output and, where a feed-forward part is
    gated, of its down projection are divided by a scale for each channel, which the layers on either side take in
    (SmoothQuant, arXiv:2211.10438). Logits stay the same up to float rounding. Then the weight of every linear layer is
    rounded to symmetric int8 per output channel, or group of its inputs, input by input, and the inputs that follow
    take back what is left of the outputs' error (GPTQ, arXiv:2210.17323). The word table, a head tied to it and a
    sequence classifier's head stay as they are. Memory: the float32 model twice, and for each site that layers read a
    float32 matrix of its width squared.

    Args:
        model: A float32 model.
        calibration: Any iterable of samples, as for `quantize`: some thousand tokens or more of the kind that the model
            is for.
        progress: Called with (done, total or None) as samples pass, and then as sites are done.
        group_size: How many neighbouring inputs of an output channel share a scale, as in `Scheme`, a positive multiple
            of 4; None: all of them.

    Returns:
        A new float32 model whose weights stand for those codes. `quantize` finds them again with the default scheme, or
        with one of such groups.

    Raises:
        CalibrationError: There are no samples.
        CqError: The model is not float32, or cannot take a sample.
    """
    if not isinstance(model, Transformer):
        raise CqError(f"model: need a cq.Transformer (cq.load gives one), got {type(model).__name__}")
    if model.strategy is not None:
        raise CqError(f"model: already quantized ({model.strategy.name}); compensate the float32 model first")
    check_samples(calibration, "calibration")
    if progress is not None and not callable(progress):
        raise CqError(f"progress: need a function of (done, total), got {type(progress).__name__}")
    if group_size is not None and (type(group_size) is not int or group_size < 4 or group_size % 4):
        raise CqError(f"group_size: need a positive multiple of 4, or None, got {group_size!r}")
    places = list(_places(model))
    squares, tokens = _seen(model, calibration, places, progress)
    weights = model.weights()
    for place in places:
        if place.source is not None:
            _equalize(weights, place, tokens.pop(place.site).rows, squares[place.site], group_size)
    for done, place in enumerate(places, 1):
        factor = _factor(squares.pop(place.site))
        for name in place.layers:
            weights[f"{name}.weight"] = rounded(weights[f"{name}.weight"], factor, group_size)
        if progress is not None:
            progress(done, len(places))
    return Transformer(model.config, weights, model.tokenizer)


def _places(model: Transformer) -> Iterator[_Place]:
    """All sites but a classifier's, and a head's that is tied to the word table."""
    config, graph = model.config, model.graph
    attended = {block.attention.context for block in graph.blocks}
    for site in graph.trunk:
        if site.readers == ("head",) and config.tied:
            continue
        shared = (config.num_heads // config.num_kv_heads, config.head_dim) if site.name in attended else ()
        yield _Place(site.name, site.readers, site.source, *shared)


def _seen(model: Transformer, samples: Iterable, places: list[_Place], progress: Progress | None) -> tuple[dict, dict]:
    """For each site: the sum over tokens of x xᵀ, float32 (k, k); and, where there is a source, some of the tokens."""
    wanted = {place.site: place for place in places}
    squares: dict[str, np.ndarray] = {}
    tokens = {place.site: Tokens(KEEP) for place in places if place.source is not None}
    total, done = len(samples) if isinstance(samples, Sized) else None, 0

    def watch(site: str, x: np.ndarray, place: int, start: int) -> None:
        if site not in wanted:
            return
        affine.check_finite(x, "x")
        if site not in squares:
            squares[site] = np.zeros((x.shape[1],) * 2, np.float32)
        functions.matmul(x.T, x, squares[site], add=True)
        if site in tokens:
            tokens[site].update(x, place, start)

    for count in show(model, enumerate(samples), watch):
        for _ in range(count):
            done += 1
            if progress is not None:
                progress(done, total)
    if not squares:
        raise CalibrationError(
            "calibration: no samples came; give some thousand tokens of typical texts or token arrays"
        )
    return squares, tokens


# --- channels ---------------------------------------------------------------------------------------------------------


def _equalize(
    weights: dict[str, np.ndarray], place: _Place, x: np.ndarray, square: np.ndarray, group_size: int | None
) -> None:
    """Moves scales from the place's channels into the layers on either side, in `weights`, and takes them out of
    `square`."""
    (name,) = place.layers
    weight = weights[f"{name}.weight"]
    size = np.sqrt(np.square(x, dtype=np.float64).mean(0))
    reach = np.abs(weight).max(0).astype(np.float64)
    size, reach = (np.maximum(a, NARROWEST * a.max() or 1.0) for a in (size, reach))
    scales = [np.ones(len(size) // place.group)]
    for strength in STRENGTHS:
        for other in dict.fromkeys((0.0, 1 - strength)):
            scale = place.shared(functions.power(size, strength) * functions.power(reach, -other))
            scales.append(scale / functions.exp(functions.log(scale).mean()))
    y = functions.matmul(x, weight.T)
    best = min(scales, key=lambda scale: _error(x, weight, y, place.spread(scale).astype(np.float32), group_size))
    spread = place.spread(best)
    weights[f"{name}.weight"] = (weight * spread).astype(np.float32)
    square /= np.outer(spread, spread).astype(np.float32)
    for part in (f"{place.source}.weight", f"{place.source}.bias"):
        if part in weights:
            weights[part] = (weights[part].T / best).T.astype(np.float32)


def _error(x: np.ndarray, weight: np.ndarray, y: np.ndarray, scale: np.ndarray, group_size: int | None) -> float:
    """Of the outputs y of weight's layer when x / scale goes in as codes of each token's own, and the weight is in
    codes too: each token's over its outputs' size, averaged."""
    size = np.square(y).sum(1)
    given, weight = x / scale, weight * scale
    lo, hi = np.minimum(given.min(1, keepdims=True), 0), np.maximum(given.max(1, keepdims=True), 0)
    step = np.maximum((hi - lo) / 255, affine.SMALLEST_SCALE)
    codes = np.rint(given / step) * step
    error = functions.matmul(codes, _quantized(weight, group_size).dequantize().T) - y
    return float((np.square(error).sum(1) / np.maximum(size, 1e-3 * size.mean() or 1.0)).mean())


# --- rounding ---------------------------------------------------------------------------------------------------------


class _Factor(NamedTuple):
    """order: the inputs, those of the largest squares first. upper: float32 (k, k), the Cholesky factor U of the
    inverse UᵀU of their damped squares."""

    order: np.ndarray
    upper: np.ndarray


def _factor(square: np.ndarray) -> _Factor:
    damped = square.astype(np.float64)
    diagonal = damped.diagonal()
    damped[np.diag_indices_from(damped)] += DAMPING * diagonal.mean() or 1.0
    order = np.argsort(-diagonal, kind="stable")
    return _Factor(order, inverse_factor(damped[np.ix_(order, order)]).astype(np.float32))


def rounded(weight: np.ndarray, factor: _Factor, group_size: int | None = None) -> np.ndarray:
    """weight float32 (n, k) → what the codes of the rounded weight stand for. The code of the largest weight under each
    scale stays ±127, so that rounding the result finds the same scales and codes."""
    result = np.empty_like(weight)
    for at in range(0, len(weight), _ROWS):
        rows = weight[at : at + _ROWS]
        scales, fixed = _scales(rows, group_size)
        left, scales, fixed = (np.ascontiguousarray(one[:, factor.order].T) for one in (rows, scales, fixed))
        result[at : at + _ROWS, factor.order] = (_codes(left, scales, fixed, factor.upper) * scales).T
    return result


def _scales(weight: np.ndarray, group_size: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Of weight (n, k): every weight's scale, float32 (n, k), and the code ±127 of the largest under each scale among
    zeros, float32 (n, k)."""
    size = group_size or weight.shape[1]
    scales = _quantized(weight, size).scale
    fixed = np.zeros_like(weight)
    for start in range(0, weight.shape[1], size):
        largest = np.abs(weight[:, start : start + size]).argmax(1)[:, None] + start
        np.put_along_axis(fixed, largest, np.copysign(np.float32(127), np.take_along_axis(weight, largest, 1)), 1)
    return np.repeat(scales, size, 1)[:, : weight.shape[1]], fixed


def _quantized(weight: np.ndarray, group_size: int | None) -> QTensor:
    return quantize_weight(weight, True, "per_group" if group_size else "per_channel", group_size)


def _codes(left: np.ndarray, scales: np.ndarray, fixed: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """left (k, n), of which errors are taken back as they arise: changed. → codes (k, n) float32, `fixed` where that is
    not 0."""
    k, codes = len(left), np.empty_like(left)
    for start in range(0, k, _COLUMNS):
        end = min(start + _COLUMNS, k)
        errors = np.empty((end - start, left.shape[1]), np.float32)
        for i in range(start, end):
            codes[i] = np.where(fixed[i], fixed[i], np.clip(np.rint(left[i] / scales[i]), -127, 127))
            errors[i - start] = error = (left[i] - codes[i] * scales[i]) / upper[i, i]
            left[i + 1 : end] -= upper[i, i + 1 : end, None] * error
        left[end:] -= functions.matmul(upper[start:end, end:].T, errors)
    return codes
