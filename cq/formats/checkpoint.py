"""cq's own checkpoint: one safetensors file with codes, scales and float32 rest, and a record in its metadata of the
configuration and the plan. Knows no strategy's meaning."""

import json
import math
import os

import numpy as np
from tokenizers import Tokenizer

from .. import _core
from ..convert import convert
from ..errors import CqError, FormatError, brief
from ..model import Config, Transformer
from ..model.deferred import Deferred, read
from ..model.linear import Linear, QuantizedLinear
from ..plan import LayerPlan, Plan, WeightCoding
from ..plan_json import from_json, to_json
from ..qtensor import QTensor
from ..weights import Weight, pack
from .huggingface import parse_config
from .names import check_finite
from .tensors import write_safetensors
from .tokenizer_files import parse_tokenizer
from .untrusted import parse_json
from .version4 import upgraded

KEY, VERSION = "cq", 5
TOKENIZER = "tokenizer.json"  # the name of the tensor of bytes that holds it


def save_checkpoint(model: Transformer, path: str | os.PathLike) -> None:
    """Writes `path` whole or not at all. Raises OSError."""
    tensors, plan, word = float_tensors(model), None, model.embedding.source
    owners: dict[int, str] = {}  # layer → the first of its names
    for name, layer in model.linears():
        if owners.setdefault(id(layer), name) != name:
            continue
        _put_linear(tensors, name, layer, shared=name == "head" and model.config.tied)
    if isinstance(word, Weight) and (model.head is None or word is not getattr(model.head, "weight", None)):
        _put_weight(tensors, "embed.word", word)
    if model.plan is not None:
        plan, arrays = to_json(model.plan)
        tensors |= arrays
    if model.tokenizer is not None:
        tensors[TOKENIZER] = np.frombuffer(model.tokenizer.to_str().encode(), np.uint8)
    record = {
        "version": VERSION,
        "config": model.config.to_dict(),
        "plan": plan,
        "tensors": sorted(tensors),  # so that a bias that got lost is missed
    }
    shared = {name: owners[id(layer)] for name, layer in model.linears() if owners[id(layer)] != name}
    if shared:
        record["shared"] = shared
    write_safetensors(path, tensors, {KEY: json.dumps(record)})


def float_tensors(model: Transformer) -> dict[str, np.ndarray | Deferred]:
    """What stays float32 outside the linear layers, by canonical name."""
    named: dict[str, np.ndarray | Deferred | None] = dict(model.tables())
    if not isinstance(model.embedding.source, Weight):
        named["embed.word"] = model.embedding.source
    for name, part in (*model.norms(), *model.beside()):
        named |= {name + ".weight": part.weight, name + ".bias": part.bias}
    return {name: array for name, array in named.items() if array is not None}


def _put_linear(tensors: dict, name: str, layer: Linear | QuantizedLinear, shared: bool) -> None:
    """shared: a float32 weight is the word table's."""
    bias = layer.bias
    if isinstance(bias, QTensor):
        tensors |= {
            f"{name}.bias": bias.data,
            f"{name}.bias.scale": bias.scale[None],
            f"{name}.bias.zero_point": bias.zero_point[None],
        }
    elif bias is not None:
        tensors[f"{name}.bias"] = bias
    if isinstance(layer, QuantizedLinear):
        _put_weight(tensors, name, layer.weight)
    elif not shared:
        tensors[f"{name}.weight"] = layer.source


def _put_weight(tensors: dict, name: str, weight: Weight) -> None:
    assert weight.scales is not None, "a model's weights have scales"
    codes, scale = Deferred(weight.shape, "int8", weight.unpack), _narrow(weight.scales)
    tensors |= {f"{name}.weight": codes, f"{name}.scale": scale}
    if weight.zero_points is not None:
        tensors[f"{name}.zero_point"] = _narrow(weight.zero_points)


def _narrow(parameters: np.ndarray) -> np.ndarray:
    """(groups, n) → (groups, 1) where all columns share one value, as per tensor."""
    return parameters[:, :1] if (parameters == parameters[:, :1]).all() else parameters


