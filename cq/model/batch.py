"""Sequences of tokens laid one after another, without padding. The door where token ids are checked."""

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from ..affine import check_unmasked
from ..errors import CqError

if TYPE_CHECKING:
    from .. import _core
    from .cache import KVCache

MAX_TOKENS = 8192  # of one pass: larger calls go through in parts, which changes no result and bounds the memory
Observe = Callable[[str, Any], None]  # of a site and what flows there: float32 unless quantized layers hand on codes


class Sequence:
    """Ids of tokens int32 (len,) with what a plain array of ids does not say. types: int32 (len,) of token types, or
    None where all are 0. positions: int32 (len,), ascending, or None for 0 … len − 1. unseen: so many of the last
    tokens are seen by no token, themselves included."""

    __slots__ = ("ids", "types", "positions", "unseen")

    def __init__(
        self, ids: np.ndarray, types: np.ndarray | None = None, positions: np.ndarray | None = None, unseen: int = 0
    ):
        self.ids, self.types, self.positions, self.unseen = ids, types, positions, unseen

    def __len__(self) -> int:
        return len(self.ids)


def ids_of(sequence: np.ndarray | Sequence) -> np.ndarray:
    """The ids of a sequence, which say all of it where it is a plain array."""
    return sequence.ids if isinstance(sequence, Sequence) else sequence


class Batch:
    """ids, positions int32 (tokens,); types int32 (tokens,), or None where all are 0; unseen: bool (tokens,), those
    that no token sees, or None where there are none; offsets int32 (sequences + 1,); longest sequence in tokens; span:
    one more than the largest position. `observe(site, array)`, if given, is shown what flows at each site
    (calibration). `cache`, if given, is the KVCache that holds what came before these tokens, and takes them in."""

    __slots__ = ("ids", "positions", "types", "unseen", "offsets", "longest", "span", "observe", "cache")

    def __init__(
        self,
        sequences: list[np.ndarray] | list[np.ndarray | Sequence],
        observe: Observe | None = None,
        cache: "KVCache | None" = None,
    ):
        lengths = np.array([len(s) for s in sequences], np.int64)
        self.offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
        starts = [0] * len(lengths) if cache is None else cache.lengths
        self.positions = np.concatenate([np.arange(i, i + n, dtype=np.int32) for i, n in zip(starts, lengths)])
        self.longest = self.span = int(lengths.max())
        self.types: np.ndarray | None = None
        self.unseen: np.ndarray | None = None
        if any(isinstance(sequence, Sequence) for sequence in sequences):
            self._mark(sequences)
        self.ids = np.concatenate([ids_of(sequence) for sequence in sequences]).astype(np.int32)
        self.observe, self.cache = observe, cache

    def _mark(self, sequences: list[np.ndarray] | list[np.ndarray | Sequence]) -> None:
        """Sets what some of the sequences say of their tokens beside ids."""
        for sequence, begin, end in zip(sequences, self.offsets[:-1], self.offsets[1:]):
            if isinstance(sequence, Sequence) and sequence.types is not None:
                types = np.zeros(len(self.positions), np.int32) if self.types is None else self.types
                types[begin:end] = sequence.types
                self.types = types
            if isinstance(sequence, Sequence) and sequence.positions is not None:
                self.positions[begin:end] = sequence.positions
            if isinstance(sequence, Sequence) and sequence.unseen:
                self.unseen = np.zeros(len(self.positions), bool) if self.unseen is None else self.unseen
                self.unseen[end - sequence.unseen : end] = True
        self.span = int(self.positions.max()) + 1

    def tap(self, site: str, x: "np.ndarray | _core.Coded | None") -> None:
        if self.observe is not None:
            self.observe(site, x)

    def split(self, x: np.ndarray) -> list[np.ndarray]:
        """(tokens, n) → one copy (len, n) for each sequence."""
        return [x[a:b].copy() for a, b in zip(self.offsets[:-1], self.offsets[1:])]


def batches(
    sequences: list[np.ndarray | Sequence], observe: Observe | None = None, apart: int | None = None
) -> Iterator[Batch]:
    """The sequences in order, as many in one batch as MAX_TOKENS holds, but at least one. apart: sequences longer than
    this never share a batch with others."""
    start = total = 0
    for i, sequence in enumerate(sequences):
        mixed = apart is not None and i > 0 and (len(sequence) > apart) != (len(sequences[i - 1]) > apart)
        if total and (mixed or total + len(sequence) > MAX_TOKENS):
            yield Batch(sequences[start:i], observe)
            start, total = i, 0
        total += len(sequence)
    if sequences:
        yield Batch(sequences[start:], observe)


def check_tokens(tokens: Iterable, vocab_size: int, max_positions: int) -> list[np.ndarray | Sequence]:
    """One 2-D integer array, or an iterable of 1-D ones (ragged), or Sequences → list of the same as 1-D arrays of ids,
    copies that nobody else can change after they were checked. Raises CqError for anything else, an empty sequence, an
    id outside 0 … vocab_size - 1, or a sequence longer than max_positions."""
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
    return [_checked(row, f"tokens[{i}]", vocab_size, max_positions) for i, row in enumerate(rows)]


def _checked(row: Any, name: str, vocab_size: int, max_positions: int) -> np.ndarray | Sequence:
    if not isinstance(row, Sequence):
        return check_row(row, name, vocab_size, max_positions)
    ids = check_row(row.ids, name, vocab_size, max_positions)
    more: list[np.ndarray | None] = []
    for what in (row.types, row.positions):  # the kernels look whether these are rows of the tables
        part = None if what is None else np.array(np.asarray(what), np.int32)
        if part is not None and part.shape != ids.shape:
            raise CqError(f"{name}: token types and positions must be as many as ids")
        more.append(part)
    if type(row.unseen) is not int or not 0 <= row.unseen < len(ids):
        raise CqError(f"{name}: need fewer tokens that none sees than tokens, got {row.unseen!r:.100} of {len(ids)}")
    return Sequence(ids, more[0], more[1], row.unseen)


def check_row(row: Any, name: str, vocab_size: int, max_positions: int) -> np.ndarray:
    """The ids of one sequence, as `check_tokens` says."""
    check_unmasked(row, name)
    try:
        ids = np.array(np.asarray(row))
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
