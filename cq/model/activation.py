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


class ByColumn(NamedTuple):
    """Fixed codes with parameters of each feature's own: arrays (1, features), float32 and int32."""
    dtype: str
    symmetric: bool
    scale: np.ndarray
    zero_point: np.ndarray

    @classmethod
    def of(cls, forms: tuple[Fixed, ...], widths: tuple[int, ...]) -> "ByColumn":
        """Neighbours' forms, each for so many features, as one."""
        scale, zero_point = (np.repeat(np.array(values, dtype), widths)[None] for values, dtype in
                             (([form.scale for form in forms], np.float32), ([form.zero_point for form in forms], np.int32)))
        return cls(forms[0].dtype, forms[0].symmetric, scale, zero_point)


class Columns:
    """Scales and zero points of each feature's own, arrays (1, features), float32 and int32. Equal to none but itself."""
    __slots__ = ("scale", "zero_point", "inverse")

    def __init__(self, scale: np.ndarray, zero_point: np.ndarray):
        self.scale, self.zero_point = scale, zero_point
        with np.errstate(divide="ignore"):
            self.inverse = np.where(scale > 2.0 ** 126, np.float32(np.nan), np.float32(1) / scale)


class Smoothed(NamedTuple):
    """Fixed codes by parameters of each feature's own, which the reading layer's weight and bias take along, so that its products
    see one scale and one zero point (SmoothQuant, Xiao et al. 2023; shifts: Outlier Suppression+, Wei et al. 2023)."""
    dtype: str
    symmetric: bool
    scale: float
    zero_point: int
    columns: Columns

    @classmethod
    def of(cls, forms: tuple["Fixed | Smoothed", ...], widths: tuple[int, ...]) -> "Smoothed":
        """As ByColumn's, where some are smoothed; scale and zero_point become arrays too."""
        seen = ByColumn.of(forms, widths)
        parts = [(form.columns.scale, form.columns.zero_point) if isinstance(form, Smoothed) else
                 (np.full((1, n), form.scale, np.float32), np.full((1, n), form.zero_point, np.int32))
                 for form, n in zip(forms, widths)]
        return cls(*seen, Columns(*(np.concatenate(arrays, 1) for arrays in zip(*parts))))


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
        """What a product reads, and the form in which it is to code that itself: codes that nobody made yet are made there, while
        they are in the cache."""
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
