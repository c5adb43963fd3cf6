"""A quantized model as a Hugging Face folder in compressed-tensors' codes, which llm-compressor's package, vLLM and cq
read. Must not know how plans are found."""

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import affine
from ..errors import CqError, UnsupportedError
from ..model import Config, Transformer
from ..model.deferred import Deferred
from ..model.forms import Fixed, PerTensor, PerToken, Smoothed
from ..model.linear import Linear, QuantizedLinear
from ..plan import Plan, WeightCoding
from ..qtensor import QTensor
from ..weights import Weight
from .checkpoint import float_tensors
from .compressed_codes import FileCodes
from .compressed_config import METHOD, MIXED, PACKED, PLAIN
from .deberta import POSITION_LAYER, without_positions
from .files import replacing_folder, write_whole
from .folder import folder_files, named_tokens
from .huggingface import assembled, read_coded_settings, read_weights
from .name_tables import FAMILIES
from .names import foreign_name
from .tensors import write_safetensors

_SCHEME = "cq.Scheme(attention='float32')"
_STRATEGIES = {"per_tensor": "tensor", "per_channel": "channel", "per_group": "group"}
_POOLER = r"re:(.*\.)?pooler\.dense$"  # a linear layer of transformers' encoders whose result nobody reads here
Tensors = dict[str, np.ndarray | Deferred]


def export_compressed(model: Transformer, path: Path) -> None:
    """See formats.export. The folder is read back before it takes its name."""
    with replacing_folder(path) as folder:
        writer = _Writer(model)
        files = folder_files(writer.config, model.tokenizer, writer.biases)
        values = json.loads(files["config.json"]) | {"quantization_config": writer.quantization_config()}
        files["config.json"] = (json.dumps(values, indent=2) + "\n").encode()
        for name, data in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            write_whole(folder / name, data)
        write_safetensors(folder / "model.safetensors", writer.tensors, {"format": "pt"})
        tokens = named_tokens(model.config, model.tokenizer) if model.config.head_size else {}
        _check(folder, replace(writer.config, special_tokens=tokens or None), path)


def _check(folder: Path, config: Config, path: Path) -> None:
    """Raises UnsupportedError unless the folder says what the model is."""
    try:
        settings = read_coded_settings(folder)
        tensors, where = read_weights(folder)
        found, _, _ = assembled(settings, FileCodes(tensors, settings.config, where).floats, where)
    except CqError as error:
        raise UnsupportedError(f"not written: {str(error).replace(str(folder), str(path))}") from None
    found = replace(found, special_tokens=found.special_tokens or None)
    other = [field.name for field in fields(Config) if getattr(found, field.name) != getattr(config, field.name)]
    if other:
        raise UnsupportedError(
            f"{path}: not written, since the files of a Hugging Face folder cannot say this model's {', '.join(other)}"
        )


