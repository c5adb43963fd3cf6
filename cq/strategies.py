"""The choices that a user makes when quantizing: frozen records that hold them and nothing else. Knows no arrays."""
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields

from .errors import CqError

GRANULARITIES = {"weight_granularity": ("per_tensor", "per_channel", "per_group"),
                 "activation_granularity": ("per_tensor", "per_token"),
                 "activation_dtype": ("uint8", "int8"),
                 "bias": ("float32", "int32", "int8"), "attention": ("int8", "float32")}
OBSERVERS = ("minmax", "moving_average", "percentile", "token_percentile", "histogram", "mse", "entropy")


@dataclass(frozen=True)
class Scheme:
    """How numbers become codes. The default is the production form: int8 symmetric weights with a scale per output channel,
    uint8 affine activations with parameters per token (dynamic) or per tensor (static), int32 bias at x_scale * w_scale.

    weight_granularity: "per_tensor", "per_channel", or "per_group" with `group_size` (a multiple of 4; weight-only).
    activation_granularity: "per_token" or "per_tensor", for dynamic; static is always per tensor. Dynamic per tensor takes one
    range for all tokens of a call, so that there alone a result depends on what else is in the batch.
    bias: "int32" where the activation's scale is known beforehand (static) and float32 elsewhere; "int8" with its own affine
    parameters; or "float32".
    attention: "int8": scores and their products with values too, where queries, keys and values are all dynamic (int8 symmetric, a
    scale per token and head) or all static; or "float32". Raises CqError for anything else.
    """
    weight_symmetric: bool = True
    weight_granularity: str = "per_channel"
    group_size: int | None = None
    activation_dtype: str = "uint8"
    activation_symmetric: bool = False
    activation_granularity: str = "per_token"
    bias: str = "int32"
    attention: str = "int8"

    def __post_init__(self):
        for name, choices in GRANULARITIES.items():
            if getattr(self, name) not in choices:
                raise CqError(f"Scheme: {name} must be one of {', '.join(choices)}; got {getattr(self, name)!r}")
        for name in ("weight_symmetric", "activation_symmetric"):
            if type(getattr(self, name)) is not bool:
                raise CqError(f"Scheme: {name} must be True or False, got {getattr(self, name)!r}")
        if self.activation_symmetric and self.activation_dtype != "int8":
            raise CqError("Scheme: symmetric activations need activation_dtype='int8'")
        grouped = self.weight_granularity == "per_group"
        if grouped != (self.group_size is not None):
            raise CqError("Scheme: give group_size with weight_granularity='per_group', and only then; "
                          f"got {self.group_size!r} with {self.weight_granularity!r}")
        if grouped and (type(self.group_size) is not int or self.group_size < 4 or self.group_size % 4):
            raise CqError(f"Scheme: group_size must be a positive multiple of 4, got {self.group_size!r}")

    @classmethod
    def textbook(cls) -> "Scheme":
        """The form that the literature teaches first: int8 affine per-tensor for weights, bias and activations."""
        return cls(weight_symmetric=False, weight_granularity="per_tensor", activation_dtype="int8",
                   activation_granularity="per_tensor", bias="int8")


@dataclass(frozen=True)
class _Strategy:
    scheme: Scheme = Scheme()
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()

    name = ""

    def __post_init__(self):
        if not isinstance(self.scheme, Scheme):
            raise CqError(f"{type(self).__name__}: scheme must be a cq.Scheme, got {type(self.scheme).__name__}")
        for field in ("include", "exclude"):
            patterns = getattr(self, field)
            several = isinstance(patterns, Iterable) and not isinstance(patterns, str)
            patterns = tuple(patterns) if several else (patterns,)
            if not all(isinstance(pattern, str) for pattern in patterns):
                raise CqError(f"{type(self).__name__}: {field} must hold name patterns such as 'layers.*.ffn.*', "
                              f"got {patterns!r}")
            object.__setattr__(self, field, patterns)
        if self.scheme.group_size and not isinstance(self, WeightOnly):
            raise CqError(f"{type(self).__name__}: integer products take one scale per output channel; "
                          "per_group is for WeightOnly")

    def to_dict(self) -> dict:
        return {"name": self.name} | asdict(self)


@dataclass(frozen=True)
class WeightOnly(_Strategy):
    """Parameters stored in int8, dequantized on the fly; matmuls in float32.

    include, exclude: patterns of layer names (`*` matches anything); a layer is quantized where it matches an `include` and
    no `exclude`. Names: "embed.word", "layers.0.attention.query", "layers.0.ffn.down", "head" ..."""
    name = "weight-only"


@dataclass(frozen=True)
class Dynamic(_Strategy):
    """Activations quantized on the fly from their exact values; matmuls in int8. Arguments as WeightOnly."""
    name = "dynamic"


@dataclass(frozen=True)
class Static(_Strategy):
    """Activation scales fixed beforehand by calibration; layers hand int8 to each other. Arguments as WeightOnly, and

    observer: how a range is found from samples, in the words of cq.observers.make: "minmax", "moving_average", "percentile" (of
    elements), "token_percentile", "histogram" (least error in a norm that spares outliers), "mse" (least squared error) or
    "entropy"; with a setting as in "percentile:99.9".
    residual: "float32", or "int8": the residual stream in codes too, so that nothing between layers is float32."""
    observer: str = "mse"
    residual: str = "float32"

    name = "static"

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.observer, str) or self.observer.partition(":")[0] not in OBSERVERS:
            raise CqError(f"Static: observer must be one of {', '.join(OBSERVERS)}; got {self.observer!r}")
        if self.residual not in ("float32", "int8"):
            raise CqError(f"Static: residual must be 'float32' or 'int8'; got {self.residual!r}")


STRATEGIES = {strategy.name: strategy for strategy in (WeightOnly, Dynamic, Static)}


def from_dict(values: dict):
    """The inverse of `to_dict`. Raises CqError for anything that is not a strategy."""
    values = dict(values)
    kind = STRATEGIES.get(values.pop("name", None))
    known = {field.name for field in fields(kind)} if kind else set()
    scheme = values.get("scheme")
    if kind is None or set(values) != known or not isinstance(scheme, dict) \
            or set(scheme) - {field.name for field in fields(Scheme)}:
        raise CqError(f"strategy: not a record of one of {', '.join(STRATEGIES)}")
    values["scheme"] = Scheme(**scheme)
    return kind(**values)
