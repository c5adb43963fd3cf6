"""cq's own checkpoint: one safetensors file with codes, scales and float32 rest, and a record in its metadata of the
configuration, the strategy and each layer's form. Knows no strategy's meaning."""

import json
import math

import numpy as np
from tokenizers import Tokenizer

from .. import _core, affine, strategies
from ..errors import FormatError, UnsupportedError
from ..model import Config, Transformer
from ..model.activation import Columns, Fixed, Form, PerHead, PerTensor, PerToken, Smoothed, form_from_list
from ..model.attention import MAX_KEYS, Attention
from ..model.deferred import Deferred, read
from ..model.linear import Linear, QuantizedLinear
from ..model.overflow import check_attention
from ..qtensor import QTensor
from .huggingface import parse_config, parse_tokenizer
from .names import check_finite
from .tensors import write_safetensors
from .untrusted import brief, parse_json

KEY, VERSION = "cq", 4
# what a layer may read
INPUTS = {"weight-only": type(None), "dynamic": (PerToken, PerTensor), "static": (Fixed, Smoothed)}
TOKENIZER = "tokenizer.json"  # the name of the tensor of bytes that holds it


def save_checkpoint(model: Transformer, path) -> None:
    """Writes `path` whole or not at all. Raises OSError."""
    tensors, layers, named = _float_tensors(model), {}, {}  # named: forms that layers share, by the first of them
    for name, layer in model.linears():
        layers[name] = _put_linear(tensors, name, layer, shared="embed.word" if model.config.tied else None)
        layers[name]["input"] = _put_form(tensors, named.setdefault(layer.input_form, name), layer.input_form)
    word, head = model.embedding.source, model.head
    shared = head is not None and isinstance(head, QuantizedLinear) and word is head.weight
    if isinstance(word, _core.Weight) and not shared:
        _put_weight(tensors, "embed.word", word)
    if model.tokenizer is not None:
        tensors[TOKENIZER] = np.frombuffer(model.tokenizer.to_str().encode(), np.uint8)
    record = {
        "version": VERSION,
        "config": model.config.to_dict(),
        "strategy": model.strategy and model.strategy.to_dict(),
        "layers": layers,
        "word": "head" if shared else "int8" if isinstance(word, _core.Weight) else "float32",
        "reason": model.embedding.reason,
        "attention": [_put_forms(tensors, block) for block in model.blocks],
        "streams": [model.embedding.stream, *(form for block in model.blocks for form in block.streams)],
        "tensors": sorted(tensors),  # so that a bias that got lost is missed
    }
    write_safetensors(path, tensors, {KEY: json.dumps(record)})


def _float_tensors(model: Transformer) -> dict[str, np.ndarray | Deferred]:
    """What stays float32 outside the linear layers, by canonical name."""
    embedding = model.embedding
    named = {"embed.position": embedding.position, "embed.type": embedding.type}
    if not isinstance(embedding.source, _core.Weight):
        named["embed.word"] = embedding.source
    for name, norm in model.norms():
        named |= {name + ".weight": norm.weight, name + ".bias": norm.bias}
    return {name: array for name, array in named.items() if array is not None}


def _put_linear(tensors: dict, name: str, layer: Linear | QuantizedLinear, shared: str | None) -> dict:
    bias = layer.bias
    if isinstance(bias, QTensor):
        tensors |= {
            f"{name}.bias": bias.data,
            f"{name}.bias.scale": bias.scale[None],
            f"{name}.bias.zero_point": bias.zero_point[None],
        }
    elif bias is not None:
        tensors[f"{name}.bias"] = bias
    if isinstance(layer, Linear):
        if not (name == "head" and shared):
            tensors[f"{name}.weight"] = layer.source
        return {"runs_in": layer.runs_in, "reason": layer.reason}
    _put_weight(tensors, name, layer.weight)
    return {"runs_in": layer.runs_in, "group_size": layer.weight.group_size}


def _put_form(tensors: dict, name: str, form: Form) -> list | None:
    """The form as a list; features' own parameters go to tensors beside `name`."""
    if not isinstance(form, Smoothed):
        return form
    tensors |= {
        f"{name}.columns.scale": form.columns.scale[0],
        f"{name}.columns.zero_point": form.columns.zero_point[0],
    }
    return [*form[:4], name]


