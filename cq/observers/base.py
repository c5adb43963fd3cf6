"""What all range finders share: the checks of what comes in, the axis of channels, merging, and the way from a range to
parameters. Knows no way to find a range.
"""

from abc import ABC, abstractmethod
from numbers import Integral
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from cq import affine
from cq.errors import CalibrationError, CqError, UnsupportedError


class Observer(ABC):
    """A streaming accumulator that names a range.

    `update` it with arrays, `merge` it with others, and ask for `qparams` at any time.

    Its state has constant size. Where a docstring says "in any order and partition", the result has the same bits.

    Args:
        axis: None for one range over all elements (per tensor), else the axis of the arrays that holds channels, each
            of which gets a range of its own; then all results have shape (channels,).
    """

    def __init__(self, axis: int | None = None) -> None:
        self.axis = (
            None if axis is None else whole(axis, "axis", -64, 63, "None or a whole number that an axis may have")
        )
        self._shape: tuple[int, ...] | None = None  # of the ranges: () or (channels,); None before any data

    @property
    def seen(self) -> bool:
        """Whether any data came."""
        return self._shape is not None

    def update(self, x: ArrayLike, keep: ArrayLike | None = None, order: int | None = None) -> None:
        """Takes in the elements of an array.

        Args:
            x: Real floats of any shape. Not modified; an empty array changes nothing.
            keep: Which tokens count: bools over the leading axes of `x`, such as an attention mask (batch, length) for
                `x` (batch, length, hidden), or whole numbers that pick along the first axis. The others may hold
                anything, NaN too.
            order: The place of `x` in the whole stream, from 0, for observers to which order matters (`MovingAverage`).
                None: after all that this observer has seen.

        Raises:
            CqError: NaN or Inf among what counts, another type, a mask that does not fit, or another number of channels
                than before. Nothing is changed then.
        """
        if order is not None:
            order = whole(order, "order", 0, 2**62, "None or a whole number from 0")
        given = _array(x)
        axis = None if self.axis is None else _from_the_end(self.axis, given.shape)
        if keep is not None:
            given = given[_chosen(keep, given.shape, axis)]
        if not given.size:
            return
        given, lo, hi = _extremes(given, None if axis is None else tuple(i for i in range(-given.ndim, 0) if i != axis))
        if self._shape is not None and self._shape != lo.shape:
            raise CqError(f"x: got {lo.size} channels along axis {self.axis}, wanted {self._shape[0]} as before")
        self._shape = lo.shape
        if axis is not None:
            given = np.moveaxis(given, axis, -1).reshape(-1, given.shape[axis])
        self._update(given, lo, hi, order)

    def merge(self, other: Self) -> Self:
        """Takes in, in place, all that another observer has seen.

        Args:
            other: An observer of the same class and settings. It is not changed.

        Returns:
            This observer.

        Raises:
            CqError: The other has another class, other settings or another number of channels. Nothing is changed then.
        """
        if type(other) is not type(self) or other._settings() != self._settings():
            raise CqError(f"other: got {other!r}, wanted another {self!r}, as only equal observers can merge")
        if other._shape is not None:
            if self._shape is not None and self._shape != other._shape:
                raise CqError(f"other: got {other._shape[0]} channels, wanted {self._shape[0]} as here")
            self._shape = other._shape
            self._merge(other)
        return self

    def range(self, dtype: DTypeLike = "uint8", symmetric: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Names the range for codes of a kind.

        Args:
            dtype: "int8" or "uint8".
            symmetric: Whether the codes are symmetric around 0.

        Returns:
            (lo, hi), float64 numbers or arrays (channels,), lo <= hi. They need not hold 0 between them.

        Raises:
            CalibrationError: It has seen no data.
            CqError: There are no such codes.
        """
        affine.code_range(dtype, symmetric)
        if not self.seen:
            raise CalibrationError(f"{self!r} has seen no data; call update() with samples first")
        lo, hi = self._range(dtype, symmetric)
        return np.asarray(lo, np.float64)[()], np.asarray(hi, np.float64)[()]

    def qparams(self, dtype: DTypeLike = "uint8", symmetric: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Gives the scale and the zero point for `range`.

        Args:
            dtype: "int8" or "uint8".
            symmetric: Whether the codes are symmetric around 0.

        Returns:
            (scale, zero_point), float32 and int32, numbers or arrays (channels,).

        Raises:
            CalibrationError: It has seen no data.
            CqError: There are no such codes.
        """
        return affine.qparams(*self.range(dtype, symmetric), dtype, symmetric)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self._settings().items())})"

    def _settings(self) -> dict[str, object]:
        """The constructor's arguments that are not at their plainest: what two observers must share to merge."""
        return {} if self.axis is None else {"axis": self.axis}

    @abstractmethod
    def _update(self, x: np.ndarray, lo: np.ndarray, hi: np.ndarray, order: int | None) -> None:
        """x: finite float32 that is not empty, of any shape, or (rows, channels) where there is an axis; lo, hi: its
        extremes, () or (channels,)."""

    @abstractmethod
    def _merge(self, other: Self) -> None: ...

    @abstractmethod
    def _range(self, dtype: DTypeLike, symmetric: bool) -> tuple[np.ndarray, np.ndarray]: ...


