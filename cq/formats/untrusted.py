"""Paths and JSON that come from strangers, opened with suspicion. Must not know what the JSON is about."""

import json
import os
from pathlib import Path
from typing import NoReturn, TypeVar, overload

from ..errors import CqError, FormatError, brief, one_line

Kind = TypeVar("Kind", dict, list)

_MAX_NAME, _MAX_PATH = 255, 4095  # bytes that Linux takes
MAX_JSON = 16 << 20  # bytes of one small JSON file; the largest config.json in the wild are a few hundred kilobytes


def as_name(path: str | os.PathLike) -> Path:
    """`path` (str or os.PathLike) as a Path, whether it exists or not. Raises CqError for another type or a zero
    byte."""
    try:
        name = Path(path)
    except TypeError:
        raise CqError(f"path: wanted a str or os.PathLike, got {type(path).__name__}") from None
    if "\0" in str(name):
        raise CqError(f"path: {brief(str(name))} holds a zero byte, which no file's name can")
    try:
        encoded = os.fsencode(name)
    except UnicodeEncodeError:
        raise CqError(f"path: {brief(str(name))} is no text that a file's name can be") from None
    if len(encoded) > _MAX_PATH or any(len(part) > _MAX_NAME for part in encoded.split(b"/")):
        raise CqError(f"path: {brief(str(name))} is longer than any file's name, {_MAX_NAME} bytes")
    return name


def as_path(path: str | os.PathLike) -> Path:
    """As `as_name`, of what exists. Raises FileNotFoundError too."""
    name = as_name(path)
    if not name.exists():
        raise FileNotFoundError(one_line(f"{name}: no such file or folder"))
    return name


def as_file(path: str | os.PathLike) -> Path:
    """As `as_path`, for a regular file: a folder, pipe or device raises FormatError (reading one could block for
    ever)."""
    name = as_path(path)
    if not name.is_file():
        raise FormatError(f"{name}: not a regular file")
    return name


def parse_json(data: bytes, where: str, kind: type[Kind]) -> Kind:
    """The JSON value in `data`, UTF-8, of Python type `kind`. Keys that occur twice, NaN and Infinity are refused as
    well. Raises FormatError, its message starting with `where`."""
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise FormatError(f"{where}: not UTF-8 text (byte {error.start})") from None
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{where}: not valid JSON: {error}") from None
    if not isinstance(value, kind):
        raise FormatError(f"{where}: wanted a JSON {_JSON_NAMES[kind]}, got {brief(value)}")
    return value


@overload
def read_json(path: str | os.PathLike) -> dict: ...
@overload
def read_json(path: str | os.PathLike, kind: type[Kind]) -> Kind: ...
def read_json(path: str | os.PathLike, kind: type = dict) -> dict | list:
    """The JSON file at `path`, at most 16 MiB; errors as `as_file` and `parse_json`."""
    path = as_file(path)
    size = path.stat().st_size
    if size > MAX_JSON:
        raise FormatError(f"{path}: {size} bytes of JSON; at most {MAX_JSON} are read")
    return parse_json(path.read_bytes(), str(path), kind)


def read_json_if_any(path: Path) -> dict:
    """As `read_json`; an empty object where there is no such file."""
    return read_json(path) if path.exists() else {}


def size_of(values: dict, key: str, where: str, default: int | None = None, least: int = 1) -> int:
    """The entry `key`, a size: `least`…2**31 − 1. Absent or null it is `default`; without one that is a FormatError
    too."""
    value = default if values.get(key) is None else values[key]
    if type(value) is not int or not least <= value < 2**31:
        wanted = "a positive integer" if least == 1 else f"an integer of at least {least}"
        raise FormatError(
            f"{where}: {key} must be {wanted} below 2**31, "
            + (f"got {brief(value)}" if key in values else "and is missing")
        )
    return value


def real_of(values: dict, key: str, where: str, default: float | None) -> float:
    """The entry `key`, a positive number below 1e12, `default` if absent or null; None: it must be there.
    Raises FormatError."""
    value = default if values.get(key) is None else values[key]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e12:
        raise FormatError(f"{where}: {key} must be a positive number, got {brief(value)}")
    return float(value)


def flag_of(values: dict, key: str, where: str, default: bool = False) -> bool:
    """The entry `key`, true or false, `default` if absent or null. Raises FormatError."""
    value = default if values.get(key) is None else values[key]
    if not isinstance(value, bool):
        raise FormatError(f"{where}: {key} must be true or false, got {brief(value)}")
    return value


_JSON_NAMES = {dict: "object", list: "array"}


def _unique(pairs: list[tuple[str, object]]) -> dict:
    result: dict[str, object] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"the key {key!r} occurs twice")
        result[key] = value
    return result


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
