"""Tensor files as plain arrays: reads safetensors and npz, writes safetensors. Must not know models or names
of weights."""

import math
import os
import zipfile
from collections import Counter
from collections.abc import Mapping
from functools import partial
from json import dumps
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from ..errors import CqError, FormatError, UnsupportedError, brief
from ..model.deferred import Deferred, read
from .files import replacing
from .mapped import MappedFile
from .untrusted import as_file, parse_json

MAX_HEADER = 16 << 20  # bytes; JSON takes up to 35 times its size as Python objects: half a gigabyte at worst
MAX_RANK = 16  # NumPy's own limit is 64, no weight has more than 4
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")

_DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "|i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "|u1",
    "BOOL": "|b1",
}
_CODES = {np.dtype(text): code for code, text in _DTYPES.items() if code != "BF16"}
_PICKLED = "holds pickled objects, which could run code and are never read; save the arrays as safetensors or npz"


def read_tensors(path: str | os.PathLike) -> tuple[dict[str, np.ndarray | Deferred], dict[str, str]]:
    """The tensors and the metadata of a `.safetensors` or `.npz` file, by their names in the file.

    Floats of 16, 32 and 64 bits come as float32 in C order, integers and booleans as they are. Matrices of a
    safetensors file are Deferred: mapped one at a time when they are wanted, read-only where they need no conversion;
    the file must not be changed in place while they live, but may be replaced. Metadata: the `__metadata__` of
    safetensors; for npz every entry that is a single string. Sizes are checked against the file before anything is
    allocated. Raises FileNotFoundError, FormatError naming file and tensor (pickles included), UnsupportedError for
    dtypes NumPy cannot compute with and for other kinds of file.
    """
    path = as_file(path)
    suffix = path.suffix.lower()
    if suffix in PICKLES:
        raise FormatError(f"{path}: {_PICKLED}")
    if suffix == ".safetensors":
        return _read_safetensors(path)
    if suffix == ".npz":
        return _read_npz(path)
    raise UnsupportedError(f"{path}: wanted a name ending in .safetensors or .npz")


def write_safetensors(
    path: str | os.PathLike, tensors: Mapping[str, np.ndarray | Deferred], metadata: dict[str, str] | None = None
) -> None:
    """Writes arrays (float16/32/64, int8…64, uint8…64, bool; any strides) to `path`, whole or not at all; those that
    are Deferred are made one at a time.

    The bytes are flushed to disk before they stand at `path`; on any failure what stood there stays, and nothing else
    does. Equal input gives equal bytes (the safetensors library's
    own writer puts metadata in random order, makes files that only their owner can read, and takes all tensors at
    once). Data begins at a multiple of 64 bytes. Raises CqError for what the format cannot hold, FileNotFoundError
    where the folder is missing, OSError.
    """
    header, ordered = _header_of(tensors, metadata or {})
    with replacing(path) as file:
        file.write(header)
        for array in map(read, ordered):
            file.write(raw_bytes(array))


def raw_bytes(array: np.ndarray) -> memoryview:
    """The elements in C order, little-endian."""
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return np.ascontiguousarray(little).reshape(-1).view(np.uint8).data


def _header_of(
    tensors: Mapping[str, np.ndarray | Deferred], metadata: dict[str, str]
) -> tuple[bytes, list[np.ndarray | Deferred]]:
    """The header's bytes, padded, and the arrays in the order of their data: widest items first, which keeps all
    aligned."""
    for key, value in metadata.items():
        if not (isinstance(key, str) and isinstance(value, str)):
            raise CqError(f"metadata: wanted str → str, got {key!r}: {type(value).__name__}")
    for name, array in tensors.items():
        if not isinstance(name, str) or name == "__metadata__":
            raise CqError(f"tensors: {name!r} cannot be the name of a tensor")
        if not isinstance(array, np.ndarray | Deferred) or array.dtype.newbyteorder("<") not in _CODES:
            raise CqError(
                f"tensors: {name!r} is {getattr(array, 'dtype', type(array).__name__)}; wanted a NumPy array of "
                "float16/32/64, an integer type or bool"
            )
    header: dict[str, dict] = {"__metadata__": {key: metadata[key] for key in sorted(metadata)}} if metadata else {}
    begin, ordered = 0, []
    for name, array in sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])):
        header[name] = {
            "dtype": _CODES[array.dtype.newbyteorder("<")],
            "shape": list(array.shape),
            "data_offsets": [begin, begin + array.nbytes],
        }
        ordered.append(array)
        begin += array.nbytes
    try:
        text = dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise CqError(f"tensors: a name or metadata is not valid Unicode: {error}") from None
    text += b" " * (-(8 + len(text)) % 64)
    if len(text) > MAX_HEADER:
        raise CqError(f"metadata: names and metadata take {len(text)} bytes; at most {MAX_HEADER} can be read back")
    return len(text).to_bytes(8, "little") + text, ordered


