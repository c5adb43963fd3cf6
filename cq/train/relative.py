"""Products of queries and keys with relative positions (He et al. 2020), forward and in reverse. Knows no softmax."""

import numpy as np

from ..model import Config
from ..model.position_bias import position_of
from .parameters import Parameters
from .passes import matmul


class RelativePositions:
    """Of one layer. Arrays of queries, keys and scores are those of sequences of one length: (sequences, kv_heads,
    query heads of each, length, …); of keys the third is 1."""

    def __init__(self, parameters: Parameters, kind: dict, name: str, heads: tuple[int, int], dim: int):
        """name: of the layer's attention. heads: kv_heads, and query heads of each."""
        self.parameters, self.kind, self.heads, self.dim = parameters, kind, heads, dim
        names = {part: f"{name}.relative_{part}" for part in ("keys", "queries")}
        self.names = {part: name for part, name in names.items() if name in parameters.values}
        self.gradients: dict[str, np.ndarray] = {}

    @classmethod
    def of(cls, parameters: Parameters, config: Config, name: str) -> "RelativePositions | None":
        """What the configuration has of it."""
        kind = config.position_bias
        if kind is None or kind["kind"] != "disentangled":
            return None
        heads = config.num_kv_heads, config.num_heads // config.num_kv_heads
        return cls(parameters, kind, name, heads, config.head_dim)

    def _table(self, part: str, first: int, last: int) -> np.ndarray:
        """(kv_heads, query heads of each, dim, positions), of positions first ... last."""
        whole = self.parameters.values[self.names[part]]
        return whole.reshape(*self.heads, self.dim, -1)[..., first : last + 1]

    def forward(self, q: np.ndarray, k: np.ndarray) -> np.ndarray:
        """What is added to products of queries and keys: (sequences, kv_heads, query heads of each, length, length)."""
        length = q.shape[-2]
        place = np.arange(length)
        at = position_of(place[:, None] - place, self.kind)
        first, last = int(at.min()), int(at.max())
        result = np.zeros((*q.shape[:-1], length), q.dtype)
        if "keys" in self.names:
            result += matmul(q, self._table("keys", first, last))[..., place[:, None], at - first]
        if "queries" in self.names:
            result += matmul(k, self._table("queries", first, last))[..., place, at - first]
        return result

    def backward(self, g: np.ndarray, q: np.ndarray, k: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """From the gradient of what `forward` gave to those of q and k; that of positions is kept for `settle`."""
        dq, dk = np.zeros(q.shape, g.dtype), np.zeros(k.shape, g.dtype)
        if "keys" in self.names:
            products, first, last = _by_position(g, self.kind, False)
            matmul(products, self._table("keys", first, last).swapaxes(-1, -2), dq)
            self._add("keys", q, products, first, last)
        if "queries" in self.names:
            products, first, last = _by_position(g, self.kind, True)
            table = self._table("queries", first, last).swapaxes(-1, -2)
            for head in range(self.heads[1]):  # query heads share keys
                one = slice(head, head + 1)
                matmul(products[:, :, one], table[:, one], dk, head > 0)
            self._add("queries", k, products, first, last)
        return dq, dk

    def _add(self, part: str, x: np.ndarray, products: np.ndarray, first: int, last: int) -> None:
        if part not in self.gradients:
            self.gradients[part] = np.zeros_like(self.parameters.values[self.names[part]])
        into = self.gradients[part].reshape(*self.heads, self.dim, -1)[..., first : last + 1]
        into += matmul(x.swapaxes(-1, -2), products).sum(axis=0)

    def settle(self) -> None:
        """Hands on the gradients of positions, after all sequences."""
        for part, gradient in self.gradients.items():
            self.parameters.add(self.names[part], gradient)
        self.gradients.clear()


def _by_position(g: np.ndarray, kind: dict, of_keys: bool) -> tuple[np.ndarray, int, int]:
    """From the gradient of scores (…, queries, keys) that of products (…, queries or keys, positions first … last),
    each the sum of what read it, in the order of distances; first and last."""
    length = g.shape[-1]
    at = position_of(np.arange(1 - length, length), kind)
    rows = np.zeros((*g.shape[:-1], 2 * length), g.dtype)
    rows[..., :length] = g.swapaxes(-1, -2)[..., ::-1, :] if of_keys else g[..., ::-1]
    # read with one column less in each row, those of one distance stand one above the other
    skewed = rows.reshape(*g.shape[:-2], -1)[..., :-length].reshape(*g.shape[:-1], 2 * length - 1)
    skewed = skewed[..., ::-1, :] if of_keys else skewed
    starts = np.flatnonzero(np.concatenate(([True], at[1:] != at[:-1])))
    sums = np.add.reduceat(np.ascontiguousarray(np.moveaxis(skewed, -1, 0)), starts, axis=0)
    products = np.zeros((at[-1] + 1 - at[0], *sums.shape[1:]), g.dtype)
    products[at[starts] - at[0]] = sums
    return np.ascontiguousarray(np.moveaxis(products, 0, -1)), int(at[0]), int(at[-1])
