"""convert(model, plan) → a model with its layers as the plan says. The only file that makes quantized layers and joins
what passes between them, for models that are quantized and for those that come back from a checkpoint."""

import copy
from collections.abc import Callable
from typing import Protocol

import numpy as np

from . import affine
from .coding import pack_weight, quantize_bias, quantize_weight
from .errors import CqError, UnsupportedError
from .model import Transformer
from .model.attention import MAX_KEYS
from .model.block import share
from .model.deferred import Deferred, read
from .model.linear import Linear, QuantizedLinear
from .model.overflow import check_attention
from .plan import LayerPlan, Plan, WeightCoding
from .qtensor import QTensor
from .weights import Weight

Progress = Callable[[int, int | None], None]


class Codes(Protocol):
    """Where the codes of weights and biases come from. Each raises UnsupportedError where int8 cannot hold them."""

    def weight(self, name: str, layer: Linear, plan: LayerPlan) -> Weight:
        """Packed (inputs, outputs)."""

    def bias(self, name: str, layer: Linear, plan: LayerPlan, weight: Weight) -> np.ndarray | QTensor | None:
        """float32 (outputs,), int32 codes at the input's scale times the weight's, or int8 with its own parameters."""

    def word(self, table: np.ndarray | Deferred, coding: WeightCoding) -> Weight:
        """The word table, packed (hidden, vocabulary)."""


class FloatCodes:
    """Made of the model's float32 weights, which are read one at a time and not kept."""

    def weight(self, name: str, layer: Linear, plan: LayerPlan) -> Weight:
        weight = layer.weight if plan.fold is None else plan.fold.weight(layer.weight)
        return _packed(name, weight, plan.coding)

    def bias(self, name: str, layer: Linear, plan: LayerPlan, weight: Weight) -> np.ndarray | QTensor | None:
        if layer.bias is not None:
            affine.check_finite(layer.bias, f"{name}.bias")
        bias = layer.bias if plan.fold is None else plan.fold.bias(layer.bias)
        return quantize_bias(bias, plan.bias, plan.input, weight)

    def word(self, table: np.ndarray | Deferred, coding: WeightCoding) -> Weight:
        return _packed("embed.word", read(table), coding)


def _packed(name: str, weight: np.ndarray, coding: WeightCoding) -> Weight:
    """The weight (outputs, inputs) in codes, by its own extremes or at learned parameters."""
    try:
        if coding.learned is None:
            return pack_weight(quantize_weight(weight, coding.symmetric, coding.granularity, coding.group_size))
        scale, zero_point = coding.learned
        scales, zero_points = (p[:, None] if p.ndim else p for p in coding.learned)
        codes = affine.quantize(weight, scales, zero_points, "int8")
        codes = np.clip(codes, *affine.code_range("int8", coding.symmetric))
        return pack_weight(QTensor(codes, scale, zero_point, 0 if scale.ndim else None))
    except UnsupportedError:
        raise
    except CqError as error:
        raise CqError(f"{name}: {error}") from None


