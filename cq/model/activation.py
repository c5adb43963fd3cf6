"""What flows between layers: float32, codes, or both, each made once when first asked for. Knows no layers."""

from typing import NamedTuple

import numpy as np

from .. import _core, affine


class PerToken(NamedTuple):
    """Codes whose parameters are found at inference, one pair per token."""

    dtype: str
    symmetric: bool


class PerHead(NamedTuple):
    """Codes whose parameters are found at inference, one pair per token and group of neighbours among its features."""

    dtype: str
    symmetric: bool
    group_size: int


class PerTensor(NamedTuple):
    """Codes whose parameters are found at inference, one pair for all tokens of the call."""

    dtype: str
    symmetric: bool
    granularity: str = "per_tensor"


class Fixed(NamedTuple):
    """Codes whose parameters calibration fixed."""

    dtype: str
    symmetric: bool
    scale: float
    zero_point: int


class Columns:
    """Scales and zero points of each feature's own, arrays (1, features), float32 and int32. Equal to none but
    itself."""

    __slots__ = ("scale", "zero_point", "inverse")

    def __init__(self, scale: np.ndarray, zero_point: np.ndarray):
        self.scale, self.zero_point = scale, zero_point
        # as cq.h says
        self.inverse = np.full_like(scale, np.nan) if scale.max() > 2.0**126 else np.float32(1) / scale


class Smoothed(NamedTuple):
    """Fixed codes by parameters of each feature's own, which the reading layer's weight and bias take along, so that
    its products see one scale and one zero point (SmoothQuant, Xiao et al. 2023; shifts: Outlier Suppression+, Wei et
    al. 2023)."""

    dtype: str
    symmetric: bool
    scale: float | np.ndarray
    zero_point: int | np.ndarray
    columns: Columns

    @classmethod
    def of(cls, forms: tuple["Fixed | Smoothed", ...], widths: tuple[int, ...]) -> "Smoothed":
        """Neighbours' forms, each for so many features, as one, in which scale and zero_point are arrays (1, features)
        too."""

        def spread(values, dtype):
            return np.concatenate(
                [np.broadcast_to(np.asarray(value, dtype), (1, n)) for value, n in zip(values, widths)], 1
            )

        own = [form.columns if isinstance(form, Smoothed) else form for form in forms]
        seen, own = (
            (spread([part.scale for part in parts], np.float32), spread([part.zero_point for part in parts], np.int32))
            for parts in (forms, own)
        )
        return cls(forms[0].dtype, forms[0].symmetric, *seen, Columns(*own))


Form = PerToken | PerTensor | Fixed | Smoothed | None  # of what a linear layer reads; None: float32


def form_from_list(values: list | None) -> Form:
    """The inverse of list(form)."""
    return None if values is None else {2: PerToken, 3: PerTensor, 4: Fixed}[len(values)](*values)


class Activation:
    """(tokens, features) in any of the forms that its readers want."""

    __slots__ = ("values", "codes")

    def __init__(self, values: np.ndarray | _core.Coded | None = None, codes: dict[Form, _core.Coded] | None = None):
        self.values = values
        self.codes = codes or {}

    @classmethod
    def of(cls, result: np.ndarray | _core.Coded, form: Form) -> "Activation":
        """What a kernel returned when asked for `form`."""
        return cls(result) if form is None else cls(None, {form: result})

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