def load_checkpoint(tensors: dict[str, np.ndarray | Deferred], metadata: dict[str, str], where: str) -> Transformer:
    """The model that `save_checkpoint` wrote, from the tensors and metadata of its file. Raises FormatError."""
    try:
        record = parse_json(metadata[KEY].encode("utf-8", "surrogatepass"), f"{where}: record", dict)
        return _Reader(tensors, where).model(record)
    except FormatError:
        raise
    except CqError as error:
        raise FormatError(f"{where}: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError) as error:
        raise FormatError(f"{where}: not a whole cq checkpoint ({type(error).__name__}: {error})") from None


class _Reader:
    """Takes a checkpoint apart, checking each piece before it is used; the codes that conversion takes."""

    def __init__(self, tensors: dict[str, np.ndarray | Deferred], where: str):
        self.tensors, self.where = dict(tensors), where

    def model(self, record: dict) -> Transformer:
        if record["version"] == 4:
            record = upgraded(record)
        if record["version"] != VERSION:
            raise FormatError(
                f"{self.where}: cq checkpoint of version {brief(record['version'])}, this cq reads 4 and {VERSION}"
            )
        astray = set(record["tensors"]) ^ set(self.tensors)
        if astray:
            raise FormatError(f"{self.where}: tensors missing or too many: {brief(sorted(astray))}")
        config, _ = parse_config(record["config"], f"{self.where}: config")
        if config.num_layers > len(self.tensors):
            raise FormatError(f"{self.where}: {config.num_layers} layers, but only {len(self.tensors)} tensors")
        plan = None if record["plan"] is None else from_json(record["plan"], config, self.taken)
        shared = self._shared(record.get("shared", {}), config)
        model = Transformer(config, self._float_weights(config, plan, shared)).take_tokenizer(self._tokenizer())
        if plan is not None:
            model = convert(model, plan, self)
        if self.tensors:
            raise FormatError(f"{self.where}: tensors that no layer reads: {', '.join(sorted(self.tensors)[:5])}")
        return model

    def taken(self, name: str, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
        """As `take`, read."""
        return read(self.take(name, dtype, shape))

    def take(self, name: str, dtype: str, shape: tuple[int, ...]) -> np.ndarray | Deferred:
        """A tensor, which nobody else takes."""
        if name not in self.tensors:
            raise FormatError(f"{self.where}: no tensor {name!r}")
        array = self.tensors.pop(name)
        if array.dtype != dtype or array.shape != shape:
            raise FormatError(
                f"{self.where}: {name}: got {array.dtype} of shape {array.shape}, wanted {dtype} of {shape}"
            )
        if array.dtype == np.float32:
            check_finite(array, name, self.where)
        return array

    def _wide(self, name: str, dtype: str, shape: tuple[int, int]) -> np.ndarray:
        """The inverse of `_narrow`."""
        groups, n = shape
        narrow = name in self.tensors and self.tensors[name].shape == (groups, 1)
        array = self.taken(name, dtype, (groups, 1) if narrow else shape)
        return np.ascontiguousarray(np.broadcast_to(array, (groups, n)))

    def _tokenizer(self) -> Tokenizer | None:
        if TOKENIZER not in self.tensors:
            return None
        data = self.taken(TOKENIZER, "uint8", (self.tensors[TOKENIZER].size,)).tobytes()
        return parse_tokenizer(data, f"{self.where}: {TOKENIZER}")

    def _shared(self, shared: dict[str, str], config: Config) -> dict[str, str]:
        """Layer → the layer before it, of the same shape, that it is."""
        shapes = config.shapes()
        for name, first in shared.items():
            shape = shapes.get(f"{name}.weight")
            if shape is None or shapes.get(f"{first}.weight") != shape or first in shared:
                raise FormatError(f"{self.where}: {brief(name)} cannot be the layer {brief(first)}")
        return shared

    def _float_weights(
        self, config: Config, plan: Plan | None, shared: dict[str, str]
    ) -> dict[str, np.ndarray | Deferred]:
        """What the model's constructor wants: float32 where it is so, shapes without memory where codes will come."""
        coded = {} if plan is None else {f"{name}.weight": f"{name}.weight" for name in plan.layers if plan.coded(name)}
        if plan is not None and plan.word.coded:
            coded["embed.word"] = "head.weight" if plan.word.weight is None else "embed.word.weight"
        weights: dict[str, np.ndarray | Deferred] = {}
        again = {f"{name}.weight": f"{first}.weight" for name, first in shared.items()}
        for name, shape in config.shapes().items():
            if name in again:
                continue
            there = name in coded
            weights[name] = self._stand_in(coded[name], shape) if there else self.take(name, "float32", shape)
        biases = [name for name, array in self.tensors.items() if name.endswith(".bias") and array.dtype == np.float32]
        for name in biases:
            module = name.removesuffix(".bias")
            if module + ".weight" in weights:
                weights[name] = self.take(name, "float32", (weights[module + ".weight"].shape[0],))
            elif module == "head" and config.tied:
                weights[name] = self.take(name, "float32", (config.vocab_size,))
        for name, first in shared.items():
            for leaf in ("weight", "bias"):
                if f"{first}.{leaf}" in weights:
                    weights[f"{name}.{leaf}"] = weights[f"{first}.{leaf}"]
        return weights

    def _stand_in(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """Before anything is built: the file must hold the codes (inputs, outputs) that the configuration claims."""
        found = self.tensors[name].shape
        if found != shape[::-1]:
            raise FormatError(f"{self.where}: {name}: codes of shape {found}, the configuration asks for {shape[::-1]}")
        return np.broadcast_to(np.float32(0), shape)

    # --- what conversion asks for -------------------------------------------------------------------------------------

    def weight(self, name: str, layer: Linear, plan: LayerPlan) -> Weight:
        """The stored codes, packed."""
        return self._packed(name, layer.shape, plan.coding)

    def word(self, table: np.ndarray | Deferred, coding: WeightCoding) -> Weight:
        """As `weight`, of the word table."""
        words, hidden = table.shape
        return self._packed("embed.word", (hidden, words), coding)

    def _packed(self, name: str, shape: tuple[int, int], coding: WeightCoding) -> Weight:
        k, n = shape
        if k > _core.MAX_K:
            raise FormatError(f"{self.where}: {name}: {k} inputs are more than int32 sums take")
        group_size = coding.group_size or 0
        groups = math.ceil(k / group_size) if group_size else 1
        codes = self.taken(f"{name}.weight", "int8", (k, n))
        scales = self._wide(f"{name}.scale", "float32", (groups, n))
        if scales.min() < np.finfo(np.float32).tiny:
            raise FormatError(f"{self.where}: {name}.scale: not positive")
        zero_points = None
        if f"{name}.zero_point" in self.tensors:
            zero_points = self._wide(f"{name}.zero_point", "int32", (groups, n))
            if zero_points.min() < -128 or zero_points.max() > 127:
                raise FormatError(f"{self.where}: {name}.zero_point: outside -128 … 127")
        return pack(codes, zero_points, scales, group_size)

    def bias(self, name: str, layer: Linear, plan: LayerPlan, weight: Weight) -> np.ndarray | QTensor | None:
        """The stored bias; float32 ones were read with the model."""
        if layer.bias is not None or f"{name}.bias" not in self.tensors:
            return layer.bias
        outputs = layer.shape[1:]
        if self.tensors[f"{name}.bias"].dtype == np.int32:
            codes = self.taken(f"{name}.bias", "int32", outputs)
            if plan.runs_in != "static":
                raise FormatError(f"{self.where}: {name}.bias: int32 without a fixed input scale")
            return codes
        scale = self.taken(f"{name}.bias.scale", "float32", (1,))[0]
        zero_point = self.taken(f"{name}.bias.zero_point", "int32", (1,))[0]
        return QTensor(self.taken(f"{name}.bias", "int8", outputs), scale, zero_point)