class Ordered(Observer):
    """An observer whose result depends on the order of the arrays, and which nobody can merge therefore."""

    def merge(self, other: Self) -> Self:
        """Always raises UnsupportedError."""
        self._merge(other)
        return self

    def _merge(self, other: Self) -> None:
        raise UnsupportedError(f"{self!r} gives parameters that depend on the order of the arrays: it cannot merge")


def whole(value: object, name: str, least: int, most: int, wanted: str) -> int:
    """`value` as an int where least <= value <= most; else CqError saying what was wanted."""
    if isinstance(value, bool) or not isinstance(value, Integral) or not least <= int(value) <= most:
        raise CqError(f"{name}: got {value!r}, wanted {wanted}")
    return int(value)


def number(value: object, name: str, wanted: str, low: float, high: float) -> float:
    """`value` as a float where low < value <= high; else CqError saying what was wanted."""
    if isinstance(value, bool) or not isinstance(value, (Integral, float, np.floating)):
        raise CqError(f"{name}: got {value!r}, wanted {wanted}")
    if not low < float(value) <= high:
        raise CqError(f"{name}: got {value!r}, wanted {wanted}")
    return float(value)


def _array(x: ArrayLike) -> np.ndarray:
    """`x` as an array of floats, not yet known to be finite, because what does not count may be anything."""
    affine.check_unmasked(x, "x")
    try:
        x = np.asarray(x)
    except ValueError as error:
        raise CqError(f"x: cannot become an array: {error}") from None
    if x.dtype.kind != "f":
        raise CqError(f"x: got dtype {x.dtype}, wanted real floats; convert with .astype('float32')")
    return x


def _from_the_end(axis: int, shape: tuple[int, ...]) -> int:
    """The axis as a negative number, which stays right when the axes before it become one."""
    if not -len(shape) <= axis < len(shape):
        raise CqError(f"x: got shape {shape}, wanted one that has an axis {axis} of channels")
    return axis if axis < 0 else axis - len(shape)


def _chosen(keep: ArrayLike, shape: tuple[int, ...], axis: int | None) -> np.ndarray:
    """`keep` as an index into an array of this shape."""
    keep = np.asarray(keep)
    mask = keep.dtype == bool
    if not mask and (keep.dtype.kind not in "iu" or keep.ndim != 1):
        raise CqError(
            f"keep: got {keep.dtype} of shape {keep.shape}, wanted bools over the leading axes of x, or a 1-D array "
            "of whole numbers"
        )
    if not 0 < keep.ndim <= len(shape) or (mask and keep.shape != shape[: keep.ndim]):
        raise CqError(f"keep: got shape {keep.shape}, wanted that of the leading axes of x, which has shape {shape}")
    if axis is not None and axis + len(shape) < keep.ndim:
        raise CqError("keep: it chooses along the axis that holds the channels; wanted a choice of tokens")
    if not mask and keep.size and not (0 <= keep.min() and keep.max() < shape[0]):
        raise CqError(f"keep: got rows {keep.min()} to {keep.max()}, wanted 0 to {shape[0] - 1}")
    return keep


def _extremes(x: np.ndarray, axes: tuple[int, ...] | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x as float32 with its smallest and largest elements; they tell of NaN and Inf too, so that x is read twice
    only."""
    if x.dtype != np.float32:
        x = affine.as_float32(x)
    with np.errstate(invalid="ignore"):
        lo, hi = x.min(axis=axes), x.max(axis=axes)
    if not (np.isfinite(lo).all() and np.isfinite(hi).all()):
        affine.check_finite(x, "x")
    return x, lo + np.float32(0), hi + np.float32(0)  # -0 becomes 0, or the order of arrays would show in the sign
