"""QTensor: an array of 8-bit codes with the scales and zero points that give it meaning; knows no layers and no
kernels."""

from dataclasses import dataclass
from operator import index as as_index

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from cq import affine
from cq.errors import CqError


@dataclass(frozen=True, eq=False)
class QTensor:
    """Codes with the scales and zero points that give them meaning: scale * (data - zero_point).

    Attributes:
        data: int8 or uint8 array of any shape with at least one element. It is kept as it is, neither copied nor
            changed.
        scale: float32 array, at least 2**-126. Its shape is () for one scale per tensor (axis None),
            (data.shape[axis],) for one per channel, or, with `group_size` g, (ceil(K / g), N) for data (K, N) with axis
            1 and (N, ceil(K / g)) for data (N, K) with axis 0.
        zero_point: int32 array of codes, of the same shape.
        axis: The axis of channels, or None.
        group_size: Number of neighbours along the other axis that share a scale; the last group may be shorter. None:
            all of them.

    Raises:
        CqError: The parts do not fit together.
    """

    data: np.ndarray
    scale: np.ndarray
    zero_point: np.ndarray
    axis: int | None = None
    group_size: int | None = None

    def __post_init__(self) -> None:
        affine.check_unmasked(self.data, "data")
        data = np.asarray(self.data)
        qmin, qmax = affine.code_range(data.dtype)
        axis, group_size = _checked_layout(data, "data", self.axis, self.group_size)
        wanted = _parameter_shape(data.shape, axis, group_size)
        scale, zero_point = np.asarray(self.scale), np.asarray(self.zero_point)
        for name, value in (("scale", scale), ("zero_point", zero_point)):
            if value.shape != wanted:
                raise CqError(
                    f"{name}: got shape {value.shape}, wanted {wanted} for data {data.shape} "
                    f"with axis={axis} and group_size={group_size}"
                )
        scale = affine.as_float32(scale, "scale")
        if scale.min() < affine.SMALLEST_SCALE:
            raise CqError(f"scale: the smallest is {scale.min()}, wanted at least 2**-126; find it with affine.qparams")
        if zero_point.dtype.kind not in "iu" or zero_point.min() < qmin or zero_point.max() > qmax:
            raise CqError(f"zero_point: wanted integers from {qmin} to {qmax} for {data.dtype} data")
        codes_of_zero = zero_point.astype(np.int32, copy=False)
        vars(self).update(data=data, scale=scale, zero_point=codes_of_zero, axis=axis, group_size=group_size)

    @classmethod
    def known(cls, data: np.ndarray, scale: np.ndarray, zero_point: np.ndarray) -> "QTensor":
        """Per-tensor codes whose parts are known to fit: without the checks, which take longer than a small product."""
        self = object.__new__(cls)
        fields = vars(self)
        fields["data"], fields["scale"], fields["zero_point"] = data, scale, zero_point
        fields["axis"] = fields["group_size"] = None
        return self

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the codes, which is the shape of the tensor they stand for."""
        return self.data.shape

    @property
    def dtype(self) -> np.dtype:
        """Type of the codes, int8 or uint8."""
        return self.data.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and zero points together."""
        return self.data.nbytes + self.scale.nbytes + self.zero_point.nbytes

    def dequantize(self) -> np.ndarray:
        """A new float32 array of the same shape: scale * (data - zero_point), by affine.dequantize."""
        return affine.dequantize(
            self.data, *_spread(self.scale, self.zero_point, self.shape, self.axis, self.group_size)
        )


