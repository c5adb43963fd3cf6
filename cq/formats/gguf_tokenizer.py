"""The tokenizer that a GGUF file's metadata describes. Must not know tensors."""

import json
import re
from pathlib import Path

from tokenizers import Tokenizer

from ..errors import FormatError, UnsupportedError, brief
from .tokenizer_files import parse_tokenizer, read_tokenizer
from .untrusted import flag_of

MAX_PIECE = 128  # characters of a SentencePiece vocabulary's pieces; the longest in the wild have 16 to 48
MAX_PAIRS = 8  # ways to merge two pieces into a third, per token of the vocabulary; in the wild there are 2

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4  # of tokenizer.ggml.token_type
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CAPITAL = re.compile("[A-Z]")
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"


def _cased(after: str, digits: str) -> str:
    """Words that begin where a small letter is followed by a capital. after: what stays with a word; digits: how many
    make one."""
    begin = r"[^\r\n\p{L}\p{N}]?"
    words = f"{begin}{_UPPER}*{_LOWER}+{after}|{begin}{_UPPER}+{_LOWER}*{after}|{digits}"
    return words + r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _bytes(use_regex: bool) -> dict:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def _split(regex: str) -> list[dict]:
    return [{"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}, _bytes(False)]


_PRE = {  # tokenizer.ggml.pre → what cuts a text into words, in turn
    "gpt-2": [_bytes(True)],
    "smollm": [{"type": "Digits", "individual_digits": True}, _bytes(True)],
    "llama-bpe": _split(_WORDS % r"\p{N}{1,3}"),
    "qwen2": _split(_WORDS % r"\p{N}"),
    "deepseek-r1-qwen": _split(_WORDS % r"\p{N}"),
    "tekken": _split(_cased("", r"\p{N}")),
    "gpt-4o": _split(_cased("(?i:'s|'t|'re|'ve|'m|'ll|'d)?", r"\p{N}{1,3}")),
    "dbrx": _split(_WORDS % r"\p{N}{1,3}"),
    "olmo": [_bytes(True)],
}
_ALIASES = {
    "llama3": "llama-bpe",
    "llama-v3": "llama-bpe",
    "roberta-bpe": "gpt-2",
    "starcoder": "smollm",
    "refact": "smollm",
    "smaug-bpe": "dbrx",
    "mpt": "olmo",
    "modern-bert": "olmo",
}
# general.architecture → what goes for one that is not said
_UNSAID = {"gpt2": "gpt-2", "qwen2": "qwen2", "qwen3": "qwen2"}
_WHOLE = ("llama-bpe", "tekken")  # words that are tokens stay whole, whatever the merges; texts begin with bos
_COMPOSED = ("qwen2", "olmo")  # texts are brought to Unicode's NFC


def read_vocabulary(values: dict, vocab_size: int, folder: Path, where: str) -> Tokenizer | None:
    """The tokenizer of a GGUF file's metadata: byte-level BPE (model "gpt2") with the pre-tokenizers of `_PRE` and
    `_ALIASES`, SentencePiece's BPE by scores (model "llama"), or WordPiece (model "bert"). Where the
    file has none, or another, that of the tokenizer.json in `folder`.

    Raises UnsupportedError where there is another and no tokenizer.json; FormatError where entries contradict each
    other."""
    kind, pre = values.get("tokenizer.ggml.model"), values.get("tokenizer.ggml.pre", "default")
    if kind == "llama":
        return _pieces(values, vocab_size, where)
    if kind == "bert":
        return _word_pieces(values, vocab_size, where)
    if pre == "default":
        pre = _UNSAID.get(values["general.architecture"], pre)
    pre = _ALIASES.get(pre, pre) if isinstance(pre, str) else pre
    if kind == "gpt2" and isinstance(pre, str) and pre in _PRE:
        return _byte_pairs(values, pre, vocab_size, where)
    beside = read_tokenizer(folder)
    if beside is None and kind is not None:
        raise UnsupportedError(
            f"{where}: tokenizer {brief(kind)} with pre-tokenizer {brief(pre)} is not implemented, only "
            f"gpt2 with {', '.join(_PRE)}, llama and bert; put the model's tokenizer.json beside the file"
        )
    return beside


def _byte_pairs(values: dict, pre: str, vocab_size: int, where: str) -> Tokenizer:
    tokens, kinds = _tokens(values, vocab_size, where)
    merges = _list(values, "merges", str, where)
    pairs = [(token[:1] + left, right) for token in merges for left, _, right in [token[1:].partition(" ")]]
    model = {"type": "BPE", "vocab": _numbered(tokens), "merges": _merges(pairs), "ignore_merges": pre in _WHOLE}
    return _built(
        tokens,
        kinds,
        where,
        _surroundings(values, pre in _WHOLE, tokens, where),
        model=model,
        decoder=_bytes(True),
        normalizer={"type": "NFC"} if pre in _COMPOSED else None,
        pre_tokenizer={"type": "Sequence", "pretokenizers": _PRE[pre]},
    )


def _merges(pairs: list[tuple[str, str]]) -> list[str] | list[tuple[str, str]]:
    """As strings, which every version of tokenizers reads, unless one would be read otherwise: pairs need 0.20."""
    if any(" " in left or " " in right or left.startswith("#version") for left, right in pairs):
        return pairs
    return [f"{left} {right}" for left, right in pairs]


def _pieces(values: dict, vocab_size: int, where: str) -> Tokenizer:
    """SentencePiece's BPE (Kudo and Richardson 2018): of neighbours that make a piece, those are merged whose piece has
    the best score; what is no piece becomes its bytes. Spaces are ▁, and one is put before a text unless the file says
    otherwise."""
    tokens, kinds = _tokens(values, vocab_size, where)
    scores = _list(values, "scores", float, where)
    if len(scores) != len(tokens) or any(score != score for score in scores):
        raise FormatError(
            f"{where}: tokenizer.ggml.scores must be {len(tokens)} numbers, one per token, got {brief(scores)}"
        )
    vocabulary = _numbered(tokens)
    # (-score, id of the piece, -length of the left, left, right): of equals the first piece of the vocabulary
    pairs = []
    for i, (piece, kind) in enumerate(zip(tokens, kinds)):
        if kind != _NORMAL:
            continue
        if len(piece) > MAX_PIECE:
            raise FormatError(
                f"{where}: the piece {brief(piece)} of {len(piece)} characters; at most {MAX_PIECE} are read"
            )
        pairs += [
            (-scores[i], i, -cut, piece[:cut], piece[cut:])
            for cut in range(1, len(piece))
            if piece[:cut] in vocabulary and piece[cut:] in vocabulary
        ]
        if len(pairs) > MAX_PAIRS * len(tokens):
            raise FormatError(
                f"{where}: more than {MAX_PAIRS * len(tokens)} ways to merge pieces of {len(tokens)} tokens"
            )
    pairs.sort()
    unknown = next((token for token, kind in zip(tokens, kinds) if kind == _UNKNOWN), None)
    model = {
        "type": "BPE",
        "vocab": vocabulary,
        "merges": _merges([pair[3:] for pair in pairs]),
        "unk_token": unknown,
        "fuse_unk": True,
        "byte_fallback": True,
    }
    normalizers, decoders = [_replace(" ", "▁")], [_replace("▁", " "), {"type": "ByteFallback"}, {"type": "Fuse"}]
    if flag_of(values, "tokenizer.ggml.add_space_prefix", where, True):
        normalizers.insert(0, {"type": "Prepend", "prepend": "▁"})
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return _built(
        tokens,
        kinds,
        where,
        _surroundings(values, True, tokens, where),
        model=model,
        pre_tokenizer=None,
        decoder={"type": "Sequence", "decoders": decoders},
        normalizer={"type": "Sequence", "normalizers": normalizers},
    )


def _word_pieces(values: dict, vocab_size: int, where: str) -> Tokenizer:
    """BERT's WordPiece. The file has ▁ before what begins a word, instead of ## before what does not; control tokens
    are as they are. Of files that do not say whether texts are lowercased, those are whose vocabulary has no
    capitals."""
    tokens, kinds = _tokens(values, vocab_size, where)
    texts = [_word_piece(token, kind) for token, kind in zip(tokens, kinds)]
    vocabulary = _numbered(texts)
    if len(vocabulary) != len(texts):
        raise FormatError(f"{where}: {len(texts)} tokens, but only {len(vocabulary)} different word pieces")
    cased = any(kind == _NORMAL and _CAPITAL.search(text) for text, kind in zip(texts, kinds))
    lowercase = flag_of(values, "tokenizer.ggml.normalizer.lowercase", where, not cased)
    accents = "tokenizer.ggml.normalizer.strip_accents"
    first, last, unknown = (
        _found(values, names, text, texts, where)
        for names, text in ((("bos", "cls"), "[CLS]"), (("seperator", "eos"), "[SEP]"), (("unknown",), "[UNK]"))
    )  # seperator: as GGUF spells it
    return _built(
        texts,
        kinds,
        where,
        {"type": "BertProcessing", "sep": [last, vocabulary[last]], "cls": [first, vocabulary[first]]},
        model={
            "type": "WordPiece",
            "vocab": vocabulary,
            "unk_token": unknown,
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
        },
        normalizer={
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "lowercase": lowercase,
            "strip_accents": flag_of(values, accents, where, lowercase),
        },
        pre_tokenizer={"type": "BertPreTokenizer"},
        decoder={"type": "WordPiece", "prefix": "##", "cleanup": True},
    )


def _word_piece(token: str, kind: int) -> str:
    """The file's token as WordPiece spells it."""
    if kind in (_UNKNOWN, _CONTROL):
        return token
    begins = token.startswith("▁") and token != "▁"
    return token[1:] if begins else "##" + token


def _found(values: dict, names: tuple[str, ...], text: str, tokens: list[str], where: str) -> str:
    """The token of the first of these entries that is there, or else `text`, which must then be a token."""
    name = next((name for name in names if f"tokenizer.ggml.{name}_token_id" in values), None)
    if name is None and text not in tokens:
        raise FormatError(f"{where}: no entry tokenizer.ggml.{names[0]}_token_id and no token {text}")
    return text if name is None else _token(values, name, tokens, where)


def _token(values: dict, name: str, tokens: list[str], where: str) -> str:
    i = values.get(f"tokenizer.ggml.{name}_token_id")
    if type(i) is not int or not 0 <= i < len(tokens):
        raise FormatError(f"{where}: tokenizer.ggml.{name}_token_id {brief(i)} is none of {len(tokens)} tokens")
    return tokens[i]


def _replace(what: str, by: str) -> dict:
    return {"type": "Replace", "pattern": {"String": what}, "content": by}


def _tokens(values: dict, vocab_size: int, where: str) -> tuple[list[str], list[int]]:
    """Texts and types of all tokens."""
    tokens = _list(values, "tokens", str, where)
    kinds = (
        _list(values, "token_type", int, where) if "tokenizer.ggml.token_type" in values else [_NORMAL] * len(tokens)
    )
    different = len(set(tokens))
    if different != len(tokens) or not 0 < len(tokens) <= vocab_size or len(kinds) != len(tokens):
        raise FormatError(
            f"{where}: {len(tokens)} tokens, {different} of them different, {len(kinds)} types, "
            f"for a vocabulary of {vocab_size}"
        )
    return tokens, kinds


def _numbered(tokens: list[str]) -> dict[str, int]:
    return {token: i for i, token in enumerate(tokens)}


def _built(
    tokens: list[str], kinds: list[int], where: str, surroundings: dict | None, **parts: dict | None
) -> Tokenizer:
    """parts: of a tokenizer.json."""
    added = [
        {
            "id": i,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": kind != _USER_DEFINED,
        }
        for i, (token, kind) in enumerate(zip(tokens, kinds))
        if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED) and token
    ]
    whole = {"version": "1.0", "added_tokens": added, "post_processor": surroundings} | parts
    return parse_tokenizer(json.dumps(whole).encode(), f"{where}: tokenizer")


def _surroundings(values: dict, begins: bool, tokens: list[str], where: str) -> dict | None:
    """What puts the beginning and the end of a sequence around its tokens, where the file asks for them. begins: texts
    begin with bos unless it says otherwise. Encoders have cls and seperator in their place."""
    ends = []
    for name, other, default in (("bos", "cls", begins), ("eos", "seperator", False)):
        wanted = flag_of(values, f"tokenizer.ggml.add_{name}_token", where, default)
        own = f"tokenizer.ggml.{name}_token_id" in values or f"tokenizer.ggml.{other}_token_id" not in values
        name = name if own else other
        ends.append([_token(values, name, tokens, where)] if wanted else [])
    if not any(ends):
        return None
    first, last = ([{"SpecialToken": {"id": token, "type_id": 0}} for token in end] for end in ends)
    text, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    special = {token: {"id": token, "ids": [tokens.index(token)], "tokens": [token]} for end in ends for token in end}
    return {
        "type": "TemplateProcessing",
        "single": [*first, text, *last],
        "pair": [*first, text, *last, *first, second, *last],
        "special_tokens": special,
    }


def _list(values: dict, name: str, kind: type, where: str) -> list:
    found = values.get("tokenizer.ggml." + name)
    if not isinstance(found, list) or not all(type(item) is kind for item in found):
        raise FormatError(f"{where}: tokenizer.ggml.{name} must be a list of {kind.__name__}, got {brief(found)}")
    return found
