"""Parameters and their gradients: named views into two flat arrays, so that the optimizer walks memory once. Knows no
layers and no optimizer."""

import numpy as np

from ..errors import CqError
from ..model import Config
from .passes import matmul, rescale


class Parameters:
    """values, gradients: name → view. Flat order: what decays (matrices and tables), norms and biases, learned scales.

    weights: canonical name → array, copied. scales: name → (initial scales, unit step: the part of itself by which a
    learning rate of 1 moves each). vectors: how many times as far as matrices norms and biases move. row_rates: name →
    how many times as far each row of a matrix moves, float32 (rows,). dtype: float32, or float64 for checks of
    gradients."""

    def __init__(
        self,
        weights: dict[str, np.ndarray],
        scales: dict[str, tuple[np.ndarray, float]] | None = None,
        vectors: float = 1.0,
        dtype: type = np.float32,
        row_rates: dict[str, np.ndarray] | None = None,
    ):
        self.vectors, scales, row_rates = vectors, scales or {}, row_rates or {}
        arrays = [item for wanted in (True, False) for item in weights.items() if (item[1].ndim > 1) == wanted]
        arrays += [(name, scale) for name, (scale, _) in scales.items()]
        sizes = [array.size for _, array in arrays]
        self.flat: np.ndarray = np.empty(sum(sizes), dtype)
        self.flat_gradient: np.ndarray = np.zeros(sum(sizes), dtype)
        self.matrices = [
            (array.size, row_rates.get(name)) for name, array in arrays if name in weights and array.ndim > 1
        ]
        self.plain = sum(array.size for array in weights.values())  # from here on: scales
        self.units: np.ndarray = np.array([unit for scale, unit in scales.values() for _ in range(scale.size)], dtype)
        self.values: dict[str, np.ndarray] = {}
        self.gradients: dict[str, np.ndarray] = {}
        self._written: set[str] = set()
        start = 0
        for (name, array), size in zip(arrays, sizes):
            for flat, views in ((self.flat, self.values), (self.flat_gradient, self.gradients)):
                views[name] = flat[start : start + size].reshape(array.shape)
            self.values[name][...] = array
            start += size

    def clear(self) -> None:
        """Forgets the gradients; the next one of each name is written over what stands there."""
        self._written.clear()

    def add(self, name: str, gradient: np.ndarray) -> None:
        """Adds a gradient of the parameter's shape."""
        if name in self._written:
            self.gradients[name] += gradient
        else:
            self.gradients[name][...] = gradient
            self._written.add(name)

    def add_product(self, name: str, a: np.ndarray, b: np.ndarray, factor: float | None = None) -> None:
        """Adds factor * (a @ b); the first product goes straight into its place."""
        first = name not in self._written
        if factor is None:
            matmul(a, b, self.gradients[name], not first)
        else:
            product = matmul(a, b, self.gradients[name] if first else None)
            rescale(product, factor, out=product)
            if not first:
                self.gradients[name] += product
        self._written.add(name)

    def add_rows(self, name: str, rows: np.ndarray, gradient: np.ndarray) -> None:
        """Adds gradient[i] to row rows[i] of a table: (n,) ids, (n, columns). Sums of equal ids run in the order of
        i."""
        if name not in self._written:
            self.gradients[name][...] = 0
            self._written.add(name)
        order = np.argsort(rows, kind="stable")
        ordered = rows[order]
        starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
        self.gradients[name][ordered[starts]] += np.add.reduceat(gradient[order], starts, axis=0)

    def settle(self) -> None:
        """Zeros for what no gradient reached."""
        for name, gradient in self.gradients.items():
            if name not in self._written:
                gradient[...] = 0


def check_shapes(config: Config, weights: dict[str, np.ndarray]) -> None:
    """Raises CqError unless the weights that `config` asks for are there, of its shapes."""
    for name, shape in config.shapes().items():
        found = getattr(weights.get(name), "shape", None)
        if found != shape:
            raise CqError(f"weights: {name!r}: need an array of shape {shape}, got {found}")
