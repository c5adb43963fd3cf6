"""The choices that a user makes when quantizing or training: frozen records that hold them and nothing else. Knows no
arrays."""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from fnmatch import fnmatchcase

from .errors import CqError

GRANULARITIES = {
    "weight_granularity": ("per_tensor", "per_channel", "per_group"),
    "activation_granularity": ("per_tensor", "per_token"),
    "activation_dtype": ("uint8", "int8"),
    "bias": ("float32", "int32", "int8"),
    "attention": ("int8", "float32"),
}
OBSERVERS = ("minmax", "moving_average", "percentile", "token_percentile", "histogram", "mse", "entropy")
LOSSES = ("distillation", "next_token", "pairs")
RANGES = ("moving_average", "learned")
EFFORTS = (None, "fast", "best")
_LATER = frozenset(("effort", "stretch"))  # fields that records of before lack, and those of now where they say nothing


@dataclass(frozen=True)
class Scheme:
    """How numbers become codes. The default is the production form.

    Args:
        weight_symmetric: Whether weights are symmetric (zero point 0, codes -127 to 127) or affine.
        weight_granularity: "per_channel", a scale for each output channel; "per_tensor"; or "per_group", a scale for
            each `group_size` neighbouring inputs of an output channel, for `WeightOnly`.
        group_size: A multiple of 4, with "per_group" and only then.
        activation_dtype: "uint8" or "int8".
        activation_symmetric: Whether activations are symmetric; needs "int8".
        activation_granularity: For `Dynamic`: "per_token", or "per_tensor", one range for all tokens of a call, so that
            there a result depends on what else is in the batch. `Static` is always per tensor.
        bias: "int32" at the scale of the sums where the activations' scale is known beforehand (static) and float32
            elsewhere; "int8" with parameters of its own; or "float32".
        attention: "int8", where queries, keys and values are all dynamic or all static; or "float32".

    Raises:
        CqError: A choice is none of these, or two do not go together.
    """

    weight_symmetric: bool = True
    weight_granularity: str = "per_channel"
    group_size: int | None = None
    activation_dtype: str = "uint8"
    activation_symmetric: bool = False
    activation_granularity: str = "per_token"
    bias: str = "int32"
    attention: str = "int8"

    def __post_init__(self) -> None:
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
            raise CqError(
                "Scheme: give group_size with weight_granularity='per_group', and only then; "
                f"got {self.group_size!r} with {self.weight_granularity!r}"
            )
        if grouped and (type(self.group_size) is not int or self.group_size < 4 or self.group_size % 4):
            raise CqError(f"Scheme: group_size must be a positive multiple of 4, got {self.group_size!r}")

    @classmethod
    def textbook(cls) -> "Scheme":
        """The form that the literature teaches first: int8, affine and per tensor for weights, bias and activations."""
        return cls(
            weight_symmetric=False,
            weight_granularity="per_tensor",
            activation_dtype="int8",
            activation_granularity="per_tensor",
            bias="int8",
        )


@dataclass(frozen=True)
class _Strategy:
    scheme: Scheme = Scheme()
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    effort: str | None = field(default=None, kw_only=True)

    name = ""

    def __post_init__(self) -> None:
        if not isinstance(self.scheme, Scheme):
            raise CqError(f"{type(self).__name__}: scheme must be a cq.Scheme, got {type(self.scheme).__name__}")
        if self.effort not in EFFORTS:
            raise CqError(f"{type(self).__name__}: effort must be 'fast', 'best' or None, got {self.effort!r}")
        for name in ("include", "exclude"):
            patterns = getattr(self, name)
            several = isinstance(patterns, Iterable) and not isinstance(patterns, str)
            patterns = tuple(patterns) if several else (patterns,)
            if not all(isinstance(pattern, str) for pattern in patterns):
                raise CqError(
                    f"{type(self).__name__}: {name} must hold name patterns such as 'layers.*.ffn.*', got {patterns!r}"
                )
            object.__setattr__(self, name, patterns)
        if self.scheme.group_size and not isinstance(self, WeightOnly):
            raise CqError(
                f"{type(self).__name__}: integer products take one scale per output channel; "
                "per_group is for WeightOnly"
            )

    def to_dict(self) -> dict:
        values = asdict(self)
        silent = {one.name for one in fields(self) if one.name in _LATER and values[one.name] == one.default}
        return {"name": self.name} | {name: value for name, value in values.items() if name not in silent}


