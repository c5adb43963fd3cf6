"""Packed weights, as products read them: int8 codes with their parameters, or float32. Knows no layers."""

from typing import TYPE_CHECKING

import numpy as np

from . import _core
from .errors import CqError

if TYPE_CHECKING:
    from ._core import _Deferred


class Weight(_core.Packed):
    """int8 (k, n) packed in panels, with what its products need: column sums, zero points (groups, n) or None, scales
    (groups, n) float32 or None; a group holds group_size rows. panels None: they are packed when they are wanted, from
    what `source` then reads. Can be pickled, and used by several threads at once."""

    def __init__(
        self,
        panels: np.ndarray | None,
        column_sums: np.ndarray | None,
        zero_points: np.ndarray | None,
        scales: np.ndarray | None,
        k: int,
        n: int,
        group_size: int,
        source: "_Deferred | None" = None,
    ):
        super().__init__(k, n, group_size, zero_points, scales, source)
        self.largest_scale = 0.0 if scales is None else float(scales.max(initial=0))
        if panels is not None:
            self.put(panels, column_sums)

    @property
    def panels(self) -> np.ndarray:
        """int8 (ceil(n / 16) * ceil(k / 4) * 64,), 64-byte aligned; see cq_weight."""
        return self.packed()[0]

    @property
    def column_sums(self) -> np.ndarray:
        """int32 (n,), without the zero points' share."""
        sums = self.packed()[1]
        assert sums is not None, "int8 panels come with their sums"
        return sums

    @property
    def nbytes(self) -> int:
        """Of memory, once it is packed."""
        return sum(a.nbytes for a in (self.panels, self.column_sums, self.zero_points, self.scales) if a is not None)

    def unpack(self) -> np.ndarray:
        """The codes, int8 (k, n), laid out by columns: as (n, k) they are contiguous."""
        source = self.source
        if source is not None:
            return np.array(source.read())
        lines = self.panels.view(np.int32).reshape(-(-self.n // _core.PANEL), -(-self.k // 4), _core.PANEL)
        return _columns(lines.transpose(0, 2, 1).copy().view(np.int8), self.k, self.n)

    def __reduce__(self) -> tuple:
        """As codes, still in their file where nobody has wanted them yet; they are packed where they arrive."""
        source = self.source
        return pack, (self.unpack() if source is None else source, self.zero_points, self.scales, self.group_size)


class FloatWeight(_core.Packed):
    """float32 (k, n) packed in panels (ceil(n / 16) * k * 16,), 64-byte aligned; see cq_pack_f32."""

    def __init__(self, panels: np.ndarray | None, k: int, n: int):
        super().__init__(k, n, k)
        if panels is not None:
            self.put(panels)

    @property
    def panels(self) -> np.ndarray:
        return self.packed()[0]

    def unpack(self) -> np.ndarray:
        """float32 (k, n), laid out by columns: as (n, k) it is contiguous."""
        panels = self.panels.reshape(-(-self.n // _core.PANEL), self.k, _core.PANEL)
        return _columns(panels.transpose(0, 2, 1), self.k, self.n)

    def __reduce__(self) -> tuple:
        return pack_floats, (self.unpack(),)


def pack(
    b: "np.ndarray | _Deferred",
    zero_points: np.ndarray | None = None,
    scales: np.ndarray | None = None,
    group_size: int = 0,
) -> Weight:
    """A Weight of b: int8 (k, n), any strides, or what gives such codes when they are wanted; zero_points int32
    (groups, n) or None; scales float32 (groups, n) or None; a group holds group_size rows of b (0: all of them)."""
    _check(b, np.dtype(np.int8))
    zero_points = None if zero_points is None else np.require(zero_points, requirements=("A", "C"))
    scales = None if scales is None else np.require(scales, requirements=("A", "C"))
    k, n = b.shape
    if not isinstance(b, np.ndarray):
        return Weight(None, None, zero_points, scales, k, n, group_size or k, b)
    weight = Weight(None, None, zero_points, scales, k, n, group_size or k)
    weight.pack(b)
    return weight


def pack_floats(b: np.ndarray) -> FloatWeight:
    """b float32 (k, n), of which one axis is contiguous, as a FloatWeight."""
    _check(b, np.dtype(np.float32))
    weight = FloatWeight(None, *b.shape)
    weight.pack_floats(b)
    return weight


def _check(b: "np.ndarray | _Deferred", dtype: np.dtype) -> None:
    if b.dtype != dtype or len(b.shape) != 2:
        raise CqError(f"b: need an array of two dimensions of {dtype}, got {b.dtype} of shape {tuple(b.shape)}")


def _columns(panels: np.ndarray, k: int, n: int) -> np.ndarray:
    """(k, n) of columns panel by panel (panels, 16, at least k), laid out by columns."""
    whole = np.ascontiguousarray(panels)
    return whole.reshape(whole.shape[0] * whole.shape[1], whole.shape[2])[:n, :k].T