def quantize_tensor(
    x: ArrayLike,
    dtype: DTypeLike = "int8",
    symmetric: bool = False,
    axis: int | None = None,
    group_size: int | None = None,
) -> QTensor:
    """Quantizes an array by its own smallest and largest elements.

    Args:
        x: Real floats of any width and shape, with at least one element; float64 is rounded to float32 first. Not
            modified.
        dtype: "int8" or "uint8".
        symmetric: Whether the zero point is 0 and the codes are -127 to 127 (int8 only).
        axis: None for one scale for the tensor, else the axis that holds channels with a scale each.
        group_size: For 2-D arrays: number of neighbours along the other axis that share a scale. `axis` is then 1
            unless it is given.

    Returns:
        A `QTensor`, with the codes of ONNX QuantizeLinear.

    Raises:
        CqError: `x` is empty, not real floats, or holds NaN or Inf; the message names the index.

    Example:
        >>> import numpy as np, cq
        >>> t = cq.quantize_tensor(np.array([-1.0, 0.0, 2.0], np.float32), dtype="uint8")
        >>> t.data.tolist()
        [0, 85, 255]
    """
    x = affine.as_float32(x)
    if group_size is not None and axis is None:
        axis = 1
    axis, group_size = _checked_layout(x, "x", axis, group_size)
    lo, hi = (_reduced(extreme, x, axis, group_size) for extreme in (np.minimum, np.maximum))
    scale, zero_point = affine.qparams(lo, hi, dtype, symmetric)
    spread = _spread(scale, zero_point, x.shape, axis, group_size)
    return QTensor(affine.quantize(x, *spread, dtype, symmetric), scale, zero_point, axis, group_size)


def _checked_layout(
    x: np.ndarray, name: str, axis: int | None, group_size: int | None
) -> tuple[int | None, int | None]:
    """axis counted from the front and group_size as plain ints, or CqError."""
    if x.size == 0:
        raise CqError(f"{name}: got shape {x.shape}, wanted at least one element")
    if axis is not None:
        axis = _plain_int(axis, "axis")
        if not -x.ndim <= axis < x.ndim:
            raise CqError(f"axis: got {axis}, wanted None or an axis of {name} with shape {x.shape}")
        axis %= x.ndim
    if group_size is not None:
        group_size = _plain_int(group_size, "group_size")
        if x.ndim != 2 or axis is None:
            raise CqError(f"group_size: wanted 2-D {name} and an axis, got shape {x.shape} and axis={axis}")
        if group_size < 1:
            raise CqError(f"group_size: got {group_size}, wanted at least 1")
    return axis, group_size


def _plain_int(value: int, name: str) -> int:
    try:
        if not isinstance(value, bool):
            return as_index(value)
    except TypeError:
        pass
    raise CqError(f"{name}: got {value!r}, wanted an int")


def _parameter_shape(shape: tuple[int, ...], axis: int | None, group_size: int | None) -> tuple[int, ...]:
    if axis is None:
        return ()
    if group_size is None:
        return (shape[axis],)
    groups = -(-shape[1 - axis] // group_size)
    return (groups, shape[1]) if axis == 1 else (shape[0], groups)


def _reduced(extreme: np.ufunc, x: np.ndarray, axis: int | None, group_size: int | None) -> np.ndarray:
    """`extreme` (np.minimum or np.maximum) over each set of elements that share a scale; shape as _parameter_shape."""
    if axis is None:
        return np.asarray(extreme.reduce(x, axis=None))
    if group_size is None:
        return np.asarray(extreme.reduce(x, axis=tuple(i for i in range(x.ndim) if i != axis)))
    return extreme.reduceat(x, range(0, x.shape[1 - axis], group_size), axis=1 - axis)


def _spread(
    scale: np.ndarray, zero_point: np.ndarray, shape: tuple[int, ...], axis: int | None, group_size: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Both parameters in shapes that broadcast to `shape`."""
    if axis is None:
        return scale, zero_point
    if group_size is None:
        aligned = [-1 if i == axis else 1 for i in range(len(shape))]
        return scale.reshape(aligned), zero_point.reshape(aligned)
    group_of = np.arange(shape[1 - axis]) // group_size
    return scale.take(group_of, 1 - axis), zero_point.take(group_of, 1 - axis)
