"""cq's own checkpoint: one safetensors file with codes, scales and float32 rest, and a record in its metadata of the
configuration, the strategy and each layer's form. Knows no strategy's meaning."""
import json
import math

import numpy as np
from tokenizers import Tokenizer

from .. import _core, strategies
from ..errors import CqError, FormatError
from ..model import Config, Transformer
from ..model.activation import Fixed, form_from_list
from ..model.linear import Linear, QuantizedLinear, check_depth
from ..qtensor import QTensor
from .names import check_finite
from .tensors import write_safetensors

KEY, VERSION = "cq", 1
TOKENIZER = "tokenizer.json"  # the name of the tensor of bytes that holds it


def save_checkpoint(model: Transformer, path) -> None:
    """Writes `path` whole or not at all. Raises OSError."""
    tensors, layers = _float_tensors(model), {}
    for name, layer in model.linears():
        layers[name] = _put_linear(tensors, name, layer, shared="embed.word" if model.config.tied else None)
    word, head = model.embedding.word, model.head
    shared = head is not None and isinstance(head, QuantizedLinear) and word is head.weight
    if isinstance(word, _core.Weight) and not shared:
        _put_weight(tensors, "embed.word", word)
    record = {
        "version": VERSION, "config": model.config.to_dict(), "strategy": model.strategy and model.strategy.to_dict(),
        "layers": layers, "word": "head" if shared else "int8" if isinstance(word, _core.Weight) else "float32",
        "reason": model.embedding.reason,
        "attention": [block.attention.forms for block in model.blocks], "ffn": [block.ffn.forms for block in model.blocks],
    }
    if model.tokenizer is not None:
        tensors[TOKENIZER] = np.frombuffer(model.tokenizer.to_str().encode(), np.uint8)
    write_safetensors(path, tensors, {KEY: json.dumps(record)})


def _float_tensors(model: Transformer) -> dict[str, np.ndarray]:
    """What stays float32 outside the linear layers, by canonical name."""
    embedding = model.embedding
    named = {"embed.position": embedding.position, "embed.type": embedding.type}
    if not isinstance(embedding.word, _core.Weight):
        named["embed.word"] = embedding.word
    for name, norm in model.norms():
        named |= {name + ".weight": norm.weight, name + ".bias": norm.bias}
    return {name: array for name, array in named.items() if array is not None}


def _put_linear(tensors: dict, name: str, layer: Linear | QuantizedLinear, shared: str | None) -> dict:
    bias = layer.bias
    if isinstance(bias, QTensor):
        tensors |= {f"{name}.bias": bias.data, f"{name}.bias.scale": bias.scale[None],
                    f"{name}.bias.zero_point": bias.zero_point[None]}
    elif bias is not None:
        tensors[f"{name}.bias"] = bias
    if isinstance(layer, Linear):
        if not (name == "head" and shared):
            tensors[f"{name}.weight"] = layer.weight
        return {"runs_in": layer.runs_in, "reason": layer.reason}
    _put_weight(tensors, name, layer.weight)
    return {"runs_in": layer.runs_in, "input": layer.input_form, "group_size": layer.weight.group_size}


def _put_weight(tensors: dict, name: str, weight: _core.Weight) -> None:
    tensors |= {f"{name}.weight": weight.unpack(), f"{name}.scale": weight.scales}
    if weight.zero_points is not None:
        tensors[f"{name}.zero_point"] = weight.zero_points


def load_checkpoint(tensors: dict[str, np.ndarray], metadata: dict[str, str], where: str) -> Transformer:
    """The model that `save_checkpoint` wrote, from the tensors and metadata of its file. Raises FormatError."""
    try:
        return _Reader(tensors, json.loads(metadata[KEY]), where).model()
    except FormatError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError) as error:
        raise FormatError(f"{where}: not a whole cq checkpoint ({type(error).__name__}: {error})") from None