def _read_safetensors(path: Path) -> tuple[dict[str, np.ndarray | Deferred], dict[str, str]]:
    header, start = _read_header(path)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise FormatError(f"{path}: __metadata__ must map strings to strings")
    spans = {name: _span(entry, f"{path}: tensor {brief(name)}") for name, entry in header.items()}
    _check_cover(spans, path.stat().st_size - start, path)
    try:  # the library is the second judge: what it would refuse elsewhere is refused here
        with safe_open(path, framework="numpy"):
            pass
    except SafetensorError as error:
        raise FormatError(f"{path}: {error}") from None
    file = MappedFile(path)
    return {
        name: file.array(start + begin, end - begin, shape, _dtype(code), partial(_decode, code=code, shape=shape))
        for name, (code, shape, begin, end) in spans.items()
    }, metadata


def _read_header(path: Path) -> tuple[dict, int]:
    """The JSON header and the place where data begins. 8 bytes of length come first."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        lead = file.read(8)
        if lead[:1] == b"\x80" and lead[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
            raise FormatError(f"{path}: not safetensors: it {_PICKLED}")
        if lead[:4] == b"PK\x03\x04":
            raise FormatError(f"{path}: not safetensors but a zip archive, as .npz and torch's pickles are")
        length = int.from_bytes(lead, "little")
        if len(lead) < 8 or length > size - 8:
            raise FormatError(f"{path}: truncated: its header should take {length} bytes, the file has {size}")
        if length > MAX_HEADER:
            raise FormatError(f"{path}: a header of {length} bytes; at most {MAX_HEADER} are read")
        return parse_json(file.read(length), f"{path}: header", dict), 8 + length


def _span(entry: object, where: str) -> tuple[str, tuple[int, ...], int, int]:
    """(dtype code, shape, begin, end) of a header's entry, consistent with one another; nothing is said of the file
    yet."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise FormatError(f"{where}: wanted dtype, shape and data_offsets, got {brief(entry)}")
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(code, str):
        raise FormatError(f"{where}: dtype must be a string, got {brief(code)}")
    if code not in _DTYPES:
        raise UnsupportedError(f"{where}: dtype {brief(code)} is not one of {', '.join(_DTYPES)}")
    if not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2:
        raise FormatError(
            f"{where}: shape and data_offsets must be natural numbers, got {brief(shape)}, {brief(offsets)}"
        )
    nbytes = _nbytes(tuple(shape), np.dtype(_DTYPES[code]), where)
    if offsets[1] - offsets[0] != nbytes:
        raise FormatError(
            f"{where}: shape {brief(shape)} of {code} takes {nbytes} bytes, "
            f"data_offsets {brief(offsets)} span {offsets[1] - offsets[0]}"
        )
    return code, tuple(shape), offsets[0], offsets[1]


def _check_cover(spans: dict[str, tuple], available: int, path: Path) -> None:
    """Raises FormatError unless the tensors lie one after another and fill `available` bytes exactly."""
    at = 0
    for name, (_, _, begin, end) in sorted(spans.items(), key=lambda item: item[1][2:]):
        if begin != at:
            raise FormatError(
                f"{path}: tensor {brief(name)} begins at {begin}, "
                f"{'inside' if begin < at else 'not at the end of'} the tensor before it, which ends at {at}"
            )
        if end > available:
            raise FormatError(f"{path}: truncated: tensor {brief(name)} ends at byte {end} of the data, of {available}")
        at = end
    if at != available:
        raise FormatError(f"{path}: {available - at} bytes after the last tensor belong to none")


def _naturals(values: object) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _nbytes(shape: tuple[int, ...], dtype: np.dtype, where: str) -> int:
    """Bytes of an array; dimensions that no address space holds are refused even beside a zero."""
    if len(shape) > MAX_RANK:
        raise FormatError(f"{where}: {len(shape)} dimensions; at most {MAX_RANK} are read")
    if min(shape, default=0) < 0 or math.prod(size or 1 for size in shape) * max(dtype.itemsize, 1) >= 2**63:
        raise FormatError(f"{where}: shape {brief(shape)} is no size of an array")
    return math.prod(shape) * dtype.itemsize