@dataclass(frozen=True)
class WeightOnly(_Strategy):
    """Weights are stored in int8 and dequantized on the fly; matmuls run in float32.

    Args:
        scheme: How numbers become codes.
        include: Patterns of layer names, in which `*` matches anything. A layer is quantized if it matches one of these
            and none of `exclude`. Names are "embed.word", "layers.0.attention.query", "layers.0.ffn.down", "head" and
            so on.
        exclude: Patterns of layers that stay in float32.
        effort: "fast" takes the model's weights as they are. "best" prepares the model on the samples first: a decoder
            is rotated (`cq.rotate`), and weights are rounded so that they compensate each other's errors
            (`cq.compensate`). That takes minutes. Where activations are quantized the rotation is online and costs up
            to 5 % of a decoder's time; all else costs nothing at inference. What `forward` gives of a decoder is then
            rotated too. None: "best" where samples are given to a strategy that needs none itself, else "fast".

    Raises:
        CqError: A choice is none of these.
    """

    name = "weight-only"


@dataclass(frozen=True)
class Dynamic(_Strategy):
    """Activations are quantized on the fly from their exact values; matmuls run in int8. Arguments: `WeightOnly`'s."""

    name = "dynamic"


@dataclass(frozen=True)
class Static(_Strategy):
    """Activation scales are fixed beforehand by calibration; layers hand int8 codes to each other.

    Arguments as for `WeightOnly`, whose effort="best" turns on `stretch` as well, and these.

    Args:
        observer: How a range is found from the samples, by the names of `cq.observers.make`: "minmax",
            "moving_average", "percentile", "token_percentile", "histogram", "mse" or "entropy", with a setting as in
            "percentile:99.9".
        residual: "float32", or "int8": the residual stream in codes too, so that nothing between layers is float32.
        smooth: Whether the features of a site get scales and shifts of their own, which fold into the weights and
            biases that read them (SmoothQuant, arXiv:2211.10438; Outlier Suppression+, arXiv:2304.09145). The strength
            is searched for each site; a site where it does not lessen the error stays as it is. Costs nothing at
            inference. Needs symmetric weights per channel.
        correct_bias: Whether each bias takes back its layer's mean error on the samples. Costs nothing at inference.
            Needs symmetric weights per channel.
        stretch: Whether a token that passes a site's range has its scales multiplied by the power of two that holds it,
            where that lessens the error. For decoders, in which a few tokens are far larger than all others. Such sites
            are as fast as dynamic's.

    Raises:
        CqError: A choice is none of these.
    """

    observer: str = "mse"
    residual: str = "float32"
    smooth: bool = True
    correct_bias: bool = True
    stretch: bool = False

    name = "static"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.observer, str) or self.observer.partition(":")[0] not in OBSERVERS:
            raise CqError(f"Static: observer must be one of {', '.join(OBSERVERS)}; got {self.observer!r}")
        if self.residual not in ("float32", "int8"):
            raise CqError(f"Static: residual must be 'float32' or 'int8'; got {self.residual!r}")
        for name in ("smooth", "correct_bias", "stretch"):
            if type(getattr(self, name)) is not bool:
                raise CqError(f"Static: {name} must be True or False, got {getattr(self, name)!r}")


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a float32 model is trained: AdamW (arXiv:1711.05101) with a linear warm-up and a cosine decay to 0.

    Args:
        steps: Number of optimizer steps.
        batch_size: Number of samples in a pass.
        accumulate: Number of passes in a step; their gradients are averaged. Smaller passes take less memory.
        learning_rate: Peak learning rate, reached after `warmup` steps.
        warmup: Number of steps of the warm-up.
        weight_decay: Of matrices and tables.
        betas: Adam's two decay rates, each from 0 to below 1.
        clip_norm: Largest norm of the gradient.
        loss: "next_token", cross-entropy of the next token; "distillation" from the float32 model's own outputs,
            without labels: logits where there is a language-model head, else final states and, where the model pools,
            embeddings; or "pairs", the cosine of two texts' embeddings against a score from -1 to 1.
        seed: Random seed of the order of samples.

    Raises:
        CqError: A choice is none of these.
    """

    steps: int = 1000
    batch_size: int = 16
    accumulate: int = 1
    learning_rate: float = 1e-3
    warmup: int = 100
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    clip_norm: float = 1.0
    loss: str = "next_token"
    seed: int = 0

    def __post_init__(self) -> None:
        what = type(self).__name__
        for name, least in (("steps", 1), ("batch_size", 1), ("accumulate", 1), ("warmup", 0), ("seed", 0)):
            value = getattr(self, name)
            if type(value) is not int or not least <= value < 2**31:
                raise CqError(f"{what}: {name} must be a whole number of at least {least}, got {value!r}")
        for name in ("learning_rate", "weight_decay", "clip_norm"):
            value = getattr(self, name)
            zero = value == 0 and name != "weight_decay"
            if type(value) not in (int, float) or not math.isfinite(value) or value < 0 or zero:
                raise CqError(f"{what}: {name} must be a positive number, got {value!r}")
        betas = tuple(self.betas) if isinstance(self.betas, (tuple, list)) else ()
        if len(betas) != 2 or not all(type(beta) is float and 0 <= beta < 1 for beta in betas):
            raise CqError(f"{what}: betas must be two numbers from 0 to below 1, got {self.betas!r}")
        object.__setattr__(self, "betas", betas)
        if self.loss not in LOSSES:
            raise CqError(f"{what}: loss must be one of {', '.join(LOSSES)}; got {self.loss!r}")


@dataclass(frozen=True, kw_only=True)
class QAT(Training):
    """Quantization-aware training (Jacob et al. 2018, arXiv:1712.05877).

    float32 weights learn behind quantize/dequantize pairs at the sites where `target` has int8, and are then converted
    to it. The memory that this takes is as for `cq.train`.

    What the target finds by calibration begins from the first samples, at most 500 and of some 32,768 tokens: static
    ranges, features' own scales, which rest, and, with effort="best", compensated weights, each row of which then moves
    in proportion to its size. With one scale for a weight, channels are equalized first (arXiv:1906.04721).

    Args:
        target: `WeightOnly()`, `Dynamic()` or `Static()`, with its scheme and its choice of layers.
        ranges: For static activations: "learned", together with the weights' scales (LSQ, arXiv:1902.08153), from where
            calibration puts them; or "moving_average" of each batch's extremes.
        freeze: With "moving_average": the step from which on ranges rest. None: half of the steps.
        steps: As for `Training`, and so for the other arguments of `Training`.

    Raises:
        CqError: A choice is none of these, or the target is `Static(residual="int8")`, which cannot be trained.
    """

    target: WeightOnly | Dynamic | Static = Static()
    ranges: str = "learned"
    freeze: int | None = None
    steps: int = 300
    batch_size: int = 32
    learning_rate: float = 4e-5
    warmup: int = 10
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    loss: str = "distillation"

    name = "qat"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.target, (WeightOnly, Dynamic, Static)):
            raise CqError(f"QAT: target must be cq.WeightOnly(), cq.Dynamic() or cq.Static(), got {self.target!r}")
        if isinstance(self.target, Static) and self.target.residual != "float32":
            raise CqError("QAT: it trains with a residual stream in float32; use a target with residual='float32'")
        if self.ranges not in RANGES:
            raise CqError(f"QAT: ranges must be one of {', '.join(RANGES)}; got {self.ranges!r}")
        if self.freeze is not None and (type(self.freeze) is not int or self.freeze < 1):
            raise CqError(f"QAT: freeze must be a positive whole number of steps, got {self.freeze!r}")
        if self.freeze is not None and self.ranges != "moving_average":
            raise CqError("QAT: freeze is for ranges='moving_average'; learned ranges never rest")


@dataclass(frozen=True)
class Mixed:
    """A strategy for each layer (mixed precision). `cq.mix` finds one by measuring.

    Args:
        choices: (pattern, strategy) pairs; the first whose pattern matches a layer's name decides. A strategy is
            `WeightOnly()`, `Dynamic()` or `Static()` without include, exclude and int8 residual, or None for float32. A
            layer that no pattern matches stays in float32.

    Raises:
        CqError: The choices are no such pairs.
    """

    choices: tuple[tuple[str, WeightOnly | Dynamic | Static | None], ...]

    name = "mixed"

    def __post_init__(self) -> None:
        pairs = tuple(self.choices) if isinstance(self.choices, Iterable) and not isinstance(self.choices, str) else ()
        if not pairs or not all(
            isinstance(pair, (tuple, list))
            and len(pair) == 2
            and isinstance(pair[0], str)
            and (pair[1] is None or isinstance(pair[1], (WeightOnly, Dynamic, Static)))
            for pair in pairs
        ):
            raise CqError(
                "Mixed: choices must be pairs of a name pattern and a strategy or None, such as "
                f"(('layers.0.*', cq.Dynamic()), ('*', cq.Static())); got {self.choices!r}"
            )
        for pattern, strategy in pairs:
            if strategy is not None and (strategy.include, strategy.exclude) != (("*",), ()):
                raise CqError(
                    f"Mixed: {pattern!r}: include and exclude do not work in a mix, whose patterns say where a "
                    "strategy applies; leave them out"
                )
            if strategy is not None and strategy.effort == "best":
                raise CqError(
                    f"Mixed: {pattern!r}: a mix takes the model as it is; use cq.rotate and cq.compensate before"
                )
            if isinstance(strategy, Static) and strategy.residual != "float32":
                raise CqError(f"Mixed: {pattern!r}: a mix keeps the residual stream in float32; use residual='float32'")
        object.__setattr__(self, "choices", tuple(map(tuple, pairs)))

    def to_dict(self) -> dict:
        return {"name": self.name, "choices": [[pattern, part and part.to_dict()] for pattern, part in self.choices]}


Single = WeightOnly | Dynamic | Static  # one for all layers that it takes
Strategy = Single | Mixed  # that a quantized model may have; QAT ends in its target's

STRATEGIES: dict[str, type[WeightOnly] | type[Dynamic] | type[Static]] = {
    strategy.name: strategy for strategy in (WeightOnly, Dynamic, Static)
}


def parts(strategy: Strategy | None) -> tuple[Single, ...]:
    """The different strategies by which a model's layers may run: those of a mix, or itself."""
    given = [part for _, part in strategy.choices] if isinstance(strategy, Mixed) else [strategy]
    return tuple(dict.fromkeys(part for part in given if part is not None))


