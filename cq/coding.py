"""float32 weights and biases → codes, as kernels take them. Knows no models."""

import numpy as np

from . import _core, affine
from .errors import UnsupportedError
from .model.forms import Form, has_one_scale
from .model.overflow import INT32_MAX
from .qtensor import QTensor, quantize_tensor
from .weights import Weight, pack

_BLOCK = 1 << 20  # weights quantized at once


def pack_weight(weight: QTensor) -> Weight:
    """QTensor int8 (out, in), per tensor, along axis 0, or in groups along the inputs → packed (in, out)."""
    n, k = weight.shape
    if k > _core.MAX_K:
        raise UnsupportedError(
            f"weight: {k:,} inputs are more than the {_core.MAX_K:,} whose products always fit int32; "
            "split the layer or leave it in float32"
        )
    scale, zero_point = weight.scale, weight.zero_point
    if weight.axis is None:
        scale, zero_point = np.full((1, n), scale), np.full((1, n), zero_point)
    else:
        scale, zero_point = (np.ascontiguousarray(p.reshape(n, -1).T) for p in (scale, zero_point))
    return pack(
        weight.data.T,
        zero_point.astype(np.int32) if zero_point.any() else None,
        scale.astype(np.float32),
        weight.group_size or 0,
    )


def quantize_weight(weight: np.ndarray, symmetric: bool, granularity: str, group_size: int | None) -> QTensor:
    """weight float32 (out, in) → int8 codes, per tensor, per output channel, or per group of inputs; some rows at a
    time, so that nothing but codes is as large as the weight."""
    affine.check_finite(weight, "weight")
    codes, parts = np.empty(weight.shape, np.int8), []
    one = affine.qparams(weight.min(), weight.max(), "int8", symmetric) if granularity == "per_tensor" else None
    step = max(1, _BLOCK // weight.shape[1])
    for at in range(0, len(weight), step):
        rows = weight[at : at + step]
        if one is not None:
            codes[at : at + step] = affine.quantize(rows, *one, "int8", symmetric)
        else:
            parts.append(quantize_tensor(rows, "int8", symmetric, 0, group_size))
            codes[at : at + step] = parts[-1].data
    if one is not None:
        return QTensor(codes, *one)
    scale, zero_point = (np.concatenate([getattr(part, name) for part in parts]) for name in ("scale", "zero_point"))
    return QTensor(codes, scale, zero_point, 0, group_size)


def quantize_bias(bias: np.ndarray | None, kind: str, input_form: Form, weight: Weight) -> np.ndarray | QTensor | None:
    """The bias as the scheme wants it: int8 affine, int32 codes where the input's scale is fixed, float32 elsewhere."""
    if bias is None:
        return None
    if kind == "int8":
        return quantize_tensor(bias, "int8")
    if kind == "float32" or not has_one_scale(input_form):
        return bias
    assert weight.scales is not None, "integer products have scales"
    codes = np.rint(bias.astype(np.float64) / (input_form.scale * weight.scales[0].astype(np.float64)))
    return codes.astype(np.int32) if np.abs(codes).max() <= bias_room(weight.k) else bias


def bias_room(k: int) -> int:
    """The largest int32 bias that fits beside any sum of k products of codes."""
    return INT32_MAX - min(INT32_MAX, k * 255 * 255)