def _dtype(code: str) -> np.dtype:
    """Of the array that `_decode` gives."""
    return np.dtype(np.float32) if code == "BF16" or _DTYPES[code][1] == "f" else np.dtype(_DTYPES[code])


def _decode(raw: np.ndarray, code: str, shape: tuple[int, ...]) -> np.ndarray:
    """Bytes (n,) uint8 → array; bfloat16 is the upper half of a float32."""
    array = raw.view(_DTYPES[code]).reshape(shape)
    if code == "BF16":
        upper = np.empty(shape, np.uint32)
        np.left_shift(array, 16, dtype=np.uint32, out=upper)
        return upper.view(np.float32)
    return _normal(array)


def _normal(array: np.ndarray) -> np.ndarray:
    """Native byte order, aligned, C order, floats as float32; the same memory where that holds already."""
    dtype = np.dtype(np.float32) if array.dtype.kind == "f" else array.dtype.newbyteorder("=")
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes Inf, which whoever checks weights reports
        return np.require(array, dtype, ["C", "ALIGNED"])


def _read_npz(path: Path) -> tuple[dict[str, np.ndarray | Deferred], dict[str, str]]:
    tensors: dict[str, np.ndarray | Deferred] = {}
    metadata: dict[str, str] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            _check_members(archive.infolist(), path)
            for member in archive.infolist():
                name = member.filename.removesuffix(".npy")
                array = _read_member(archive, member, f"{path}: array {brief(name)}")
                if isinstance(array, str):
                    metadata[name] = array
                else:
                    tensors[name] = array
    except CqError:
        raise
    except Exception as error:  # zipfile and zlib raise a dozen types for damaged bytes; each means the same here
        raise FormatError(f"{path}: not a whole npz file: {error or type(error).__name__}") from None
    return tensors, metadata


def _check_members(members: list[zipfile.ZipInfo], path: Path) -> None:
    names = [member.filename for member in members]
    if any(name.endswith(".pkl") for name in names):
        raise FormatError(f"{path}: {_PICKLED}")
    foreign = next((name for name in names if not name.endswith(".npy")), None)
    if foreign is not None:
        raise FormatError(f"{path}: not an npz file: it contains {brief(foreign)}")
    name, count = Counter(names).most_common(1)[0] if names else ("", 0)
    if count > 1:
        raise FormatError(f"{path}: the array {brief(name.removesuffix('.npy'))} occurs {count} times")
    if any(member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for member in members):
        raise FormatError(f"{path}: compressed by a method that NumPy never writes")
    total, size = sum(member.file_size for member in members), path.stat().st_size
    if total > (256 << 20) + 64 * size:  # trained weights compress by less than 2; zeros, by a thousand
        raise FormatError(f"{path}: {size} bytes would unpack to {total}: a decompression bomb, or not weights")


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, where: str) -> np.ndarray | str:
    with archive.open(member) as file:
        try:
            version = np.lib.format.read_magic(file)
            reader = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
            shape, fortran, dtype = reader(file)
        except Exception as error:
            raise FormatError(f"{where}: not an npy array: {error}") from None
        if dtype.hasobject:
            raise FormatError(f"{where}: {_PICKLED}")
        if dtype.kind not in "fiubUS":
            raise UnsupportedError(f"{where}: dtype {dtype} is none that cq reads; wanted floats or integers")
        nbytes, there = _nbytes(shape, dtype, where), member.file_size - file.tell()
        if nbytes != there:
            raise FormatError(f"{where}: shape {brief(shape)} of {dtype} takes {nbytes} bytes, the file has {there}")
        raw = file.read()
    if len(raw) != nbytes:
        raise FormatError(f"{where}: truncated: {len(raw)} of {nbytes} bytes")
    array = np.frombuffer(raw, dtype) if nbytes else np.zeros(shape, dtype).reshape(-1)
    if dtype.kind in "US":
        return _string(array, shape, where)
    return _normal(array.reshape(shape[::-1]).T if fortran else array.reshape(shape))


def _string(array: np.ndarray, shape: tuple[int, ...], where: str) -> str:
    if shape != ():
        raise FormatError(f"{where}: strings of shape {brief(shape)}; wanted numbers, or a single string")
    try:
        value = array[0].item()
        return value if isinstance(value, str) else value.decode("utf-8")
    except (ValueError, SystemError) as error:  # SystemError: a code point beyond Unicode
        raise FormatError(f"{where}: not text: {error}") from None
