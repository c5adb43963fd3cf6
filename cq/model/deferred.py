"""Arrays that are made when they are wanted, so that a model may be larger than memory. Knows no files."""

from collections.abc import Callable

import numpy as np
from numpy.typing import DTypeLike


class Deferred:
    """An array of known shape and dtype that `make` gives, the same one each time. Pickled, it is the array itself; to
    processes of this machine what still lies in a file travels as its name (formats/tensors.py)."""

    def __init__(self, shape: tuple[int, ...], dtype: DTypeLike, make: Callable[[], np.ndarray]):
        self.shape, self.dtype, self._make = tuple(shape), np.dtype(dtype), make
        self._kept: np.ndarray | None = None

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    def read(self) -> np.ndarray:
        """The array, for those who look at it once; it is made for them unless it was kept. Must not be written to."""
        return self._make() if self._kept is None else self._kept

    def keep(self) -> np.ndarray:
        """The array, which lasts from now on: one for all who share this."""
        if self._kept is None:
            self._kept = self._make()
        return self._kept

    @property
    def maker(self) -> Callable[[], np.ndarray] | None:
        """What makes it, where it has not been kept."""
        return self._make if self._kept is None else None

    def then(self, shape: tuple[int, ...], change: Callable[[np.ndarray], np.ndarray]) -> "Deferred":
        """What `change` makes of the array, in its own time."""
        return Deferred(shape, self.dtype, lambda: change(self.read()))

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        array = np.asarray(self.read(), dtype)
        return array.copy() if copy else array  # NumPy 1 does not know copy=None

    def __deepcopy__(self, memo: dict) -> "Deferred":
        return self  # nobody writes to it

    def __reduce__(self) -> tuple:
        return np.asarray, (self.read(),)


def read(array: np.ndarray | Deferred) -> np.ndarray:
    """See Deferred.read."""
    return array.read() if isinstance(array, Deferred) else array


def keep(array: np.ndarray | Deferred) -> np.ndarray:
    """See Deferred.keep."""
    return array.keep() if isinstance(array, Deferred) else array
