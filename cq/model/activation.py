"""What flows between layers: float32, codes, or both, each made once when first asked for. Knows no layers."""

import numpy as np

from .. import _core, affine
from ..errors import CqError
from .forms import Fixed, Form, PerTensor, PerToken, Smoothed, Stretched


class Activation:
    """(tokens, features) in any of the forms that its readers want."""

    __slots__ = ("values", "codes")

    def __init__(self, values: np.ndarray | None = None, codes: dict[Form, _core.Coded] | None = None):
        self.values = values
        self.codes = codes or {}

    @classmethod
    def of(cls, result: np.ndarray | _core.Coded, form: Form) -> "Activation":
        """What a kernel returned when asked for `form`."""
        return cls(result) if isinstance(result, np.ndarray) else cls(None, {form: result})

    def floats(self) -> np.ndarray:
        """float32 (tokens, features); decoded from codes where only they exist."""
        if self.values is None:
            self.values = decode(next(iter(self.codes.values())))
        return self.values

    def for_product(self, form: Form) -> tuple[np.ndarray | _core.Coded, "PerToken | Fixed | None"]:
        """What a product reads, and the form in which it is to code that itself: codes that nobody made yet are made
        there, while they are in the cache."""
        if form is None or form in self.codes or isinstance(form, (PerTensor, Smoothed)):
            return self.take(form), None
        return self.floats(), form

    def take(self, form: Form) -> np.ndarray | _core.Coded:
        """float32 where form is None, else codes in that form."""
        if form is None:
            return self.floats()
        if form not in self.codes:
            self.codes[form] = encode(self.floats(), form)
        return self.codes[form]


def encode(x: np.ndarray, form: PerToken | PerTensor | Fixed | Smoothed) -> _core.Coded:
    """x float32 (tokens, features) → codes. Raises CqError where x holds NaN or Inf."""
    if isinstance(form, PerTensor):
        lo, hi = _core.min_max(x)
        scale, zero_point = affine.dynamic_qparams(lo, hi, form.dtype, form.symmetric)
        form = Fixed(form.dtype, form.symmetric, float(scale), int(zero_point))
    return _core.quantize(x, form)


def decode(coded: _core.Coded) -> np.ndarray:
    """codes → what they stand for, float32 (tokens, features)."""
    form, scale, zero_point = coded.smoothed, coded.scale, coded.zero_point
    if isinstance(form, Stretched):
        steps = form.columns.scale / form.scale
        return np.asarray(steps * _above(coded, form.columns.zero_point) * np.asarray(scale)[:, None])
    if form is not None:
        return np.asarray(form.columns.scale * _above(coded, form.columns.zero_point))
    if not isinstance(scale, np.ndarray) or scale.ndim == 1:
        return coded.dequantize()
    repeated = coded.columns // scale.shape[1]  # parameters of groups of columns, or of each
    return np.asarray(np.repeat(scale, repeated, 1) * _above(coded, np.repeat(zero_point, repeated, 1)))


def _above(coded: _core.Coded, zero_point: int | np.ndarray) -> np.ndarray:
    """How far codes are above their zero points."""
    return np.asarray((coded.codes - zero_point).astype(np.float32))


def finite(scores: np.ndarray, name: str) -> np.ndarray:
    """The scores. Raises CqError, which begins with `name`, where there are NaN or Inf among them."""
    try:
        _core.min_max(scores)
    except CqError as error:
        raise CqError(f"{name}: {error}") from None
    return scores