def _put_forms(tensors: dict, block) -> list | None:
    """Of queries, keys and values."""
    forms = block.attention.forms
    return forms and [_put_form(tensors, f"{block.name}.attention.values", form) for form in forms]


def _put_weight(tensors: dict, name: str, weight: _core.Weight) -> None:
    tensors |= {
        f"{name}.weight": Deferred(weight.shape, "int8", weight.unpack),
        f"{name}.scale": _narrow(weight.scales),
    }
    if weight.zero_points is not None:
        tensors[f"{name}.zero_point"] = _narrow(weight.zero_points)


def _narrow(parameters: np.ndarray) -> np.ndarray:
    """(groups, n) → (groups, 1) where all columns share one value, as per tensor."""
    return parameters[:, :1] if (parameters == parameters[:, :1]).all() else parameters


def load_checkpoint(tensors: dict[str, np.ndarray | Deferred], metadata: dict[str, str], where: str) -> Transformer:
    """The model that `save_checkpoint` wrote, from the tensors and metadata of its file. Raises FormatError."""
    try:
        record = parse_json(metadata[KEY].encode("utf-8", "surrogatepass"), f"{where}: record", dict)
        return _Reader(tensors, record, where).model()
    except FormatError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError) as error:
        raise FormatError(f"{where}: not a whole cq checkpoint ({type(error).__name__}: {error})") from None


