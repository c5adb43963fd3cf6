"""Plan: what a quantized model is made of, apart from its arrays. A strategy makes a plan, convert.py makes layers of
it, a checkpoint stores it (plan_json.py), training runs behind it. Knows neither how plans are found nor files."""

from dataclasses import dataclass, field, replace

import numpy as np

from .model.forms import Fixed, Form, PerHead, Smoothed
from .model.sites import Graph
from .strategies import Strategy


@dataclass(frozen=True)
class WeightCoding:
    """How a weight (outputs, inputs) becomes int8.

    symmetric: zero points are 0 and no code is -128. granularity: what shares a scale: "per_tensor", "per_channel" (an
    output) or "per_group" (`group_size` neighbouring inputs of an output). learned: scale and zero point, float32 and
    int32 of one shape, () or (outputs,), that training found; None: the weight's own extremes give them."""

    symmetric: bool = True
    granularity: str = "per_channel"
    group_size: int | None = None
    learned: tuple[np.ndarray, np.ndarray] | None = field(default=None, compare=False)


@dataclass(frozen=True, eq=False)
class Fold:
    """What a layer takes in of its input's codes. factor: multiplies each input's weights (inputs,), or None. offset:
    is added to the bias (outputs,), float64."""

    factor: np.ndarray | None
    offset: np.ndarray

    def weight(self, weight: np.ndarray) -> np.ndarray:
        """weight (outputs, inputs) float32 with its inputs' factors in it."""
        return scaled(weight, self.factor)

    def bias(self, bias: np.ndarray | None) -> np.ndarray | None:
        """The layer's bias with the offset in it."""
        if not self.offset.any():
            return bias
        return (self.offset if bias is None else bias + self.offset).astype(np.float32)


def scaled(weight: np.ndarray, factor: np.ndarray | None) -> np.ndarray:
    """weight (outputs, inputs) float32 with its inputs' factors (inputs,) in it; None: as it is."""
    return weight if factor is None else (weight * factor).astype(np.float32)


@dataclass(frozen=True)
class LayerPlan:
    """How one linear layer runs.

    runs_in: "float32", "weight-only", "dynamic" or "static". reason: why it stays in float32, "" elsewhere. weight:
    None in float32. bias: "float32", "int8", or "int32", which is float32 where the input's scale is not fixed. input:
    the form that the layer reads; None: float32. fold: what conversion folds in first."""

    runs_in: str
    reason: str = ""
    weight: WeightCoding | None = None
    bias: str = "float32"
    input: Form = None
    fold: Fold | None = None

    @property
    def coding(self) -> WeightCoding:
        """The weight's, of a layer that is not float32."""
        assert self.weight is not None, f"{self.runs_in} layers' weights are not coded"
        return self.weight


@dataclass(frozen=True)
class WordPlan:
    """How the word table is kept. weight: int8 with its own scales, or None. with_head: the table is a tied head's,
    whose codes it shares where `weight` is None, and it is float32 where the head is. reason: why it stays in
    float32."""

    weight: WeightCoding | None = None
    with_head: bool = False
    reason: str = ""

    @property
    def coded(self) -> bool:
        """Whether it is int8."""
        return self.weight is not None or (self.with_head and not self.reason)


QkvForms = tuple[Fixed, Fixed, Fixed | Smoothed]  # of queries, keys and values, where their scales are fixed


@dataclass(frozen=True)
class Plan:
    """strategy: the user's choice that made it. layers: name → LayerPlan, of every linear layer in the order of work.
    attention: block → the forms in which its attention computes; a block that is not there computes in float32.
    residual: the form of the residual stream where it begins and after each part, two for a block; (): float32."""

    strategy: Strategy | None
    layers: dict[str, LayerPlan]
    word: WordPlan
    attention: dict[str, QkvForms | PerHead] = field(default_factory=dict)
    residual: tuple[Fixed | None, ...] = ()

    @classmethod
    def float32(cls, graph: Graph) -> "Plan":
        """Everything in float32."""
        return cls(None, dict.fromkeys(graph.reads, LayerPlan("float32")), WordPlan())

    def coded(self, layer: str) -> bool:
        """Whether the layer's weight becomes int8."""
        return self.layers[layer].runs_in != "float32"

    def sites(self, graph: Graph) -> dict[str, Form | PerHead]:
        """Site of the trunk → form, where activations become codes, in the order of work: what layers read in codes,
        and queries, keys and values where attention computes in int8."""
        read: dict[str, Form | PerHead] = {}
        for site in graph.trunk:
            forms = [self.layers[name].input for name in site.readers if self.layers[name].input is not None]
            read |= {site.name: forms[0]} if forms else {}
        found: dict[str, Form | PerHead] = {name: read.pop(name) for name in ("embed.input",) if name in read}
        for block in graph.blocks:
            inside = self.attention.get(block.name)
            for name in block.sites:
                found |= {name: read.pop(name)} if name in read else {}
            if inside is not None:
                found |= dict(
                    zip(block.attention.projections, (inside,) * 3 if isinstance(inside, PerHead) else inside)
                )
        return found | read

    def settled(self, fell_back: dict[str, str], attention: dict[str, QkvForms | PerHead]) -> "Plan":
        """The plan of what conversion made: without learned scales and folds, which are in the arrays now, with the
        weights that had to stay in float32 (name → reason), and with the blocks whose attention is in int8."""
        layers = {}
        for name, layer in self.layers.items():
            if name in fell_back:
                layers[name] = LayerPlan("float32", fell_back[name])
            else:
                weight = layer.weight and replace(layer.weight, learned=None)
                layers[name] = replace(layer, weight=weight, fold=None)
        word = self.word
        if "embed.word" in fell_back:
            word = WordPlan(None, word.with_head, fell_back["embed.word"])
        return replace(self, layers=layers, word=word, attention=attention)
