"""What a stranger's tokenizer may do, checked on its JSON before the library sees it, or before the library uses what
the caller hands in: how much longer it makes a text, which ids it gives, how long its regular expressions take. What
passes neither exhausts memory nor panics for a reason that is known here."""

import base64
import binascii
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from ..errors import CqError, FormatError, UnsupportedError, brief
from .regex_bounds import check_regex

MAX_GROWTH = 256  # times that a text may grow; in the wild 3 to 20
MAX_ID = 1 << 22  # the largest vocabularies have near a million tokens
MAX_PARTS = 64  # of one chain of normalizers, pre-tokenizers, post-processors or decoders; in the wild up to 10
MAX_AFFIX = 64  # characters that a model puts before or behind pieces of words
MAX_WORD = 1000  # characters of a word that is cut into pieces; usual are 100
MAX_AROUND = 256  # tokens that stand around a text
_CHAINS = {
    "normalizer": "normalizers",
    "pre_tokenizer": "pretokenizers",
    "post_processor": "processors",
    "decoder": "decoders",
}


def check_given(tokenizer: object) -> None:
    """A tokenizer that the caller hands in as an object. Raises CqError."""
    if not isinstance(tokenizer, Tokenizer):
        more = "; give its backend_tokenizer" if hasattr(tokenizer, "backend_tokenizer") else ""
        raise CqError(f"tokenizer: need a tokenizers.Tokenizer, got {type(tokenizer).__name__:.100}{more}")
    for token, i in tokenizer.get_vocab().items():  # before its JSON, which is written with room for the largest
        if i >= MAX_ID:
            raise CqError(f"tokenizer: the id of {brief(token)} must be below {MAX_ID}, it is {i}")
    try:
        text = tokenizer.to_str()
    except Exception:  # a part is written in Python; then it is the caller's own, not a stranger's
        return
    check_tokenizer(json.loads(text), "tokenizer")


def check_tokenizer(values: dict, where: str) -> None:
    """values: a tokenizer.json. Raises FormatError, UnsupportedError; what else is wrong with it the library says."""
    for chain, inside in _CHAINS.items():
        parts = list(parts_of(values.get(chain), inside, f"{where}: {chain}"))
        growth = 1.0
        for part in parts:
            growth *= _growth(part, f"{where}: {chain}")
            if growth > MAX_GROWTH:
                raise UnsupportedError(f"{where}: {chain}: would make texts more than {MAX_GROWTH} times as long")
    _check_model(values.get("model"), f"{where}: model")
    for token in _list(values.get("added_tokens")):
        _check_id(token.get("id") if isinstance(token, dict) else None, f"{where}: added_tokens")


def parts_of(value: Any, inside: str, where: str) -> Iterator[dict]:
    """A chain's members, those of chains in it included."""
    waiting, count = [value], 0
    while waiting:
        part = waiting.pop()
        if not isinstance(part, dict):
            continue
        count += 1
        if count > MAX_PARTS:
            raise UnsupportedError(f"{where}: more than {MAX_PARTS} steps")
        yield part
        for key in {inside, *_CHAINS.values()}:
            waiting += _list(part.get(key))


def _growth(part: dict, where: str) -> float:
    """How many times longer a text, or a list of tokens, is behind this part, at most."""
    kind, pattern = part.get("type"), part.get("pattern")
    regex = pattern.get("Regex") if isinstance(pattern, dict) else None
    if isinstance(regex, str):
        check_regex(regex, where)
    if kind == "Replace":
        content = len(_text(part, "content").encode("utf-8", "replace"))
        string = pattern.get("String") if isinstance(pattern, dict) else None
        if isinstance(string, str) and string:
            return max(1.0, content / len(string.encode("utf-8", "replace")))
        return 1.0 + content  # an expression, or nothing, may match at every character
    if kind == "Prepend":
        return 1.0 + len(_text(part, "prepend").encode("utf-8", "replace"))
    if kind == "Precompiled":
        return _check_charsmap(_text(part, "precompiled_charsmap"), where)
    if kind == "FixedLength" and part.get("length", 5) == 0:
        raise FormatError(f"{where}: FixedLength: a length of 0")
    if kind == "TemplateProcessing":
        return _check_template(part, where)
    if kind in ("BertProcessing", "RobertaProcessing"):
        for name in ("sep", "cls"):
            _check_id((_list(part.get(name)) + [None, None])[1], f"{where}: {name}")
    return 1.0


