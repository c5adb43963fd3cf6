"""Which samples a step sees: a function of the seed and the step alone, so that training resumes anywhere. Knows no models."""
from collections.abc import Sequence

import numpy as np

from ..errors import CqError


class Shuffled:
    """Samples in a new order in each epoch."""

    def __init__(self, samples: Sequence, seed: int):
        self.samples, self.seed = samples, seed

    def batch(self, number: int, size: int) -> list:
        """Samples number * size … of the endless row of epochs."""
        n, picked = len(self.samples), []
        orders = {}
        for position in range(number * size, (number + 1) * size):
            epoch, at = divmod(position, n)
            if epoch not in orders:
                orders[epoch] = np.random.default_rng([self.seed, epoch]).permutation(n)
            picked.append(self.samples[orders[epoch][at]])
        return picked


class Windows:
    """Windows of `length` tokens from random places of one stream of ids (tokens,). Raises CqError where it is too short."""

    def __init__(self, stream: np.ndarray, length: int, seed: int):
        if not 2 <= length <= len(stream):
            raise CqError(f"data: windows of {length} tokens from {len(stream)}; need at least 2, and a text at least as long")
        self.stream, self.length, self.seed = stream, length, seed

    def batch(self, number: int, size: int) -> list[np.ndarray]:
        """As Shuffled, drawn with replacement."""
        starts = np.random.default_rng([self.seed, number]).integers(0, len(self.stream) - self.length + 1, size)
        return [self.stream[start:start + self.length] for start in starts]
