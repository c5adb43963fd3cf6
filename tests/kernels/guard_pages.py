"""A NumPy allocator between guard pages: an array ends at the end of a page or starts at the start of one, with pages
on both sides that no one may touch, so a kernel that reads or writes beside an array of any kind, given or new,
crashes. (An address sanitizer does not see masked vector accesses.) Must not know what the arrays are for."""

import ctypes
import mmap

from numpy._core import _multiarray_umath

PAGE = mmap.PAGESIZE
SET_HANDLER = 304  # PyDataMem_SetHandler's place in NumPy's C interface, fixed since 1.22
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class Allocator:
    """Places arrays while installed. at_end: against the guard page behind them, else the one before. fill: the byte
    that fresh memory is made of, so that results which depend on unwritten bytes differ between two of them. A region
    that was freed serves the next array of as many pages: otherwise system calls are most of the time."""

    def __init__(self):
        self.at_end, self.fill = True, 0
        self._regions: dict[int, tuple[int, int, int]] = {}  # array → start of its pages, their bytes, its own bytes
        self._free_regions: dict[int, list[int]] = {}  # bytes of pages → starts
        self._handler = _Handler(
            b"guard pages",
            1,
            None,
            _MALLOC(self._malloc),
            _CALLOC(self._calloc),
            _REALLOC(self._realloc),
            _FREE(self._free),
        )

    def install(self) -> None:
        """For all arrays that are made from now on, for the rest of the process."""
        new, get = ctypes.pythonapi.PyCapsule_New, ctypes.pythonapi.PyCapsule_GetPointer
        new.restype, new.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
        get.restype, get.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
        table = ctypes.cast(get(_multiarray_umath._ARRAY_API, None), ctypes.POINTER(ctypes.c_void_p))
        set_handler = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.py_object)(table[SET_HANDLER])
        self._capsule = new(ctypes.addressof(self._handler), b"mem_handler", None)
        set_handler(self._capsule)

    def _malloc(self, _context, size: int, fill: int | None = None) -> int:
        room = -(-max(size, 1) // PAGE) * PAGE
        free = self._free_regions.get(room)
        start = free.pop() if free else _region(room)
        ctypes.memset(start, self.fill if fill is None else fill, room)
        pointer = start + room - size if self.at_end else start
        self._regions[pointer] = start, room, size
        return pointer

    def _calloc(self, context, count: int, size: int) -> int:
        return self._malloc(context, count * size, 0)

    def _realloc(self, context, old: int | None, size: int) -> int:
        new = self._malloc(context, size)
        if old:
            ctypes.memmove(new, old, min(size, self._regions[old][2]))
            self._free(context, old, 0)
        return new

    def _free(self, _context, pointer: int | None, _size: int) -> None:
        if pointer:
            start, room, _ = self._regions.pop(pointer)
            self._free_regions.setdefault(room, []).append(start)


def _region(room: int) -> int:
    """The start of new pages of `room` bytes between two that no one may touch."""
    region = _libc.mmap(
        None, room + 2 * PAGE, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0
    )
    start = region + PAGE
    if _libc.mprotect(region, PAGE, 0) or _libc.mprotect(start + room, PAGE, 0):
        raise OSError("mprotect failed")
    return start


_VOID, _SIZE = ctypes.c_void_p, ctypes.c_size_t
_MALLOC = ctypes.PYFUNCTYPE(_VOID, _VOID, _SIZE)
_CALLOC = ctypes.PYFUNCTYPE(_VOID, _VOID, _SIZE, _SIZE)
_REALLOC = ctypes.PYFUNCTYPE(_VOID, _VOID, _VOID, _SIZE)
_FREE = ctypes.PYFUNCTYPE(None, _VOID, _VOID, _SIZE)


class _Handler(ctypes.Structure):
    """PyDataMem_Handler"""

    _fields_ = [
        ("name", ctypes.c_char * 127),
        ("version", ctypes.c_uint8),
        ("context", _VOID),
        ("malloc", _MALLOC),
        ("calloc", _CALLOC),
        ("realloc", _REALLOC),
        ("free", _FREE),
    ]