class _Reader:
    """Takes a checkpoint apart, checking each piece before it is used."""

    def __init__(self, tensors: dict[str, np.ndarray | Deferred], record: dict, where: str):
        self.tensors, self.record, self.where = dict(tensors), record, where
        self.columns: dict[str, Columns] = {}  # by the name that forms give

    def model(self) -> Transformer:
        record = self.record
        if record["version"] != VERSION:
            raise FormatError(f"{self.where}: cq checkpoint of version {record['version']!r}, this cq reads {VERSION}")
        astray = set(record["tensors"]) ^ set(self.tensors)
        if astray:
            raise FormatError(f"{self.where}: tensors missing or too many: {brief(sorted(astray))}")
        config, _ = parse_config(record["config"], f"{self.where}: config")
        if config.num_layers > len(self.tensors):
            raise FormatError(f"{self.where}: {config.num_layers} layers, but only {len(self.tensors)} tensors")
        strategy = None if record["strategy"] is None else strategies.from_dict(record["strategy"])
        model = Transformer(config, self._float_weights(config), self._tokenizer())
        model.strategy = strategy
        kinds = {part.name for part in strategies.parts(strategy)}
        for owner, attribute, name in list(model.linear_places()):
            setattr(owner, attribute, self._linear(name, getattr(owner, attribute), kinds))
        self._word(model)
        self._join(model)
        if self.tensors:
            raise FormatError(f"{self.where}: tensors that no layer reads: {', '.join(sorted(self.tensors)[:5])}")
        return model

    def _take(self, name: str, dtype: str, shape: tuple[int, ...]) -> np.ndarray | Deferred:
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
        return np.ascontiguousarray(
            np.broadcast_to(read(self._take(name, dtype, (groups, 1) if narrow else shape)), (groups, n))
        )

    def _tokenizer(self) -> Tokenizer | None:
        if TOKENIZER not in self.tensors:
            return None
        data = self._take(TOKENIZER, "uint8", (self.tensors[TOKENIZER].size,)).tobytes()
        return parse_tokenizer(data, f"{self.where}: {TOKENIZER}")

    def _float_weights(self, config: Config) -> dict[str, np.ndarray | Deferred]:
        """What the model's constructor wants: float32 where it is so, shapes without memory where codes will come."""
        record = self.record
        names = [f"{name}.weight" for name, layer in record["layers"].items() if layer["runs_in"] != "float32"]
        coded = dict(zip(names, names))
        if record["word"] != "float32":
            coded["embed.word"] = {"head": "head.weight", "int8": "embed.word.weight"}[record["word"]]
        weights = {}
        for name, shape in config.shapes().items():
            weights[name] = self._stand_in(coded[name], shape) if name in coded else self._take(name, "float32", shape)
        for name in [
            name for name in self.tensors if name.endswith(".bias") and self.tensors[name].dtype == np.float32
        ]:
            module = name.removesuffix(".bias")
            if module + ".weight" in weights:
                weights[name] = self._take(name, "float32", (weights[module + ".weight"].shape[0],))
            elif module == "head" and config.tied:
                weights[name] = self._take(name, "float32", (config.vocab_size,))
        return weights

    def _stand_in(self, name: str, shape: tuple[int, int]) -> np.ndarray:
        """Before anything is built: the file must hold the codes (inputs, outputs) that the configuration claims."""
        found = self.tensors[name].shape
        if found != shape[::-1]:
            raise FormatError(f"{self.where}: {name}: codes of shape {found}, the configuration asks for {shape[::-1]}")
        return np.broadcast_to(np.float32(0), shape)

    def _linear(self, name: str, layer: Linear, kinds: set[str]) -> Linear | QuantizedLinear:
        entry = self.record["layers"][name]
        if entry["runs_in"] == "float32":
            layer.reason = str(entry["reason"])
            return layer
        form, kind = self._form(entry["input"], name, layer.shape[0]), entry["runs_in"]
        if kind not in kinds or not isinstance(form, INPUTS[kind]):
            raise FormatError(
                f"{self.where}: {name} runs in {kind!r} on {form!r}, the strategy has {', '.join(sorted(kinds))}"
            )
        weight = self._weight(name, layer.shape, entry["group_size"])
        if form is not None and weight.group_size != weight.k:
            raise FormatError(f"{self.where}: {name}: integer products with grouped scales")
        bias = self._bias(name, layer, form)
        try:
            return QuantizedLinear(weight, bias, layer.activation, form, kind)
        except UnsupportedError as error:
            raise FormatError(f"{self.where}: {name}: {error}") from None

    def _word(self, model: Transformer) -> None:
        kind, word = self.record["word"], model.embedding
        word.reason = str(self.record["reason"])
        if kind != "float32" and (model.strategy is None or model.config.tied and model.head.runs_in == "float32"):
            raise FormatError(f"{self.where}: a word table in codes beside a float32 head, or without a strategy")
        if kind == "int8":
            word.source = self._weight("embed.word", word.shape, 0)
        elif kind == "head":
            if not model.config.tied or model.head.weight.group_size < model.head.weight.k:
                raise FormatError(f"{self.where}: the head's codes cannot serve as word table")
            word.source = model.head.weight

    def _weight(self, name: str, shape: tuple[int, int], group_size: int) -> _core.Weight:
        k, n = shape
        if type(group_size) is not int or group_size < 0 or (0 < group_size < k and group_size % 4) or k > _core.MAX_K:
            raise FormatError(f"{self.where}: {name}: {k} inputs in groups of {group_size!r}")
        groups = math.ceil(k / group_size) if group_size else 1
        codes = self._take(f"{name}.weight", "int8", (k, n))
        scales = self._wide(f"{name}.scale", "float32", (groups, n))
        if scales.min() < np.finfo(np.float32).tiny:
            raise FormatError(f"{self.where}: {name}.scale: not positive")
        zero_points = None
        if f"{name}.zero_point" in self.tensors:
            zero_points = self._wide(f"{name}.zero_point", "int32", (groups, n))
            if zero_points.min() < -128 or zero_points.max() > 127:
                raise FormatError(f"{self.where}: {name}.zero_point: outside -128 … 127")
        return _core.pack(codes, zero_points, scales, group_size)

    def _bias(self, name: str, layer: Linear, form: Form) -> np.ndarray | QTensor | None:
        if layer.bias is not None or f"{name}.bias" not in self.tensors:
            return layer.bias  # float32, read already
        outputs = layer.shape[1:]
        if self.tensors[f"{name}.bias"].dtype == np.int32:
            codes = self._take(f"{name}.bias", "int32", outputs)
            if not isinstance(form, (Fixed, Smoothed)):
                raise FormatError(f"{self.where}: {name}.bias: int32 without a fixed input scale")
            return codes
        scale = self._take(f"{name}.bias.scale", "float32", (1,))[0]
        zero_point = self._take(f"{name}.bias.zero_point", "int32", (1,))[0]
        return QTensor(self._take(f"{name}.bias", "int8", outputs), scale, zero_point)

    def _form(self, values: list | None, name: str, features: int = 0) -> Form:
        """features: of a place that may have parameters of each one's own."""
        if values is None:
            return None
        if len(values) == 5 and features:
            form = Fixed(*values[:4])
            if not _is_sound(form):
                raise FormatError(f"{self.where}: {name}: {brief(values)} is no form of codes")
            columns = self._columns(values[4], features)
            apart = np.abs(columns.zero_point.astype(np.int64) - affine.middle(form.dtype)).max()
            if apart > (0 if form.symmetric else affine.FARTHEST):
                raise FormatError(f"{self.where}: {name}: zero points of {brief(values)} lie too far off")
            return Smoothed(*form, columns)
        form = form_from_list(values)
        if not _is_sound(form):
            raise FormatError(f"{self.where}: {name}: {brief(values)} is no form of codes")
        return form

    def _columns(self, name: str, features: int) -> Columns:
        """One object for all forms that name it."""
        if type(name) is not str:
            raise FormatError(f"{self.where}: {brief(name)} names no columns")
        if name not in self.columns:
            scale = self._take(f"{name}.columns.scale", "float32", (features,))
            zero_point = self._take(f"{name}.columns.zero_point", "int32", (features,))
            if scale.min() < affine.SMALLEST_SCALE:
                raise FormatError(f"{self.where}: {name}.columns.scale: not positive")
            self.columns[name] = Columns(scale[None], zero_point[None])
        elif self.columns[name].scale.size != features:
            raise FormatError(
                f"{self.where}: {name}.columns: {self.columns[name].scale.size} features, wanted {features}"
            )
        return self.columns[name]

    def _join(self, model: Transformer) -> None:
        """The forms between neighbours in int8."""
        for i, block in enumerate(model.blocks):
            values, attention = self.record["attention"][i], block.attention
            if values is None:
                continue
            attention.forms = self._attention(values, attention, f"{block.name}.attention")
            try:
                check_attention(attention.forms, attention.dim, min(model.config.max_positions, MAX_KEYS))
            except UnsupportedError as error:
                raise FormatError(f"{self.where}: {block.name}.attention: {error}") from None
        self._stream(model)

    def _attention(self, values: list, attention: Attention, name: str) -> tuple | PerHead:
        """The forms of queries, keys and values."""
        kinds = {layer.runs_in for layer in (attention.query, attention.key, attention.value)}
        if kinds == {"dynamic"} and values == list(PerHead("int8", True, attention.dim)):
            return PerHead(*values)
        widths = 0, 0, attention.kv_heads * attention.dim  # values may be smoothed
        forms = tuple(self._form(form, name, width) for form, width in zip(values, widths))
        sound = all(isinstance(form, (Fixed, Smoothed)) for form in forms)
        if len(values) != 3 or not sound or kinds != {"static"}:
            raise FormatError(f"{self.where}: {name}: {brief(values)} is not what int8 layers hand on")
        return forms

    def _stream(self, model: Transformer) -> None:
        """The forms of the residual stream."""
        forms = [self._form(values, "streams") for values in self.record["streams"]]
        static = isinstance(model.strategy, strategies.Static)
        fit = all(form is None or static and isinstance(form, Fixed) for form in forms)
        if len(forms) != 2 * len(model.blocks) + 1 or not fit:
            raise FormatError(f"{self.where}: {brief(forms)} is no residual stream of this model")
        model.embedding.stream = forms[0]
        for block, *streams in zip(model.blocks, forms[1::2], forms[2::2]):
            block.streams = tuple(streams)


def _is_sound(form: PerToken | PerTensor | Fixed) -> bool:
    if form.dtype not in affine.RANGES or type(form.symmetric) is not bool or (form.symmetric and form.dtype != "int8"):
        return False
    if isinstance(form, Fixed):
        low, high = (0, 0) if form.symmetric else affine.RANGES[form.dtype]
        return (
            type(form.scale) is float
            and float(affine.SMALLEST_SCALE) <= form.scale <= float(affine.LARGEST)
            and type(form.zero_point) is int
            and low <= form.zero_point <= high
        )
    return isinstance(form, PerToken) or form.granularity == "per_tensor"
