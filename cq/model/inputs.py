"""What people pass in, as sequences of tokens: columns of texts, ids, and a tokenizer's mappings with their masks.
Knows no tokenizer."""

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import numpy as np

from ..affine import check_unmasked
from ..errors import CqError, UnsupportedError
from .batch import Sequence, check_row, check_tokens
from .config import Config
from .sampling import is_whole

_KEYS = ("input_ids", "attention_mask", "token_type_ids")
Item = TypeVar("Item")


def as_items(samples: Any) -> Any:
    """A column of texts (a NumPy array of strings, a pandas or polars Series, a column of datasets or of pyarrow) as a
    list; anything else as it is. Raises CqError for whole tables, and for bytes."""
    if isinstance(samples, (str, list, tuple, Mapping)):
        return samples
    if isinstance(samples, (bytes, bytearray)):
        raise CqError("texts: got bytes; decode them first, texts are str")
    if hasattr(samples, "columns") or hasattr(samples, "column_names"):
        raise CqError(f"texts: got a table, a {type(samples).__name__}; give one of its columns, such as table['text']")
    if isinstance(samples, np.ndarray):
        if samples.dtype.kind == "S":
            raise CqError("texts: got an array of bytes; decode them first: np.char.decode(texts, 'utf-8')")
        if samples.dtype.kind not in "UTO":
            return samples
        return samples.tolist()
    for as_list in ("to_list", "to_pylist"):  # of pandas and polars, of pyarrow
        if hasattr(samples, as_list):
            return getattr(samples, as_list)()
    return samples


def as_texts(texts: Any, what: str) -> tuple[bool, list[str]]:
    """Whether it is one text; and all of them. Raises CqError, which begins with `what`, for anything else."""
    texts = as_items(texts)
    if isinstance(texts, str):
        return True, [texts]
    listed = list(texts) if is_iterable(texts) else None
    if listed is None or not all(isinstance(text, str) for text in listed):
        raise CqError(f"{what}: need a text, or an iterable of texts")
    return False, listed


def check_batch_size(batch_size: object) -> None:
    """Raises CqError unless it is a positive whole number."""
    if not is_whole(batch_size, 1):
        raise CqError(f"batch_size: need a positive whole number, got {batch_size!r}")


