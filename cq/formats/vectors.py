"""Embeddings into files, as they come: rows are added to one array in .npy, or beside their texts to a .parquet. Must
not know where they come from."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

from ..errors import CqError
from .columns import import_parquet
from .files import replacing

KINDS = (".npy", ".parquet")


class Writer(Protocol):
    """Takes rows in order."""

    def write(self, texts: list[str], rows: np.ndarray) -> None:
        """rows: float32 (texts, dim)."""


@contextmanager
def written(path: Path, dim: int) -> Iterator[Writer]:
    """A writer of `path` by its suffix, one of KINDS: a float32 array (n, dim), or columns "text" and "embedding", a
    list of `dim` float32. The file is there whole when the block ends, or not at all. Raises UnsupportedError where
    pyarrow is missing, OSError."""
    if path.suffix == ".parquet":
        arrow, parquet = import_parquet(path)
        schema = arrow.schema([("text", arrow.string()), ("embedding", arrow.list_(arrow.float32(), dim))])
        with replacing(path) as file, parquet.ParquetWriter(file, schema) as opened:
            yield _Parquet(arrow, opened, schema)
        return
    with replacing(path) as file:
        array = _Npy(file, dim)
        yield array
        array.finish()


class _Npy:
    """Its header, which has room for any number of rows, is written again at the end."""

    def __init__(self, file: BinaryIO, dim: int):
        self.file, self.dim, self.rows = file, dim, 0
        self._header()

    def _header(self) -> None:
        header = {"descr": "<f4", "fortran_order": False, "shape": (self.rows, self.dim)}
        np.lib.format.write_array_header_1_0(self.file, header)

    def write(self, texts: list[str], rows: np.ndarray) -> None:
        self.file.write(np.ascontiguousarray(rows, "<f4").data)
        self.rows += len(rows)

    def finish(self) -> None:
        end = self.file.tell()
        self.file.seek(0)
        self._header()
        if self.file.tell() + 4 * self.rows * self.dim != end:
            raise CqError(f"{self.rows} rows do not fit the header of the .npy file")


class _Parquet:
    def __init__(self, arrow: Any, opened: Any, schema: Any):
        self.arrow, self.opened, self.schema = arrow, opened, schema

    def write(self, texts: list[str], rows: np.ndarray) -> None:
        flat = self.arrow.array(np.ascontiguousarray(rows, np.float32).reshape(-1))
        vectors = self.arrow.FixedSizeListArray.from_arrays(flat, rows.shape[1])
        columns = [self.arrow.array(texts, self.arrow.string()), vectors]
        self.opened.write_table(self.arrow.Table.from_arrays(columns, schema=self.schema))
