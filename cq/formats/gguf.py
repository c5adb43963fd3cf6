"""GGUF, llama.cpp's one file of a model, as configuration, float32 weights and tokenizer. Its header is read here, in
bounds, its blocks of codes by the gguf package. Must not know how a model computes."""

import importlib
import os
import struct
from functools import partial
from types import ModuleType
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from ..errors import FormatError, UnsupportedError, brief
from ..model.config import Config
from ..model.deferred import Deferred
from .gguf_config import read_entries
from .gguf_tokenizer import read_vocabulary
from .mapped import MappedFile
from .name_tables_gguf import GGUF, table_of
from .names import canonical, check_weights, module_of
from .untrusted import as_file

MAX_ENTRIES = 1 << 16  # of metadata, and tensors; the largest in the wild have a few thousand
MAX_ITEMS = 1 << 21  # of all lists together; the largest vocabularies have near a million tokens and merges
MAX_STRING = 1 << 24  # bytes
_PIECE = 1 << 20  # weights dequantized at once: temporaries stay small beside the result

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _LIST = 8, 9


class _Tensor(NamedTuple):
    shape: tuple[int, ...]  # rows first, as NumPy's
    kind: int  # GGMLQuantizationType
    begin: int  # in bytes, from the end of the header
    nbytes: int


def read_gguf(path: str | os.PathLike) -> tuple[Config, dict[str, np.ndarray | Deferred], Tokenizer | None]:
    """The model in the GGUF file `path` of version 2 or 3: its configuration, its weights by canonical names (float32,
    Linear weights (out, in), matrices Deferred), and its tokenizer, which neither pads nor truncates, or that of a
    tokenizer.json beside the file where it brings none that cq can build.

    Codes are dequantized as the gguf package does; rows of queries and keys that llama.cpp interleaves for its rotary
    positions are put back in halves. Every count and size is checked against the file before anything is allocated.
    Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Raises FileNotFoundError, FormatError,
    UnsupportedError (also where the gguf package is missing)."""
    name = as_file(path)
    where, ggml, size = str(name), _package(), name.stat().st_size
    if size < 24:
        raise FormatError(f"{where}: truncated: {size} bytes are no GGUF file")
    file = MappedFile(name)
    data = file.part(0, size)
    values, tensors, start = _Header(data, where).parts(ggml.GGML_QUANT_SIZES)
    _check_places(tensors, len(data) - start, where)

    def decoded(name: str) -> np.ndarray:
        return _dequantize(
            file.part(start + tensors[name].begin, tensors[name].nbytes), tensors[name], ggml, f"{where}: {name}"
        )

    arrays = {name: Deferred(tensor.shape, np.float32, partial(decoded, name)) for name, tensor in tensors.items()}
    config = read_entries(values, arrays, where)
    table = table_of(values["general.architecture"], arrays)
    weights = canonical(arrays, table, where, GGUF, config=config)
    _check_shapes(weights, config, where)
    if GGUF[table].paired:
        weights = {name: _halves(array, name, config) for name, array in weights.items()}
    weights = {name: array if array.ndim == 2 else array.read().copy() for name, array in weights.items()}
    biases = tuple({module_of(name) for name in weights if name.endswith(".bias")})
    weights = check_weights(weights, config, where, biases)
    return config, weights, read_vocabulary(values, config.vocab_size, name.parent, where)


def _package() -> ModuleType:
    try:
        return importlib.import_module("gguf")
    except ImportError:
        raise UnsupportedError("reading GGUF needs the package gguf: pip install 'cquant[gguf]'") from None


