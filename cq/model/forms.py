"""Forms: which codes a place wants. Each class is a kind of its own and says it in `kind`, which the compiled core
reads with the fields. Forms are equal where class and fields are; they are keys of dictionaries. None in their place
means float32."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, TypeGuard

import numpy as np

if TYPE_CHECKING:
    from .linear import Linear, QuantizedLinear


@dataclass(frozen=True, slots=True)
class PerToken:
    """Codes whose parameters are found at inference, one pair per token."""

    kind: ClassVar[str] = "per_token"
    dtype: str
    symmetric: bool


@dataclass(frozen=True, slots=True)
class PerHead:
    """Codes whose parameters are found at inference, one pair per token and group of neighbours among its features."""

    kind: ClassVar[str] = "per_head"
    dtype: str
    symmetric: bool
    group_size: int


@dataclass(frozen=True, slots=True)
class PerTensor:
    """Codes whose parameters are found at inference, one pair for all tokens of the call."""

    kind: ClassVar[str] = "per_tensor"
    dtype: str
    symmetric: bool


@dataclass(frozen=True, slots=True)
class Fixed:
    """Codes whose parameters calibration fixed."""

    kind: ClassVar[str] = "fixed"
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


@dataclass(frozen=True, slots=True)
class Smoothed:
    """Fixed codes by parameters of each feature's own, which the reading layer's weight and bias take along, so that
    its products see one scale and one zero point (SmoothQuant, Xiao et al. 2023; shifts: Outlier Suppression+, Wei et
    al. 2023)."""

    kind: ClassVar[str] = "smoothed"
    dtype: str
    symmetric: bool
    scale: float | np.ndarray
    zero_point: int | np.ndarray
    columns: Columns

    @classmethod
    def of(cls, forms: "tuple[Fixed | Smoothed, ...]", widths: tuple[int, ...]) -> "Smoothed":
        """Neighbours' forms, each for so many features, as one, in which scale and zero_point are arrays (1, features)
        too."""

        def spread(values: list[float | np.ndarray], dtype: type) -> np.ndarray:
            return np.concatenate(
                [np.broadcast_to(np.asarray(value, dtype), (1, n)) for value, n in zip(values, widths)], 1
            )

        own = [form.columns if isinstance(form, Smoothed) else form for form in forms]
        columns = Columns(
            spread([part.scale for part in own], np.float32), spread([part.zero_point for part in own], np.int32)
        )
        scale = spread([form.scale for form in forms], np.float32)
        zero_point = spread([form.zero_point for form in forms], np.int32)
        return cls(forms[0].dtype, forms[0].symmetric, scale, zero_point, columns)


@dataclass(frozen=True, slots=True)
class Stretched(Smoothed):
    """The same without shifts, where a token that passes the range takes a wider one: all of its features' scales times
    the smallest power of two that holds it. Decoders have such tokens, the first of a text above all, thousands of
    times as large as any other in few layers (Sun et al. 2024, arXiv:2402.17762); one range for all tokens would leave
    the others few codes."""

    kind: ClassVar[str] = "stretched"


Form = PerToken | PerTensor | Fixed | Smoothed | None  # of what a linear layer reads
ResultForm = PerToken | PerHead | Fixed | Smoothed | None  # of what the core makes in a product's own pass


def has_one_scale(form: object) -> TypeGuard[Fixed | Smoothed]:
    """Whether products of codes in this form have one scale for all tokens, known beforehand."""
    return isinstance(form, (Fixed, Smoothed)) and not isinstance(form, Stretched)


def common_form(readers: "tuple[Linear | QuantizedLinear, ...]") -> PerToken | Fixed | Smoothed | None:
    """The form that all `readers` want alike, where it can be made in the pass before them."""
    form = readers[0].input_form if readers else None
    if isinstance(form, (PerToken, Fixed, Smoothed)) and all(reader.input_form == form for reader in readers[1:]):
        return form
    return None