class _Writer:
    """config: of the model in the folder, whose head has a table of its own where it is in codes. tensors: by their
    names in the file; the word table is in float32, of what its codes stand for, since few readers have it in codes.
    biases: the modules within a layer that have one."""

    def __init__(self, model: Transformer):
        self._model, self._plan = model, _checked(model)
        coded = self._plan.word.coded or (model.head is not None and self._plan.coded("head"))
        self.config = replace(model.config, tied=model.config.tied and not coded)
        forms = [layer.input_form for _, layer in model.linears() if isinstance(layer.input_form, Fixed)]
        self._symmetric = all(form.zero_point == affine.middle(form.dtype) for form in forms)
        self._groups: list[tuple[dict[str, Any], list[str]]] = []  # a group's arguments, its modules
        self._left: list[str] = []  # linear layers in float32
        word = model.embedding.source
        self.tensors: Tensors = {self._named("embed.word"): _table(word)} if isinstance(word, Weight) else {}
        floats = without_positions(float_tensors(model), model.config)
        self.tensors |= {self._named(name): array for name, array in floats.items()}
        self._left += [self._named(name).rpartition(".")[0] for name in floats if POSITION_LAYER.fullmatch(name)]
        found = [name for name, layer in model.linears() if self._put(name, layer)]
        self.biases = frozenset(name.split(".", 2)[2] for name in found if name.startswith("layers."))

    def quantization_config(self) -> dict[str, Any]:
        """The entry of config.json. A single group is named by its layers' class, so that it is read wherever such a
        configuration is."""
        groups = {
            f"group_{i}": {"targets": names if len(self._groups) > 1 else ["Linear"], **arguments}
            for i, (arguments, names) in enumerate(self._groups)
        }
        formats = {arguments["format"] for arguments, _ in self._groups}
        encodes = not (self.config.causal or self.config.head_size or self.config.labels)
        return {
            "quant_method": METHOD,
            "format": formats.pop() if len(formats) == 1 else MIXED,
            "quantization_status": "compressed",
            "config_groups": groups,
            "ignore": self._left + [_POOLER] * encodes,
        }

    def _named(self, name: str) -> str:
        if name == "head.bias" and self.config.masked_lm and not self.config.tied:
            return self._named("head.weight").removesuffix("weight") + "bias"
        return foreign_name(name, self.config)

    def _put(self, name: str, layer: Linear | QuantizedLinear) -> bool:
        """A linear layer; whether it has a bias."""
        module = self._named(f"{name}.weight").rpartition(".")[0]
        if isinstance(layer, Linear):
            bias = layer.bias
            self._left.append(module)
            if not (name == "head" and self.config.tied):
                self.tensors[f"{module}.weight"] = layer.source
        else:
            bias = _float_bias(layer)
            self._put_codes(module, layer.weight, self._plan.layers[name].coding, self._activations(module, layer))
        if bias is not None:
            self.tensors[self._named(f"{name}.bias")] = bias
        return bias is not None

    def _put_codes(self, module: str, weight: Weight, coding: WeightCoding, activations: dict[str, Any] | None) -> None:
        """A weight's codes, scales and zero points, and the group that says of which kind they are."""
        assert weight.scales is not None, "a model's weights have scales"
        k, n = weight.shape
        groups = len(weight.scales)
        strategy = "channel" if groups == 1 and coding.granularity == "per_group" else _STRATEGIES[coding.granularity]
        if groups > 1 and k % weight.group_size:
            raise UnsupportedError(
                f"{module}: groups of {weight.group_size} do not divide its {k} inputs, as compressed-tensors wants; "
                "choose a group_size that does, or exclude the layer"
            )
        packed, one = activations is None, strategy == "tensor"
        scale = weight.scales[0, :1] if one else np.ascontiguousarray(weight.scales.T)
        put = {"weight_scale": scale.copy()}
        if not coding.symmetric:
            zero_points = np.zeros_like(weight.scales, np.int32) if weight.zero_points is None else weight.zero_points
            zero_points = zero_points[0, :1] if one else zero_points.T
            zero_points = zero_points.astype(np.int8)
            put["weight_zero_point"] = _packed(zero_points.T).T if packed and not one else zero_points
        codes = Deferred((n, k), np.int8, lambda: weight.unpack().T)
        if packed:
            put["weight_shape"] = np.array([n, k], np.int64)
            words = Deferred((n, -(-k // 4)), np.int32, lambda: _packed(codes.read()))
        self.tensors |= {f"{module}.{leaf}": array for leaf, array in put.items()}
        self.tensors |= {f"{module}.weight_packed": words} if packed else {f"{module}.weight": codes}
        size = weight.group_size if strategy == "group" else None
        arguments = _arguments(coding.symmetric, strategy, False) | {"group_size": size}
        kind = {"format": PACKED if packed else PLAIN, "weights": arguments, "input_activations": activations}
        alike = next((names for given, names in self._groups if given == kind), None)
        if alike is None:
            self._groups.append((kind, [module]))
        else:
            alike.append(module)

    def _activations(self, module: str, layer: QuantizedLinear) -> dict[str, Any] | None:
        """Arguments of what a layer reads. uint8 codes are written as int8 ones, 128 lower, for the same numbers."""
        form = layer.input_form
        if form is None:
            return None
        if isinstance(form, PerToken | PerTensor):
            return _arguments(form.symmetric, "token" if isinstance(form, PerToken) else "tensor", True)
        assert isinstance(form, Fixed), "others were refused"
        zero_point = form.zero_point - affine.middle(form.dtype)
        self.tensors[f"{module}.input_scale"] = np.array([form.scale], np.float32)
        if not self._symmetric:
            self.tensors[f"{module}.input_zero_point"] = np.array([zero_point], np.int8)
        return _arguments(self._symmetric, "tensor", False)


def _table(word: Weight) -> Deferred:
    """A word table in codes (hidden, words) as float32 (words, hidden)."""

    def read() -> np.ndarray:
        assert word.scales is not None, "a model's weights have scales"
        zero_points = 0 if word.zero_points is None else word.zero_points.T
        return affine.dequantize(word.unpack().T, word.scales.T, zero_points)

    return Deferred(word.shape[::-1], np.float32, read)


def _arguments(symmetric: bool, strategy: str, dynamic: bool) -> dict[str, Any]:
    return {"num_bits": 8, "type": "int", "symmetric": symmetric, "strategy": strategy, "dynamic": dynamic}


def _packed(codes: np.ndarray) -> np.ndarray:
    """int8 codes (rows, n) → int32 (rows, ceil(n / 4)), the inverse of what FileCodes unpacks."""
    padded = np.zeros((len(codes), -(-codes.shape[1] // 4) * 4), np.uint8)
    padded[:, : codes.shape[1]] = np.ascontiguousarray(codes).view(np.uint8) ^ 0x80
    return padded.view("<i4")


def _float_bias(layer: QuantizedLinear) -> np.ndarray | None:
    """What the layer adds, in float32."""
    bias, codes = layer.bias, layer.bias_codes
    if codes is None:
        return bias.dequantize() if isinstance(bias, QTensor) else bias
    assert isinstance(layer.input_form, Fixed) and layer.weight.scales is not None, "as int32 biases have"
    values: np.ndarray = codes * (layer.input_form.scale * layer.weight.scales[0].astype(np.float64))
    return values.astype(np.float32)


def _checked(model: Transformer) -> Plan:
    """The plan, of a model that the format can express."""
    plan, family = model.plan, FAMILIES[model.config.family]
    if plan is None or plan.strategy is None:
        raise UnsupportedError("model: compressed-tensors holds codes, and this model is float32; quantize it first")
    if not family.plain:
        raise UnsupportedError(f"model: compressed-tensors has no codes for layers as {model.config.family} has them")
    if plan.attention:
        raise UnsupportedError(
            f"{next(iter(plan.attention))}.attention computes in int8, which compressed-tensors does not express; "
            f"quantize with {_SCHEME}"
        )
    if plan.residual:
        raise UnsupportedError(
            "the residual stream is in int8, which compressed-tensors does not express; quantize with "
            "cq.Static(residual='float32')"
        )
    biases = family.biases
    for name, layer in model.linears():
        if isinstance(layer.input_form, Smoothed):
            raise UnsupportedError(
                f"{name} reads codes with a scale for each feature, which compressed-tensors does not express; "
                f"quantize with cq.Static({_SCHEME}, smooth=False, correct_bias=False)"
            )
        own = biases is None or not name.startswith("layers.") or name.split(".", 2)[2].startswith(biases)
        if layer.bias is not None and not own:
            raise UnsupportedError(
                f"{name} has a bias, which {model.config.family} models have not there; quantize with "
                f"cq.Static({_SCHEME}, smooth=False, correct_bias=False)"
            )
    return plan
