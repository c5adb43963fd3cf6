"""Data for calibration and evaluation: files or Python objects in, token sequences and scored pairs out. Runs no
model."""

import glob
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tokenizers

from ..door import own_errors
from ..errors import CqError, FormatError, one_line
from ..formats.untrusted import as_name
from ..model import Transformer
from ..model.inputs import as_items, check_samples

Source = str | os.PathLike | Iterable  # of samples: what `read` takes, Samples among it
Progress = Callable[[str, int, int | None], None]  # (what is done, how far, of how much; None: nobody knows)

SHIPPED = Path(__file__).resolve().parent.parent / "data" / "shakespeare"
WINDOW = 512  # tokens of a language model's window, or as many as it has positions for


def shipped_model() -> Path:
    """Folder of the small language model that ships with cq; beside it `calibration.txt` and `evaluation.txt`, which it
    was not trained on."""
    return SHIPPED


@dataclass(frozen=True, eq=False)
class Samples:
    """Token sequences in order: tokens, 1-D int32 arrays of at least one id. With `scores` (float64, NaN = unscored),
    sequences 2i and 2i + 1 are sentence pair i. `sources` names the files they came from. Iterates over its
    sequences."""

    tokens: list[np.ndarray]
    scores: np.ndarray | None = None
    sources: tuple[Path, ...] = ()

    def __len__(self) -> int:
        return len(self.tokens)

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter(self.tokens)

    def fewer(self, tokens: int) -> "Samples":
        """As many, evenly spread, as have about so many tokens together."""
        count = len(self) if self.scores is None else len(self) // 2
        return self.limit(max(1, count * tokens // self.num_tokens)) if self.num_tokens > tokens else self

    def spread(self) -> "Samples":
        """The same sequences in an order in which the first ones, however many, come from all over the whole."""
        count = len(self)
        step = next(step for step in range(max(1, count * 5 // 8), 2 * count + 1) if math.gcd(step, count) == 1)
        return Samples([self.tokens[i * step % count] for i in range(count)], None, self.sources)

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.tokens))

    def described(self) -> dict:
        """What a report says of them: names of files, number of samples, tokens."""
        return {"files": [path.name for path in self.sources], "samples": len(self), "tokens": self.num_tokens}

    def limit(self, n: int) -> "Samples":
        """At most n samples (pairs where there are pairs, else sequences), evenly spread over the whole."""
        if n < 1:
            raise CqError(f"limit must be at least 1 sample, got {n}")
        group = 1 if self.scores is None else 2
        count = len(self.tokens) // group
        keep = np.arange(min(n, count)) * count // min(n, count)
        return Samples(
            [self.tokens[group * i + j] for i in keep for j in range(group)],
            None if self.scores is None else self.scores[keep],
            self.sources,
        )


def read(source: Source, model: Transformer) -> Samples:
    """Samples for `model` (its config and tokenizer are used).

    source: a path, glob or folder of `.tsv` and `.txt` files, or a list of those as Path objects; or an iterable of
    samples, each a text, a 1-D int array of ids, or a list of either (a batch); or Samples, returned as they are. A
    plain str is a path: put a text into a list. `.tsv` holds sentence pairs, score<TAB>sentence<TAB>sentence, the score
    empty where there is none. `.txt` is one stream of tokens cut into windows of min(512, max_positions), the tail
    dropped, for a causal model, and one sample per non-empty line otherwise. Texts are cut to the model's max_length.
    Raises FileNotFoundError; FormatError naming file and line; CqError for samples of another kind, or none at all."""
    if isinstance(source, Samples):
        return source
    if isinstance(source, (str, os.PathLike)):
        return _read_files([source], model)
    source = listed(source)
    if source and all(isinstance(item, os.PathLike) for item in source):
        return _read_files(source, model)
    for item in source:
        if isinstance(item, str) and item.endswith(tuple(_READERS)) and os.path.isfile(item):
            raise CqError(f"the data holds the name of a file as a text: {item!r}; give it as pathlib.Path({item!r})")
    return Samples(
        _not_empty(
            [_tokens(item, model, f"sample {i}") for i, sample in enumerate(source) for item in _items(sample, i)],
            "the data",
        )
    )


def listed(source: Iterable) -> list:
    """The samples of any iterable, so that they can be gone over more than once. Raises CqError for what cannot be
    iterated, and for mappings."""
    if isinstance(source, Mapping):
        check_samples(source, "data")
    try:
        return list(as_items(source))
    except TypeError:
        raise CqError(f"data must be a path or an iterable of samples, got {type(source).__name__}") from None


def files(source: str | os.PathLike) -> list[Path]:
    """The files that a path, a glob or a folder stands for, sorted. A folder stands for the .tsv and .txt files right
    in it."""
    path = as_name(source)
    if path.is_dir():
        found = sorted(p for p in path.iterdir() if p.suffix in _READERS)
        if not found:
            raise FileNotFoundError(one_line(f"{path}: no .tsv or .txt file in this folder"))
        return found
    found = [path] if path.exists() else sorted(map(Path, glob.glob(str(path), recursive=True)))
    if not found:
        raise FileNotFoundError(one_line(f"{path}: no such file, and no file matches it as a pattern"))
    for p in found:
        if p.suffix not in _READERS:
            raise FormatError(f"{p}: wanted a .tsv file of sentence pairs or a .txt file of text, got '{p.suffix}'")
    return found


def _read_files(sources: Iterable[str | os.PathLike], model: Transformer) -> Samples:
    paths = list(dict.fromkeys(path for source in sources for path in files(source)))
    kinds = {path.suffix for path in paths}
    if len(kinds) > 1:
        raise CqError(f"sentence pairs and plain text cannot be mixed: {paths[0]} … {paths[-1]}; give one kind of file")
    parts = [_READERS[path.suffix](path, model) for path in paths]
    tokens = [sequence for sequences, _ in parts for sequence in sequences]
    scores = np.array([score for _, scores in parts for score in scores]) if kinds == {".tsv"} else None
    return Samples(_not_empty(tokens, ", ".join(map(str, paths))), scores, tuple(paths))


def _read_tsv(path: Path, model: Transformer) -> tuple[list[np.ndarray], list[float]]:
    """Two token sequences and one score (NaN where it is empty) per row; blank lines are skipped."""
    tokens, scores = [], []
    for number, line in _lines(path):
        fields = line.split("\t")
        if len(fields) != 3:
            raise FormatError(f"{path}:{number}: wanted score<TAB>sentence<TAB>sentence, got {len(fields)} field(s)")
        try:
            score = float(fields[0]) if fields[0].strip() else np.nan
        except ValueError:
            score = np.inf
        if np.isinf(score) or (np.isnan(score) and fields[0].strip()):
            raise FormatError(f"{path}:{number}: the score must be a number or empty, got {fields[0]!r}")
        for sentence in fields[1:]:
            if not sentence.strip():
                raise FormatError(f"{path}:{number}: a sentence of the pair is empty")
            tokens.append(_tokens(sentence, model, f"{path}:{number}"))
        scores.append(score)
    return tokens, scores


def _read_txt(path: Path, model: Transformer) -> tuple[list[np.ndarray], list[float]]:
    if not model.config.causal:
        return [_tokens(line, model, f"{path}:{number}") for number, line in _lines(path)], []
    size = min(WINDOW, model.config.max_positions)
    with own_errors(f"{path}: the tokenizer fails"):
        stream = np.array(_whole(model.tokenizer).encode(_text(path), add_special_tokens=False).ids, np.int32)
    if len(stream) < size:
        raise CqError(f"{path}: too short for one window: {len(stream)} tokens, the model's window is {size}")
    return list(stream[: len(stream) // size * size].reshape(-1, size)), []


_READERS = {".tsv": _read_tsv, ".txt": _read_txt}


def _whole(tokenizer: tokenizers.Tokenizer | None) -> tokenizers.Tokenizer:
    """The tokenizer without truncation and padding: for a text that is cut into windows only afterwards."""
    if tokenizer is None:
        raise CqError(
            "the model has no tokenizer to read text with: give token ids, or load it from a folder that has "
            "tokenizer.json"
        )
    if tokenizer.truncation is None and tokenizer.padding is None:
        return tokenizer
    tokenizer = tokenizers.Tokenizer.from_str(tokenizer.to_str())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise FormatError(f"{path}:{line}: not UTF-8 text: {error.reason}") from None


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number, from 1, and text of every line that is not blank."""
    for number, line in enumerate(_text(path).split("\n"), 1):
        if line.strip():
            yield number, line.rstrip("\r")


def _items(sample: object, i: int) -> Iterable:
    """A sample's texts and id arrays: itself, or those of a batch (a list, or the rows of a 2-D array)."""
    if isinstance(sample, (list, tuple)):
        if not sample:
            raise CqError(f"sample {i} is an empty batch")
        return sample
    return sample if isinstance(sample, np.ndarray) and sample.ndim == 2 else [sample]


def _tokens(item: object, model: Transformer, name: str) -> np.ndarray:
    """One text or array of ids as (n,) int32, n ≥ 1. `name` is for messages."""
    if isinstance(item, str):
        ids = np.asarray(model.tokenize(item), np.int32)
        if not len(ids):
            raise CqError(f"{name}: the text {item[:40]!r} has no tokens")
        return ids
    vocab_size = model.config.vocab_size
    item = np.array(item) if isinstance(item, np.ndarray) else item  # a copy, which nobody changes once it is checked
    if not isinstance(item, np.ndarray) or item.ndim != 1 or item.dtype.kind not in "iu":
        got = f"a {item.dtype} array of shape {item.shape}" if isinstance(item, np.ndarray) else type(item).__name__
        raise CqError(f"{name}: wanted a text, a 1-D int array of token ids, or a list of either, got {got}")
    if not item.size or item.min() < 0 or item.max() >= vocab_size:
        raise CqError(
            f"{name}: token ids must be 0…{vocab_size - 1}, at least one, got "
            + (f"{item.min()}…{item.max()}" if item.size else "none")
        )
    return item.astype(np.int32, copy=False)


def _not_empty(tokens: list[np.ndarray], name: str) -> list[np.ndarray]:
    if not tokens:
        raise CqError(f"{name}: no samples in it")
    return tokens