def _check_template(part: dict, where: str) -> float:
    tokens = part.get("special_tokens")
    tokens = tokens if isinstance(tokens, dict) else {}
    for token in tokens.values():
        for i in _list(token.get("ids") if isinstance(token, dict) else None):
            _check_id(i, where)
    most = 1
    for name in ("single", "pair"):
        around, texts = 0, {"A": 0, "B": 0}
        pieces = part.get(name)
        for piece in _list(pieces):
            special = piece.get("SpecialToken") if isinstance(piece, dict) else None
            text = piece.get("Sequence") if isinstance(piece, dict) else None
            if isinstance(special, dict):
                if special.get("id") not in tokens:
                    raise FormatError(f"{where}: {name}: no special token {brief(special.get('id'))}")
                token = tokens[special["id"]]
                around += max(1, len(_list(token.get("ids") if isinstance(token, dict) else None)))
            if isinstance(text, dict) and text.get("id") in texts:
                texts[text["id"]] += 1
            for kind in (special, text):
                if isinstance(kind, dict):
                    _check_id(kind.get("type_id", 0), f"{where}: {name}")
        if around > MAX_AROUND:
            raise UnsupportedError(f"{where}: {name}: more than {MAX_AROUND} tokens around a text")
        most = max(most, *texts.values())
    return float(most)


def _check_model(model: Any, where: str) -> None:
    if not isinstance(model, dict):
        return
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, dict):
        seen = set[int]()
        for token, i in vocabulary.items():
            if type(i) is not int or not 0 <= i < MAX_ID:
                raise FormatError(f"{where}: vocab: the id of {brief(token)} must be 0 … {MAX_ID - 1}, got {brief(i)}")
            if i in seen and "merges" in model:  # which of the two the library merges is left to chance
                raise FormatError(f"{where}: vocab: {brief(token)} has the id of another token, {i}")
            seen.add(i)
    for name in ("continuing_subword_prefix", "end_of_word_suffix"):
        if isinstance(model.get(name), str) and len(model[name]) > MAX_AFFIX:
            raise UnsupportedError(f"{where}: {name}: more than {MAX_AFFIX} characters")
    prefix = model.get("continuing_subword_prefix")
    if isinstance(prefix, str) and prefix and "merges" in model:  # the library cuts it off unseen
        for pair in _list(model["merges"]):
            second = (pair.split(" ", 1) if isinstance(pair, str) else _list(pair))[-1:]
            if not all(isinstance(part, str) and part.startswith(prefix) for part in second):
                raise FormatError(f"{where}: merges: {brief(pair)} does not go on with {brief(prefix)}")
    most = model.get("max_input_chars_per_word")
    if type(most) is int and most > MAX_WORD:
        raise UnsupportedError(f"{where}: max_input_chars_per_word: at most {MAX_WORD}, got {most}")


def _check_id(value: Any, where: str) -> None:
    if type(value) is not int or not 0 <= value < MAX_ID:
        raise FormatError(f"{where}: an id must be 0 … {MAX_ID - 1}, got {brief(value)}")


def _check_charsmap(text: str, where: str) -> float:
    """SentencePiece's table of replacements: a double array of uint32 (Aoe 1989) and the strings that its leaves point
    to, each ending in a zero byte. Every step from every cell must stay inside."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise FormatError(f"{where}: Precompiled: not base64") from None
    size = int.from_bytes(data[:4], "little")
    if len(data) < 4 or size % 4 or not 0 < size <= len(data) - 4:
        raise FormatError(f"{where}: Precompiled: not a table of replacements")
    cells, strings = np.frombuffer(data, "<u4", size // 4, 4).astype(np.int64), data[4 + size :]
    offsets = (cells >> 10) << ((cells & (1 << 9)) >> 6)
    inner = cells < 1 << 31  # the others are leaves, which no byte leads to
    inner[0] = True
    to = (np.arange(len(cells)) ^ offsets)[inner]
    if ((to | 255) >= len(cells)).any() or not strings.endswith(b"\0"):
        raise FormatError(f"{where}: Precompiled: leads out of its table")
    values = cells[to[(cells[inner] >> 8 & 1) == 1]] & (2**31 - 1)
    starts = np.frombuffer(strings, np.uint8)
    if values.size and (values.max() >= len(strings) or ((starts[values] & 0xC0) == 0x80).any()):
        raise FormatError(f"{where}: Precompiled: leads out of its strings")
    try:
        strings.decode("utf-8")
    except UnicodeDecodeError:
        raise FormatError(f"{where}: Precompiled: its strings are not UTF-8") from None
    ends = np.flatnonzero(starts == 0)
    return max(1.0, float(np.diff(ends, prepend=-1).max() - 1) / 3)  # characters of 3 bytes have the longest ones


def _text(part: dict, name: str) -> str:
    value = part.get(name)
    return value if isinstance(value, str) else ""


def _list(value: Any) -> list:
    return value if isinstance(value, list) else []