class _Reader:
    """Takes a checkpoint apart, checking each piece before it is used."""

    def __init__(self, tensors: dict[str, np.ndarray], record: dict, where: str):
        self.tensors, self.record, self.where = dict(tensors), record, where

    def model(self) -> Transformer:
        record = self.record
        if record["version"] != VERSION:
            raise FormatError(f"{self.where}: cq checkpoint of version {record['version']!r}, this cq reads {VERSION}")
        config = Config.from_dict(record["config"])
        if config.num_layers > len(self.tensors):
            raise FormatError(f"{self.where}: {config.num_layers} layers, but only {len(self.tensors)} tensors")
        strategy = strategies.from_dict(record["strategy"]) if record["strategy"] else None
        tokenizer = self._tokenizer()
        model = Transformer(config, self._float_weights(config), tokenizer)
        model.strategy = strategy
        for owner, attribute, name in list(model.linear_places()):
            setattr(owner, attribute, self._linear(name, getattr(owner, attribute)))
        word = model.embedding
        word.reason = str(record["reason"])
        if record["word"] == "head":
            word.word = model.head.weight
        elif record["word"] == "int8":
            word.word = self._weight("embed.word", word.shape, 0)
        self._join(model)
        if self.tensors:
            raise FormatError(f"{self.where}: tensors that no layer reads: {', '.join(sorted(self.tensors)[:5])}")
        return model

    def _take(self, name: str, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
        if name not in self.tensors:
            raise FormatError(f"{self.where}: no tensor {name!r}")
        array = self.tensors.pop(name)
        if array.dtype != dtype or array.shape != shape:
            raise FormatError(f"{self.where}: {name}: got {array.dtype} of shape {array.shape}, wanted {dtype} of {shape}")
        if array.dtype == np.float32:
            check_finite(array, name, self.where)
        return array

    def _tokenizer(self) -> Tokenizer | None:
        if TOKENIZER not in self.tensors:
            return None
        raw = self.tensors.pop(TOKENIZER)
        try:
            return Tokenizer.from_str(raw.astype(np.uint8).tobytes().decode())
        except Exception as error:  # the tokenizers library raises plain Exception
            raise FormatError(f"{self.where}: {TOKENIZER}: not a tokenizer ({error})") from None

    def _float_weights(self, config: Config) -> dict[str, np.ndarray]:
        """What the model's constructor wants: float32 where it is so, shapes without memory where codes will come."""
        record = self.record
        in_codes = {f"{name}.weight" for name, layer in record["layers"].items() if layer["runs_in"] != "float32"}
        if record["word"] != "float32":
            in_codes.add("embed.word")
        weights = {}
        for name, shape in config.shapes().items():
            weights[name] = np.broadcast_to(np.float32(0), shape) if name in in_codes else self._take(name, "float32", shape)
        for name in [name for name in self.tensors if name.endswith(".bias") and self.tensors[name].dtype == np.float32]:
            module = name.removesuffix(".bias")
            if module + ".weight" in weights:
                weights[name] = self._take(name, "float32", (weights[module + ".weight"].shape[0],))
            elif module == "head" and config.tied:
                weights[name] = self._take(name, "float32", (config.vocab_size,))
        return weights

    def _linear(self, name: str, layer: Linear) -> Linear | QuantizedLinear:
        entry = self.record["layers"][name]
        if entry["runs_in"] == "float32":
            layer.reason = str(entry["reason"])
            return layer
        form = form_from_list(entry["input"])
        if entry["runs_in"] not in strategies.STRATEGIES or (form is None) != (entry["runs_in"] == "weight-only"):
            raise FormatError(f"{self.where}: {name} runs in {entry['runs_in']!r} with input {form!r}")
        weight = self._weight(name, layer.shape, entry["group_size"])
        if form is not None and weight.group_size != weight.k:
            raise FormatError(f"{self.where}: {name}: integer products with grouped scales")
        return QuantizedLinear(weight, self._bias(name, layer), layer.activation, self._form(form, name), entry["runs_in"])

    def _weight(self, name: str, shape: tuple[int, int], group_size: int) -> _core.Weight:
        k, n = shape
        if type(group_size) is not int or group_size < 0 or (0 < group_size < k and group_size % 4) or k > _core.MAX_K:
            raise FormatError(f"{self.where}: {name}: {k} inputs in groups of {group_size!r}")
        groups = math.ceil(k / group_size) if group_size else 1
        codes = self._take(f"{name}.weight", "int8", (k, n))
        scales = self._take(f"{name}.scale", "float32", (groups, n))
        if scales.min() < np.finfo(np.float32).tiny:
            raise FormatError(f"{self.where}: {name}.scale: not positive")
        zero_points = None
        if f"{name}.zero_point" in self.tensors:
            zero_points = self._take(f"{name}.zero_point", "int32", (groups, n))
            if zero_points.min() < -128 or zero_points.max() > 127:
                raise FormatError(f"{self.where}: {name}.zero_point: outside -128 … 127")
            check_depth(k, zero_points)
        return _core.pack(codes, zero_points, scales, group_size)

    def _bias(self, name: str, layer: Linear) -> np.ndarray | QTensor | None:
        if layer.bias is not None or f"{name}.bias" not in self.tensors:
            return layer.bias  # float32, read already
        kind, outputs = self.tensors[f"{name}.bias"].dtype.name, (layer.shape[1],)
        if kind == "int32":
            return self._take(f"{name}.bias", kind, outputs)
        scale = self._take(f"{name}.bias.scale", "float32", (1,))[0]
        return QTensor(self._take(f"{name}.bias", "int8", outputs), scale, self._take(f"{name}.bias.zero_point", "int32", (1,))[0])

    def _form(self, form, name: str):
        if form is None:
            return None
        good = form.dtype in ("int8", "uint8") and type(form.symmetric) is bool
        if isinstance(form, Fixed):
            low, high = (-128, 127) if form.dtype == "int8" else (0, 255)
            good = good and type(form.scale) is float and np.finfo(np.float32).tiny <= form.scale <= np.finfo(np.float32).max \
                and type(form.zero_point) is int and low <= form.zero_point <= high
        if not good:
            raise FormatError(f"{self.where}: {name}: {form!r} is no form of codes")
        return form

    def _join(self, model: Transformer) -> None:
        """The forms between static neighbours."""
        for i, block in enumerate(model.blocks):
            for part, count in (("attention", 3), ("ffn", 2)):
                forms = self.record[part][i]
                if forms is None:
                    continue
                forms = tuple(self._form(form_from_list(form), f"{block.name}.{part}") for form in forms)
                if len(forms) != count or not all(isinstance(form, Fixed) for form in forms):
                    raise FormatError(f"{self.where}: {block.name}.{part}: {forms!r} are no static forms")
                getattr(block, part).forms = forms
