"""Texts out of files that people keep them in: lines, and a column of .csv, .jsonl or .parquet, one after another in
constant memory. Must not know what becomes of the texts."""

import csv
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, TextIO

from ..errors import CqError, FormatError, UnsupportedError, brief
from .untrusted import as_file

TABLES = (".csv", ".jsonl", ".parquet")
_USUAL = "text"  # the column that counts where none is named
_ROWS = 1024  # of a .parquet file, read together


def read_texts(path: Path, column: str | None = None) -> Iterator[str]:
    """The texts in a file, in order: of a .csv (with a header), a .jsonl (an object or a string a line) or a .parquet
    (with pyarrow) those of `column`, or of "text", or of the only one; of any other file its lines, UTF-8.

    Raises FileNotFoundError, FormatError for what is no such file, lacks the column or holds no text in it, with the
    row's number; CqError for a column of a file of lines, UnsupportedError where pyarrow is missing."""
    as_file(path)
    if column is not None and path.suffix not in TABLES:
        raise CqError(f"column: {path} is read as lines, which have none; {', '.join(TABLES)} have")
    if path.suffix == ".parquet":
        yield from _checked(_parquet(path, column), path)
        return
    with open(path, encoding="utf-8-sig", newline="") as file:  # spreadsheets mark UTF-8 with three bytes in front
        if path.suffix == ".csv":
            yield from _checked(_csv(file, path, column), path)
        elif path.suffix == ".jsonl":
            yield from _checked(_json_lines(file, path, column), path)
        else:
            yield from read_lines(file, str(path))


def read_lines(file: IO[str], name: str) -> Iterator[str]:
    """The lines of an open file, without their ends. Raises FormatError where they are not UTF-8."""
    try:
        for line in file:
            yield line.rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise FormatError(f"{name}: not UTF-8 text: {error.reason}") from None


def _checked(values: Iterator[Any], path: Path) -> Iterator[str]:
    row = 0
    try:
        for row, value in enumerate(values, 1):
            if not isinstance(value, str):
                raise FormatError(f"{path}: row {row}: need a text, got {brief(value)}")
            yield value
    except UnicodeDecodeError as error:
        raise FormatError(f"{path}: not UTF-8 text: {error.reason}") from None
    except csv.Error as error:
        raise FormatError(f"{path}: row {row + 1}: not CSV: {error}") from None


def _chosen(names: Iterable[str], column: str | None, path: Path) -> str:
    """The name of the column to read."""
    names = list(names)
    if column is None:
        column = names[0] if len(names) == 1 else _USUAL
    if column not in names:
        raise FormatError(f"{path}: no column {column!r}; it has {brief(names)}; name one with --column, or column=")
    return column


def _csv(file: TextIO, path: Path, column: str | None) -> Iterator[Any]:
    rows = csv.DictReader(file, strict=True)
    name = _chosen(rows.fieldnames or (), column, path)
    for row in rows:
        yield row[name]


def _json_lines(file: TextIO, path: Path, column: str | None) -> Iterator[Any]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise FormatError(f"{path}: line {number}: not JSON: {error}") from None
        yield value[_chosen(value, column, path)] if isinstance(value, dict) else value


def _parquet(path: Path, column: str | None) -> Iterator[Any]:
    arrow, parquet = import_parquet(path)
    try:
        file = parquet.ParquetFile(path)
        name = _chosen(file.schema_arrow.names, column, path)
        for batch in file.iter_batches(_ROWS, columns=[name]):
            yield from batch.column(0).to_pylist()
    except arrow.ArrowException as error:
        raise FormatError(f"{path}: not a Parquet file that can be read: {str(error).splitlines()[0]}") from None


def import_parquet(path: Path) -> tuple[Any, Any]:
    """pyarrow and its module for the file at `path`. Raises UnsupportedError where it is missing."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UnsupportedError(f"{path}: .parquet needs pyarrow: pip install 'cquant[parquet]'") from None
    return pyarrow, pyarrow.parquet
