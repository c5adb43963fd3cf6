"""What flows between layers: float32, codes, or both, each made once when first asked for. Knows no layers."""

import numpy as np

from .. import _core, affine
from ..errors import CqError
from .forms import Fixed, Form, PerTensor, PerToken, Smoothed


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
            self.values = next(iter(self.codes.values())).dequantize()
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


def finite(scores: np.ndarray, name: str) -> np.ndarray:
    """The scores. Raises CqError, which begins with `name`, where there are NaN or Inf among them."""
    try:
        _core.min_max(scores)
    except CqError as error:
        raise CqError(f"{name}: {error}") from None
    return scores
