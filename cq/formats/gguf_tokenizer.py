"""The tokenizer that a GGUF file's metadata describes. Must not know tensors."""
import json
from pathlib import Path

from tokenizers import Tokenizer

from ..errors import FormatError, UnsupportedError
from .huggingface import parse_tokenizer, read_tokenizer
from .strangers import brief, flag_of

_CONTROL, _USER_DEFINED = 3, 4  # of tokenizer.ggml.token_type
_LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
           r"|\s+(?!\S)|\s+")


def _bytes(use_regex: bool) -> dict:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


_PRE = {  # tokenizer.ggml.pre → what cuts a text into words, in turn
    "gpt-2": [_bytes(True)],
    "smollm": [{"type": "Digits", "individual_digits": True}, _bytes(True)],
    "llama-bpe": [{"type": "Split", "pattern": {"Regex": _LLAMA3}, "behavior": "Isolated", "invert": False}, _bytes(False)],
}


def read_vocabulary(values: dict, vocab_size: int, folder: Path, where: str) -> Tokenizer | None:
    """The tokenizer of a GGUF file's metadata: byte-level BPE (model "gpt2") with the pre-tokenizers gpt-2, smollm and llama-bpe.
    Where the file has none, or another, that of the tokenizer.json in `folder`.

    Raises UnsupportedError where there is another and no tokenizer.json; FormatError where entries contradict each other."""
    kind, pre = values.get("tokenizer.ggml.model"), values.get("tokenizer.ggml.pre")
    if kind == "gpt2" and isinstance(pre, str) and pre in _PRE:
        return _byte_pairs(values, pre, vocab_size, where)
    beside = read_tokenizer(folder)
    if beside is None and kind is not None:
        raise UnsupportedError(f"{where}: tokenizer {brief(kind)} with pre-tokenizer {brief(pre)} is not implemented, only "
                               f"gpt2 with {', '.join(_PRE)}; put the model's tokenizer.json beside the file")
    return beside


def _byte_pairs(values: dict, pre: str, vocab_size: int, where: str) -> Tokenizer:
    tokens, merges = _list(values, "tokens", str, where), _list(values, "merges", str, where)
    kinds = _list(values, "token_type", int, where) if "tokenizer.ggml.token_type" in values else [1] * len(tokens)
    vocabulary = {token: i for i, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens) or not 0 < len(tokens) <= vocab_size or len(kinds) != len(tokens):
        raise FormatError(f"{where}: {len(tokens)} tokens, {len(vocabulary)} of them different, {len(kinds)} types, "
                          f"for a vocabulary of {vocab_size}")
    pairs = [[token[:1] + left, right] for token in merges for left, _, right in [token[1:].partition(" ")]]
    added = [{"id": i, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
              "special": kind == _CONTROL}
             for i, (token, kind) in enumerate(zip(tokens, kinds)) if kind in (_CONTROL, _USER_DEFINED) and token]
    model = {"type": "BPE", "vocab": vocabulary, "merges": pairs, "ignore_merges": pre == "llama-bpe"}
    whole = {"version": "1.0", "added_tokens": added, "normalizer": None,
             "pre_tokenizer": {"type": "Sequence", "pretokenizers": _PRE[pre]}, "decoder": _bytes(True),
             "post_processor": _surroundings(values, pre, tokens, where), "model": model}
    return parse_tokenizer(json.dumps(whole).encode(), f"{where}: tokenizer")


def _surroundings(values: dict, pre: str, tokens: list[str], where: str) -> dict | None:
    """What puts the beginning and the end of a sequence around its tokens, where the file asks for them."""
    ends = []
    for name, default in (("bos", pre == "llama-bpe"), ("eos", False)):
        wanted = flag_of(values, f"tokenizer.ggml.add_{name}_token", where, default)
        i = values.get(f"tokenizer.ggml.{name}_token_id")
        if wanted and (type(i) is not int or not 0 <= i < len(tokens)):
            raise FormatError(f"{where}: tokenizer.ggml.{name}_token_id {brief(i)} is none of {len(tokens)} tokens")
        ends.append([tokens[i]] if wanted else [])
    if not any(ends):
        return None
    first, last = ([{"SpecialToken": {"id": token, "type_id": 0}} for token in end] for end in ends)
    text, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    special = {token: {"id": token, "ids": [tokens.index(token)], "tokens": [token]} for end in ends for token in end}
    return {"type": "TemplateProcessing", "single": [*first, text, *last],
            "pair": [*first, text, *last, *first, second, *last], "special_tokens": special}


def _list(values: dict, name: str, kind: type, where: str) -> list:
    found = values.get("tokenizer.ggml." + name)
    if not isinstance(found, list) or not all(type(item) is kind for item in found):
        raise FormatError(f"{where}: tokenizer.ggml.{name} must be a list of {kind.__name__}, got {brief(found)}")
    return found