def in_parts(items: list[Item], size: int) -> list[list[Item]]:
    """The items in order, `size` in each part but the last."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def check_samples(samples: Any, name: str) -> None:
    """Raises CqError for what is no iterable of samples: a single text, or a mapping, whose keys it would go over."""
    if isinstance(samples, Mapping):
        raise CqError(
            f"{name}: got a mapping; give its rows as samples, model.tokens_of(mapping), or the texts themselves"
        )
    if not is_iterable(samples):
        raise CqError(f"{name}: need an iterable of texts or token arrays, got {type(samples).__name__}")


def is_pair(item: object) -> bool:
    """Whether this is two texts."""
    return isinstance(item, (list, tuple)) and len(item) == 2 and all(isinstance(text, str) for text in item)


def sequences_of(tokens: Any, config: Config) -> list[np.ndarray | Sequence]:
    """Checked ids, one for each sequence: what `check_tokens` takes, or a mapping as a tokenizer of transformers gives
    it, {"input_ids": …, "attention_mask": …, "token_type_ids": …}, or a list of such. Masked tokens are left out, and
    count where positions do. Raises CqError for any other mapping, and for padded rows without a mask."""
    if isinstance(tokens, Mapping):
        return _rows(tokens, config, "tokens")
    if isinstance(tokens, (list, tuple)) and any(isinstance(item, Mapping) for item in tokens):
        found = [
            _rows(item, config, f"tokens[{i}]")
            if isinstance(item, Mapping)
            else check_tokens([item], config.vocab_size, config.max_positions)
            for i, item in enumerate(tokens)
        ]
        return [sequence for one in found for sequence in one]
    sequences = check_tokens(tokens, config.vocab_size, config.max_positions)
    if not isinstance(tokens, (list, tuple)) or all(isinstance(item, list) for item in tokens):
        _check_padding(sequences, config)
    return sequences


def _check_padding(sequences: list[np.ndarray | Sequence], config: Config) -> None:
    """Raises CqError where rows of one length end in the token that fills a batch."""
    pad, lengths = config.pad_token_id, {len(sequence) for sequence in sequences}
    if pad is None or len(sequences) < 2 or len(lengths) > 1:
        return
    least = 2 if pad in config.eos_token_ids else 1  # one may be the end of a text
    for i, ids in enumerate(sequences):
        if isinstance(ids, np.ndarray) and len(ids) > least and (ids[-least:] == pad).all():
            raise CqError(
                f"tokens[{i}]: ends in the padding token {pad}, and nothing says which tokens count; give the "
                'tokenizer\'s whole result, with its "attention_mask", or a list of arrays without padding'
            )


def _rows(mapping: Mapping, config: Config, name: str) -> list[np.ndarray | Sequence]:
    unknown = [key for key in mapping if key not in _KEYS]
    if "input_ids" not in mapping or unknown:
        raise CqError(
            f"{name}: a mapping must have 'input_ids' and may have 'attention_mask' and 'token_type_ids', as a "
            f"tokenizer gives them; got the keys {list(mapping)!r:.200}; for texts give a list"
        )
    columns = {key: _as_rows(mapping[key], f"{name}: {key}") for key in mapping}
    found = []
    for i, ids in enumerate(columns["input_ids"]):
        for key, rows in columns.items():
            if len(rows) != len(columns["input_ids"]) or len(rows[i]) != len(ids):
                raise CqError(f"{name}: {key} has not the shape of input_ids")
        mask, types = (columns[key][i] if key in columns else None for key in _KEYS[1:])
        found.append(_sequence(ids, mask, types, config, f"{name}: row {i}"))
    return found


def _as_rows(values: Any, name: str) -> list[np.ndarray]:
    """One row, or several of any lengths."""
    try:
        rows = list(values)
        one = bool(rows) and np.ndim(rows[0]) == 0
        for row in (values, *rows):
            check_unmasked(row, name)
        rows = [np.array(np.asarray(row)) for row in ([rows] if one else rows)]  # copies: nobody else may change them
    except CqError:
        raise
    except (TypeError, ValueError) as error:
        raise CqError(f"{name}: need rows of whole numbers ({error})") from None
    for row in rows:
        if row.ndim != 1 or row.size and row.dtype.kind not in "iub":
            raise CqError(f"{name}: need rows of whole numbers, got {row.dtype} of shape {row.shape}")
    return rows


def _sequence(
    ids: np.ndarray, mask: np.ndarray | None, types: np.ndarray | None, config: Config, name: str
) -> np.ndarray | Sequence:
    keep = np.ones(len(ids), bool) if mask is None else mask.astype(bool)
    if mask is not None and not ((mask == 0) | (mask == 1)).all():
        raise CqError(f"{name}: attention_mask must be 0 or 1")
    if not keep.any():
        raise CqError(f"{name}: no token that attention_mask lets count; a sequence needs at least one")
    places = np.flatnonzero(keep)
    checked = check_row(ids[keep], "tokens[0]", config.vocab_size, config.max_positions)
    by_distance = config.position_bias is not None or config.convolution is not None
    if by_distance and places[-1] - places[0] >= len(places):
        raise UnsupportedError(f"{name}: attention_mask leaves out tokens between others, which here count by distance")
    learned = config.rope_theta is None and config.position_table
    first = 0 if learned else places[0]  # others matter only by their distance
    holes = places[-1] - first >= len(places) and not config.position_offset  # RoBERTa's count what is no padding
    positions = (places - first).astype(np.int32) if holes else None
    if positions is not None and positions[-1] >= config.max_positions:
        raise CqError(f"{name}: {positions[-1] + 1} positions, the model takes at most {config.max_positions}")
    return marked(checked, None if types is None else types[keep], positions, config, name)


def marked(
    ids: np.ndarray, types: np.ndarray | list[int] | None, positions: np.ndarray | None, config: Config, name: str
) -> np.ndarray | Sequence:
    """The ids with their types, where the model reads any; a plain array where nothing differs from the usual."""
    if types is not None and config.token_types and config.type_vocab_size > 1 and np.any(types):
        types = np.asarray(types)
        if types.min() < 0 or types.max() >= config.type_vocab_size:
            raise CqError(f"{name}: token types must be 0 … {config.type_vocab_size - 1}, got {types.max()}")
        return Sequence(ids, types.astype(np.int32), positions)
    return ids if positions is None else Sequence(ids, None, positions)


def is_iterable(samples: object) -> bool:
    return isinstance(samples, Iterable) and not isinstance(samples, (str, bytes, Mapping))
