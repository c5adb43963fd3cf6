"""Files in the address space, and arrays that still lie in them. Must not know what the bytes mean."""

import mmap
import os
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np

from ..errors import FormatError
from ..model.deferred import Deferred
from .untrusted import as_file

Decode = Callable[[np.ndarray], np.ndarray]  # from uint8 (n,)


class MappedFile:
    """A file in the address space: the same file whatever its name comes to mean."""

    def __init__(self, path: Path):
        self.path = path.absolute()
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._descriptor).atexit = False
        self.identity = _identity(os.fstat(self._descriptor))
        self._map = mmap.mmap(self._descriptor, 0, access=mmap.ACCESS_READ)

    @property
    def is_there(self) -> bool:
        """Whether its name still stands for it, unchanged."""
        try:
            return _identity(os.stat(self.path)) == self.identity
        except OSError:
            return False

    def part(self, begin: int, count: int) -> np.ndarray:
        """uint8 (count,), read-only; it leaves the process's memory with its last view. Raises FormatError where
        somebody has written into the file, since its end may be missing now, and other weights lie in it."""
        if _identity(os.fstat(self._descriptor)) != self.identity:
            raise FormatError(f"{self.path}: written to since it was loaded; load it again")
        if not count:
            return np.empty(0, np.uint8)
        part = np.frombuffer(memoryview(self._map)[begin : begin + count], np.uint8)
        first = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE
        pages = (begin + count - first) // mmap.PAGESIZE * mmap.PAGESIZE
        if pages > 0:
            weakref.finalize(part, self._map.madvise, mmap.MADV_DONTNEED, first, pages).atexit = False
        return part

    def array(
        self, begin: int, count: int, shape: tuple[int, ...], dtype: np.dtype, decode: Decode
    ) -> np.ndarray | Deferred:
        """What `decode` makes of so many bytes, an array of this shape and dtype: at once, in memory of its own, unless
        it is a matrix."""
        if len(shape) != 2:
            return decode(self.part(begin, count).copy())
        return Deferred(shape, dtype, _Part(self, begin, count, decode))


@dataclass(frozen=True)
class _Part:
    file: MappedFile
    begin: int
    size: int
    decode: Decode

    def __call__(self) -> np.ndarray:
        return self.decode(self.file.part(self.begin, self.size))


def _identity(found: os.stat_result) -> tuple[int, ...]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _sent(array: Deferred) -> tuple:
    """How multiprocessing pickles it, for a process of this machine: as a place in its file, if it lies in one."""
    part = array.maker
    if not isinstance(part, _Part) or not part.file.is_there:
        return array.__reduce__()
    return _arrived, (
        str(part.file.path),
        part.file.identity,
        (part.begin, part.size, part.decode),
        array.shape,
        array.dtype,
    )


def _arrived(
    path: str, identity: tuple[int, ...], part: tuple[int, int, Decode], shape: tuple[int, ...], dtype: np.dtype
) -> Deferred:
    file = _files.get(path)
    if file is None or file.identity != identity:
        file = MappedFile(as_file(path))
        if file.identity != identity:
            raise FormatError(f"{path}: replaced while a model of its weights was under way to another process")
        _files[path] = file
    return Deferred(shape, dtype, _Part(file, *part))


_files: weakref.WeakValueDictionary[str, MappedFile] = weakref.WeakValueDictionary()  # that models came with
ForkingPickler.register(Deferred, _sent)
