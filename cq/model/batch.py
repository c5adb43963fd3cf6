"""Sequences of tokens laid one after another, without padding. The door where token ids are checked."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from ..errors import CqError

MAX_TOKENS = 8192  # of one pass: larger calls go through in parts, which changes no result and bounds the memory


class Batch:
    """ids, positions int32 (tokens,); offsets int32 (sequences + 1,); longest sequence in tokens. `observe(site,
    array)`, if given, is shown what flows at each site (calibration). `cache`, if given, is the KVCache that
    holds what came before these tokens, and takes them in."""

    __slots__ = ("ids", "positions", "offsets", "longest", "observe", "cache")

    def __init__(
        self, sequences: list[np.ndarray], observe: Callable[[str, np.ndarray], None] | None = None, cache=None
    ):
        lengths = np.array([len(s) for s in sequences], np.int64)
        self.offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
        self.ids = np.concatenate(sequences).astype(np.int32)
        starts = [0] * len(lengths) if cache is None else cache.lengths
        self.positions = np.concatenate([np.arange(i, i + n, dtype=np.int32) for i, n in zip(starts, lengths)])
        self.longest = int(lengths.max())
        self.observe, self.cache = observe, cache

    def tap(self, site: str, x) -> None:
        if self.observe is not None:
            self.observe(site, x)

    def split(self, x: np.ndarray) -> list[np.ndarray]:
        """(tokens, n) → one copy (len, n) for each sequence."""
        return [x[a:b].copy() for a, b in zip(self.offsets[:-1], self.offsets[1:])]


def batches(sequences: list[np.ndarray], observe: Callable[[str, np.ndarray], None] | None = None) -> Iterator[Batch]:
    """The sequences in order, as many in one batch as MAX_TOKENS holds, but at least one."""
    start = total = 0
    for i, sequence in enumerate(sequences):
        if total and total + len(sequence) > MAX_TOKENS:
            yield Batch(sequences[start:i], observe)
            start, total = i, 0
        total += len(sequence)
    if sequences:
        yield Batch(sequences[start:], observe)


def check_tokens(tokens: Iterable, vocab_size: int, max_positions: int) -> list[np.ndarray]:
    """One 2-D integer array, or an iterable of 1-D ones (ragged) → list of 1-D arrays of ids. Raises CqError for
    anything else, an empty sequence, an id outside 0 … vocab_size - 1, or a sequence longer than max_positions."""
    if isinstance(tokens, (str, bytes)):
        raise CqError("tokens: got a text, wanted arrays of token ids; model.tokenize(text) gives them")
    if isinstance(tokens, np.ndarray) and tokens.ndim != 2:
        raise CqError(
            f"tokens: need a list of 1-D integer arrays or one 2-D array, got an array of shape {tokens.shape}"
        )
    try:
        rows = list(tokens)
    except TypeError:
        raise CqError(
            f"tokens: need a list of 1-D integer arrays or one 2-D array, got {type(tokens).__name__}"
        ) from None
    return [_sequence(row, f"tokens[{i}]", vocab_size, max_positions) for i, row in enumerate(rows)]


def _sequence(row, name: str, vocab_size: int, max_positions: int) -> np.ndarray:
    try:
        ids = np.asarray(row)
    except (ValueError, TypeError) as error:
        raise CqError(f"{name}: not a 1-D integer array ({error})") from None
    if ids.ndim != 1 or (ids.dtype.kind not in "iu" and ids.size):
        raise CqError(f"{name}: need a 1-D integer array, got {ids.dtype} of shape {ids.shape}")
    if not ids.size:
        raise CqError(f"{name}: empty; a sequence needs at least one token")
    if len(ids) > max_positions:
        raise CqError(f"{name}: {len(ids)} tokens, the model takes at most {max_positions}; cut it or split it")
    bad = (ids < 0) | (ids >= vocab_size)
    if bad.any():
        at = int(bad.argmax())
        raise CqError(f"{name}: token id {ids[at]} at position {at} is outside 0 … {vocab_size - 1}")
    return ids
