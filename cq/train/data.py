"""Which samples a step sees: a function of the seed and the step alone, so that training resumes anywhere; and a text
made ready for it. Knows no models."""

from collections.abc import Sequence

import numpy as np
from tokenizers import Tokenizer

from ..door import own_errors
from ..errors import CqError, FormatError


class Shuffled:
    """Samples in a new order in each epoch."""

    def __init__(self, samples: Sequence, seed: int):
        self.samples, self.seed = samples, seed

    def batch(self, number: int, size: int) -> list:
        """Samples number * size … of the endless row of epochs."""
        n, picked = len(self.samples), []
        orders: dict[int, np.ndarray] = {}
        for position in range(number * size, (number + 1) * size):
            epoch, at = divmod(position, n)
            if epoch not in orders:
                orders[epoch] = np.random.default_rng([self.seed, epoch]).permutation(n)
            picked.append(self.samples[orders[epoch][at]])
        return picked


class Windows:
    """Windows of `length` tokens from random places of one stream of ids (tokens,). Raises CqError where it is too
    short."""

    def __init__(self, stream: np.ndarray, length: int, seed: int):
        if not 2 <= length <= len(stream):
            raise CqError(
                f"data: windows of {length} tokens from {len(stream)}; need at least 2, and a text at least as long"
            )
        self.stream, self.length, self.seed = stream, length, seed

    def batch(self, number: int, size: int) -> list[np.ndarray]:
        """As Shuffled, drawn with replacement."""
        starts = np.random.default_rng([self.seed, number]).integers(0, len(self.stream) - self.length + 1, size)
        return [self.stream[start : start + self.length] for start in starts]

    def consecutive(self) -> list[np.ndarray]:
        """The stream cut into windows one after another, the rest dropped."""
        whole = len(self.stream) // self.length * self.length
        return list(self.stream[:whole].reshape(-1, self.length))


def split_text(data: bytes, name: str) -> tuple[str, str, str]:
    """UTF-8 bytes → the first 90 %, the next 5 % and the last 5 %, cut between characters. Raises FormatError naming
    `name`."""
    cuts = [len(data) * percent // 100 for percent in (90, 95)]
    cuts = [next((i for i in range(cut, len(data)) if data[i] & 0xC0 != 0x80), len(data)) for cut in cuts]
    try:
        first, second, third = (data[a:b].decode() for a, b in zip((0, *cuts), (*cuts, len(data))))
    except UnicodeDecodeError as error:
        raise FormatError(f"{name}: not UTF-8 text: {error.reason}") from None
    return first, second, third


def encode_text(text: str, tokenizer: Tokenizer | None) -> np.ndarray:
    """One stream of ids, int64 (tokens,), without special tokens. Raises CqError where there is no tokenizer."""
    if tokenizer is None:
        raise CqError("tokenizer: none; put a tokenizer.json beside the config.json")
    with own_errors("text: the tokenizer fails"):
        return np.array(tokenizer.encode(text, add_special_tokens=False).ids, np.int64)
