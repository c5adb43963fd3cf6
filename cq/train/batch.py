"""Sequences packed for training: sorted by length, so that equal lengths lie together and attention takes them at
once."""

import numpy as np


class Packed:
    """ids, positions (tokens,); order: which of the given sequences comes first, second ...; starts (sequences + 1,);
    groups: (slice of tokens, length) of each run of equally long sequences."""

    def __init__(self, sequences: list[np.ndarray]):
        lengths = np.array([len(s) for s in sequences])
        self.order = np.argsort(lengths, kind="stable")
        lengths = lengths[self.order]
        self.starts = np.concatenate(([0], np.cumsum(lengths)))
        self.ids = np.concatenate([sequences[i] for i in self.order]).astype(np.int64)
        self.positions = np.concatenate([np.arange(n) for n in lengths])
        edges = np.flatnonzero(np.diff(lengths, prepend=-1, append=-1))
        self.groups = [
            (slice(int(self.starts[a]), int(self.starts[b])), int(lengths[a])) for a, b in zip(edges[:-1], edges[1:])
        ]

    def split(self, x: np.ndarray) -> list[np.ndarray]:
        """(tokens, n) → views (len, n), one for each sequence, in the order they were given."""
        parts = np.split(x, self.starts[1:-1])
        back = np.empty_like(self.order)
        back[self.order] = np.arange(len(back))
        return [parts[i] for i in back]

    def join(self, parts: list[np.ndarray]) -> np.ndarray:
        """The inverse of `split`: a new array (tokens, n)."""
        joined = np.empty((int(self.starts[-1]), parts[0].shape[1]), parts[0].dtype)
        # which would lie by columns where parts repeat one row
        return np.concatenate([parts[i] for i in self.order], out=joined)
