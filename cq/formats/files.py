"""The one writer of files and folders: whole or not at all, and nothing is left behind by a process that was killed.
Must not know what it writes."""

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ..errors import CqError, one_line

_PREFIX, _SUFFIX = ".cq-", ".tmp"  # of a file on its way to its name: short, whatever that name's length
_NO_UNNAMED = (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL)  # of file systems that have no such files


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A new file, to be written, which stands at `path` when the block ends, flushed to disk, or not at all: then what
    stood there stays. It has the mode of the file that it replaces.

    Until then it has no name where the file system allows that, so that nothing remains where the process is killed;
    else a name that the next writer in the folder removes. A symbolic link is followed. Raises CqError for what is no
    regular file, FileNotFoundError where the folder is missing, OSError."""
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        raise CqError(f"{path}: is there and is not a regular file, so it cannot be replaced")
    with _swept(path.parent) as folder, _Unfinished(path.parent, folder) as unfinished:
        if path.exists():
            os.fchmod(unfinished.file.fileno(), stat.S_IMODE(path.stat().st_mode))
        yield unfinished.file
        unfinished.file.flush()
        os.fsync(unfinished.file.fileno())
        unfinished.become(path.name)


@contextlib.contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """A new folder, to be filled, which stands at `path` when the block ends, or not at all. Until then it has a name
    that the next writer beside it removes where this process is killed. Raises CqError for what is there and is no
    empty folder, FileNotFoundError where the folder around it is missing, OSError."""
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise CqError(f"{path}: is there and is not an empty folder; choose another name")
    with _swept(path.parent):
        folder, lock = _new_folder(path.parent)
        try:
            yield folder
            os.replace(folder, path)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)


@contextlib.contextmanager
def _swept(path: Path) -> Iterator[int]:
    """A folder, open, without what killed writers left; flushed where the block succeeds. Raises FileNotFoundError."""
    if not path.is_dir():
        raise FileNotFoundError(one_line(f"{path}: no such folder"))
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _sweep(folder)
        yield folder
        os.fsync(folder)  # so that a renaming lasts through a power cut
    finally:
        os.close(folder)


def _new_folder(around: Path) -> tuple[Path, int]:
    """A folder, and what holds it locked while it is open."""
    while True:
        folder = around / _new_name()
        folder.mkdir()
        with contextlib.suppress(FileNotFoundError):
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            _lock(lock)
            if os.fstat(lock).st_nlink:  # nobody has swept it away between the two
                return folder, lock
            os.close(lock)


def write_whole(path: str | os.PathLike, data: bytes) -> None:
    """Writes `path` as `replacing` does."""
    with replacing(path) as file:
        file.write(data)


class _Unfinished:
    """A file in a folder, locked while it lives: without a name, or with one that tells what it is."""

    def __init__(self, path: Path, folder: int):
        self._path, self._folder, self._name = path, folder, ""

    def __enter__(self) -> "_Unfinished":
        self.file = self._unnamed() or self._named()
        return self

    def __exit__(self, *error: object) -> None:
        if self._name:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._name, dir_fd=self._folder)
        self.file.close()

    def become(self, name: str) -> None:
        if not self._name:
            with contextlib.suppress(FileExistsError):
                self._link(name)
                return
            self._name = _new_name()
            self._link(self._name)
        os.replace(self._path / self._name, self._path / name)
        self._name = ""

    def _link(self, name: str) -> None:
        os.link(f"/proc/self/fd/{self.file.fileno()}", name, dst_dir_fd=self._folder, follow_symlinks=True)

    def _unnamed(self) -> BinaryIO | None:
        if not os.path.isdir("/proc/self/fd"):
            return None
        try:
            descriptor = os.open(".", os.O_TMPFILE | os.O_RDWR, 0o666, dir_fd=self._folder)
        except OSError as error:
            if error.errno in _NO_UNNAMED:
                return None
            raise
        return _locked(descriptor)

    def _named(self) -> BinaryIO:
        while True:
            self._name = _new_name()
            descriptor = os.open(self._name, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666, dir_fd=self._folder)
            file = _locked(descriptor)
            if os.fstat(descriptor).st_nlink:  # nobody has swept it away between the two
                return file
            file.close()


def _new_name() -> str:
    return _PREFIX + secrets.token_hex(8) + _SUFFIX


def _lock(descriptor: int) -> None:
    with contextlib.suppress(OSError):  # a file system without locks keeps what killed processes leave
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _locked(descriptor: int) -> BinaryIO:
    _lock(descriptor)
    return os.fdopen(descriptor, "wb")


def _sweep(folder: int) -> None:
    """Removes what killed processes have left in a folder: files and folders of such names that nobody holds locked."""
    for name in os.listdir(folder):
        if name.startswith(_PREFIX) and name.endswith(_SUFFIX):
            with contextlib.suppress(OSError):
                descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if stat.S_ISDIR(os.fstat(descriptor).st_mode):
                        shutil.rmtree(name, dir_fd=folder)
                    else:
                        os.unlink(name, dir_fd=folder)
                finally:
                    os.close(descriptor)