class _Header:
    """A cursor over the file's bytes (n,) uint8 that never leaves them."""

    def __init__(self, data: np.ndarray, where: str):
        self.data, self.where, self.at, self.items = memoryview(data.data), where, 0, 0

    def parts(self, sizes: dict) -> tuple[dict, dict[str, _Tensor], int]:
        """Metadata, tensors by name, and where data begins. sizes: type → (weights, bytes) of a block."""
        if bytes(self._take(4)) != b"GGUF":
            raise FormatError(f"{self.where}: not GGUF: it begins with {bytes(self.data[:4])!r}")
        version = self._natural("I")
        if version not in (2, 3):
            raise UnsupportedError(
                f"{self.where}: GGUF of version {version}; little-endian files of version 2 and 3 are read"
            )
        counts = self._natural("Q"), self._natural("Q")
        if max(counts) > MAX_ENTRIES:
            raise FormatError(f"{self.where}: {counts[0]} tensors, {counts[1]} entries; at most {MAX_ENTRIES} are read")
        values: dict[str, object] = {}
        for _ in range(counts[1]):
            key = self._string()
            if key in values:
                raise FormatError(f"{self.where}: the entry {brief(key)} occurs twice")
            values[key] = self._value(key)
        tensors: dict[str, _Tensor] = {}
        for _ in range(counts[0]):
            name = self._string()
            if name in tensors:
                raise FormatError(f"{self.where}: tensor {brief(name)} occurs twice")
            tensors[name] = self._tensor(name, sizes)
        alignment = values.get("general.alignment", 32)
        if type(alignment) is not int or not 8 <= alignment <= 1 << 20 or alignment & (alignment - 1):
            raise FormatError(f"{self.where}: general.alignment must be a power of two from 8, got {brief(alignment)}")
        astray = next((name for name, tensor in tensors.items() if tensor.begin % alignment), None)
        if astray is not None:
            raise FormatError(f"{self.where}: tensor {brief(astray)} is not aligned to {alignment} bytes")
        return values, tensors, -(-self.at // alignment) * alignment

    def _take(self, count: int) -> memoryview:
        if count > len(self.data) - self.at:
            raise FormatError(
                f"{self.where}: truncated: {count} bytes should follow byte {self.at} of {len(self.data)}"
            )
        self.at += count
        return self.data[self.at - count : self.at]

    def _number(self, code: str) -> int | float | bool:
        number: int | float | bool = struct.unpack("<" + code, self._take(struct.calcsize("<" + code)))[0]
        return number

    def _natural(self, code: str) -> int:
        """An unsigned number: "I" of 4 bytes or "Q" of 8."""
        return int(self._number(code))

    def _string(self) -> str:
        length = self._natural("Q")
        if length > MAX_STRING:
            raise FormatError(f"{self.where}: a string of {length} bytes at {self.at}; at most {MAX_STRING} are read")
        try:
            return str(self._take(length), "utf-8")
        except UnicodeDecodeError as error:
            raise FormatError(f"{self.where}: not UTF-8 text at byte {self.at - length + error.start}") from None

    def _value(self, key: str) -> object:
        """A number, truth value or string, or a list of such."""
        kind = self._natural("I")
        if kind in _SCALARS:
            return self._number(_SCALARS[kind])
        if kind == _STRING:
            return self._string()
        if kind != _LIST:
            raise FormatError(f"{self.where}: {brief(key)}: type {kind} is none of GGUF's")
        kind, count = self._natural("I"), self._natural("Q")
        self.items += count
        if self.items > MAX_ITEMS:
            raise FormatError(f"{self.where}: {brief(key)}: lists of {self.items} items; at most {MAX_ITEMS} are read")
        if kind == _STRING:
            return [self._string() for _ in range(count)]
        if kind not in _SCALARS:
            raise UnsupportedError(f"{self.where}: {brief(key)}: a list of type {kind} is not implemented")
        code = _SCALARS[kind]
        return list(struct.unpack(f"<{count}{code}", self._take(count * struct.calcsize("<" + code))))

    def _tensor(self, name: str, sizes: dict) -> _Tensor:
        rank = self._natural("I")
        if not 1 <= rank <= 4:
            raise FormatError(f"{self.where}: tensor {brief(name)}: {rank} dimensions, wanted 1 to 4")
        shape = struct.unpack(f"<{rank}Q", self._take(8 * rank))[::-1]
        kind, begin = self._natural("I"), self._natural("Q")
        if kind not in sizes:
            raise UnsupportedError(
                f"{self.where}: tensor {brief(name)}: type {kind} is none that the gguf package knows"
            )
        weights, nbytes = sizes[kind]
        count = 1
        for size in shape:
            count *= size
        if not count or count >= 2**60 or shape[-1] % weights:
            raise FormatError(f"{self.where}: tensor {brief(name)}: {shape} is no shape of blocks of {weights} weights")
        return _Tensor(shape, kind, begin, count // weights * nbytes)


def _check_places(tensors: dict[str, _Tensor], available: int, where: str) -> None:
    """Raises FormatError where tensors share bytes, so that a small file cannot stand for much memory, or leave the
    file."""
    end = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].begin):
        if tensor.begin < end:
            raise FormatError(f"{where}: tensor {brief(name)} begins at {tensor.begin}, inside the one before it")
        end = tensor.begin + tensor.nbytes
        if end > available:
            raise FormatError(
                f"{where}: truncated: tensor {brief(name)} ends at byte {end} of the data, of {max(available, 0)}"
            )


def _check_shapes(weights: dict[str, Deferred], config: Config, where: str) -> None:
    """Before anything is dequantized; what is missing or too many shows in check_weights."""
    if config.num_layers > len(weights):
        raise FormatError(f"{where}: {config.num_layers} layers, but only {len(weights)} tensors")
    for name, shape in config.shapes().items():
        if name in weights and weights[name].shape != shape:
            raise FormatError(
                f"{where}: weight {name} has shape {weights[name].shape}, the configuration asks for {shape}"
            )
        bias = name.removesuffix("weight") + "bias"
        if name.endswith(".weight") and bias in weights and weights[bias].shape != shape[:1]:
            raise FormatError(
                f"{where}: weight {bias} has shape {weights[bias].shape}, the configuration asks for {shape[:1]}"
            )


def _dequantize(raw: np.ndarray, tensor: _Tensor, ggml: ModuleType, where: str) -> np.ndarray:
    """Bytes (n,) uint8 of blocks → float32 of the tensor's shape."""
    kind, width = ggml.GGMLQuantizationType(tensor.kind), tensor.shape[-1]
    if kind == ggml.GGMLQuantizationType.F32:
        return raw.view("<f4").reshape(tensor.shape)
    rows = raw.reshape(-1, tensor.nbytes // (int(np.prod(tensor.shape, dtype=np.int64)) // width))
    result, step = np.empty((len(rows), width), np.float32), max(_PIECE // width, 1)
    try:
        with np.errstate(all="ignore"):  # scales of NaN or Inf show when weights are checked
            for at in range(0, len(rows), step):
                result[at : at + step] = ggml.dequantize(rows[at : at + step], kind)
    except NotImplementedError:
        raise UnsupportedError(f"{where}: the gguf package does not dequantize {kind.name}") from None
    return result.reshape(tensor.shape)


def _halves(array: Deferred, name: str, config: Config) -> Deferred:
    """Rows of queries and keys (heads · dim, …) that turn together side by side → dim / 2 apart, as Hugging Face has
    them."""
    part = name.split(".")[-2] if ".attention." in name else None
    if part not in ("query", "key"):
        return array
    heads = config.num_heads if part == "query" else config.num_kv_heads

    def change(rows: np.ndarray) -> np.ndarray:
        pairs = rows.reshape(heads, -1, 2, *rows.shape[1:])
        return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows.shape)

    return array.then(array.shape, change)