def convert(
    model: Transformer, plan: Plan, codes: Codes | None = None, progress: Progress | None = None, strict: bool = False
) -> Transformer:
    """A new model by `plan`; `model` (float32) is not changed, and float32 parts are shared with it.

    codes: where codes come from. None: from the model's own weights, and a layer that int8 cannot hold stays in float32
    with the reason, unless `strict`, or unless its input's codes need what the plan folds into it. Given: as they are.
    progress(done, total) is called as layers are converted. Raises UnsupportedError for a layer that int8 cannot hold
    where it must, CqError for weights that are not finite."""
    made, result = codes or FloatCodes(), _copied(model)
    shared: dict[tuple[int, LayerPlan], Linear | QuantizedLinear] = {}  # of a layer that several blocks share
    fell_back: dict[str, str] = {}  # name of the weight → why
    places = list(result.linear_places())
    for done, (owner, attribute, name) in enumerate(places, 1):
        layer, wanted = getattr(owner, attribute), plan.layers[name]
        try:
            converted = shared.get((id(layer), wanted)) or _linear(name, layer, wanted, made)
        except UnsupportedError as error:
            if codes is not None:
                raise UnsupportedError(f"{name}: {error}") from None
            if plan.layers[name].fold is not None:
                raise UnsupportedError(f"{name}: {error}; or use smooth=False and correct_bias=False") from None
            fell_back[name] = str(error)
            converted = Linear(layer.source, layer.bias, layer.activation, str(error))
        setattr(owner, attribute, converted)
        if wanted.fold is None and (wanted.weight is None or wanted.weight.learned is None):
            shared[id(layer), wanted] = converted
        if progress is not None:
            progress(done, len(places))
    _join(result, plan)
    _convert_word(result, plan, made, fell_back)
    if strict and fell_back:
        names = ["embed.word", *(name for *_, name in places)]
        found = [f"{name}: {fell_back[name]}" for name in names if name in fell_back]
        raise UnsupportedError(f"strict: {len(found)} of {len(names)} weights cannot be int8: " + "; ".join(found))
    attention = {block.name: block.attention.forms for block in result.blocks if block.attention.forms is not None}
    result.plan = plan.settled(fell_back, attention)
    return result


def _copied(model: Transformer) -> Transformer:
    """The same layers in a structure of its own, where they can be replaced."""
    result = copy.copy(model)
    result.embedding = copy.copy(model.embedding)
    result.blocks = []
    for block in model.blocks:
        block = copy.copy(block)
        block.attention, block.ffn = copy.copy(block.attention), copy.copy(block.ffn)
        result.blocks.append(block)
    result.classifier, result.transform = copy.copy(model.classifier), copy.copy(model.transform)
    return result


def _linear(name: str, layer: Linear, plan: LayerPlan, codes: Codes) -> Linear | QuantizedLinear:
    if plan.runs_in == "float32":
        return Linear(layer.source, layer.bias, layer.activation, plan.reason)
    weight = codes.weight(name, layer, plan)
    bias = codes.bias(name, layer, plan, weight)
    return QuantizedLinear(weight, bias, layer.activation, plan.input, plan.runs_in)


def _join(model: Transformer, plan: Plan) -> None:
    """Where neighbours are in int8, what flows between them is too."""
    for block in model.blocks:
        attention = block.attention
        kinds = {layer.runs_in for layer in (attention.query, attention.key, attention.value)}
        attention.forms = plan.attention.get(block.name) if len(kinds) == 1 and "float32" not in kinds else None
        if attention.forms is not None:
            try:
                check_attention(attention.forms, attention.dim, min(model.config.max_positions, MAX_KEYS))
            except UnsupportedError as error:
                raise UnsupportedError(f"{block.name}.attention: {error}") from None
    share(model.blocks)
    if plan.residual:
        model.embedding.stream, *forms = plan.residual
        for block, after_attention, after_ffn in zip(model.blocks, forms[::2], forms[1::2]):
            block.streams = after_attention, after_ffn


def _convert_word(model: Transformer, plan: Plan, codes: Codes, fell_back: dict[str, str]) -> None:
    """The word table: a tied head's own codes, int8 with its own, or float32."""
    word, head, chosen = model.embedding, model.head, plan.word
    word.reason = chosen.reason
    if chosen.with_head and not word.reason and isinstance(head, Linear):
        word.reason = head.reason
        if "head" in fell_back:
            fell_back["embed.word"] = word.reason
    elif chosen.weight is not None:
        assert not isinstance(word.source, Weight), "what is converted is float32"
        try:
            word.source = codes.word(word.source, chosen.weight)
        except UnsupportedError as error:
            word.reason = fell_back["embed.word"] = str(error)
    elif chosen.coded and isinstance(head, QuantizedLinear):
        word.source = head.weight