def choice_of(name: str, strategy: Mixed) -> tuple[Single | None, str]:
    """The strategy of a layer in a mix, or why it stays in float32."""
    for pattern, part in strategy.choices:
        if fnmatchcase(name, pattern):
            return part, "" if part else f"float32 by {pattern!r}"
    return None, "matches no pattern of the mix"


def from_dict(values: dict) -> Strategy:
    """The inverse of `to_dict`. Raises CqError for anything that is not a strategy."""
    values = dict(values)
    if values.get("name") == Mixed.name:
        choices = values.get("choices")
        if (
            set(values) != {"name", "choices"}
            or not isinstance(choices, list)
            or not all(
                isinstance(pair, list)
                and len(pair) == 2
                and isinstance(pair[1], (dict, type(None)))
                and (pair[1] or {}).get("name") != Mixed.name
                for pair in choices
            )
        ):
            raise CqError("strategy: not a record of a mix")
        return Mixed(tuple((pattern, None if part is None else _one_from_dict(part)) for pattern, part in choices))
    return _one_from_dict(values)


def _one_from_dict(values: dict) -> Single:
    """As from_dict, of a strategy that is no mix."""
    values = dict(values)
    kind = STRATEGIES.get(values.pop("name", None))
    known = {one.name for one in fields(kind)} if kind else set()
    scheme = values.get("scheme")
    if (
        kind is None
        or not known - _LATER <= set(values) <= known
        or not isinstance(scheme, dict)
        or set(scheme) - {one.name for one in fields(Scheme)}
    ):
        raise CqError(f"strategy: not a record of one of {', '.join(STRATEGIES)}")
    values["scheme"] = Scheme(**scheme)
    return kind(**values)
