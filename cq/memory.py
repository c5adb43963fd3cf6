"""Memory for packed weights, which products read from end to end. Knows nothing else."""

import mmap
import threading
from contextlib import suppress

import numpy as np

_HUGE_PAGE, _SHARED, _ALONE = 2 << 20, 8 << 20, 2 << 20


class _Shared(threading.local):
    """Where this thread's small weights lie side by side."""

    memory, used = np.empty(0, np.int8), 0


_shared = _Shared()


def aligned(size: int) -> np.ndarray:
    """int8 (size,), 64-byte aligned, of zeros. Weights are in huge pages where the system gives them: those of
    SmolLM2-135M fill some 33,000 small pages, or 70 huge ones.

    Raises:
        MemoryError: There is none.
    """
    if size > _ALONE:
        return _huge(size)
    if _shared.used + size > _shared.memory.size:
        _shared.memory, _shared.used = _huge(_SHARED), 0
    begin = _shared.used
    _shared.used += -(-size // 64) * 64
    return _shared.memory[begin : begin + size]


def _huge(size: int) -> np.ndarray:
    """Straight from the system: among malloc's blocks weights would keep what is freed between them."""
    whole = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    try:
        pages = mmap.mmap(-1, whole + _HUGE_PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError:
        raise MemoryError(f"weights: no memory for {size:,} bytes") from None
    begin = -np.frombuffer(pages, np.int8).ctypes.data % _HUGE_PAGE
    with suppress(OSError):  # only a wish
        pages.madvise(mmap.MADV_HUGEPAGE, begin, whole // _HUGE_PAGE * _HUGE_PAGE)
    return np.frombuffer(pages, np.int8, size, begin)
