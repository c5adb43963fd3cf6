"""The tokenizer of a Hugging Face folder: tokenizer.json, or vocab.txt alone, with what tokenizer_config.json,
special_tokens_map.json and added_tokens.json change of it. Must not know models."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import AddedToken, Tokenizer, normalizers, processors

from ..door import own_errors
from ..errors import FormatError, UnsupportedError, brief
from ..model.tokenizer_bounds import check_tokenizer, parts_of
from .keys import check_keys
from .untrusted import as_file, flag_of, parse_json, read_json_if_any

MAX_TOKENIZER = 64 << 20  # bytes; the largest in the wild are near 40 MB
_MAX_WORDS = 1 << 21  # lines of a vocab.txt
_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_BERT = ("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer", "MobileBertTokenizer")
_NORMALIZED = (*_BERT, "MPNetTokenizer")  # whose normalizer the settings make
_AS_THEY_ARE = ("PreTrainedTokenizer", "TokenizersBackend")  # classes that change no step of tokenizer.json
_OF_FAMILY = {  # the class where no file names one
    **dict.fromkeys(("bert", "distilbert", "electra"), "BertTokenizer"),
    **dict.fromkeys(("deberta-v2", "deberta-v2-new"), "DebertaV2Tokenizer"),
}
_END = "<|endoftext|>"
_DEFAULTS = {  # class → its tokens where no file says them
    **{name: dict(zip(_NAMES[2:], ("[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]"))) for name in _BERT},
    "MPNetTokenizer": dict(zip(_NAMES, ("<s>", "</s>", "[UNK]", "</s>", "<pad>", "<s>", "<mask>"))),
    "DebertaV2Tokenizer": dict(zip(_NAMES, ("[CLS]", "[SEP]", "[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]"))),
    "LlamaTokenizer": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    "GPT2Tokenizer": dict.fromkeys(("bos_token", "eos_token", "unk_token"), _END),
    "Qwen2Tokenizer": dict.fromkeys(("eos_token", "unk_token", "pad_token"), _END),
}


class Settings(NamedTuple):
    """What the files beside tokenizer.json say. tokens: name → text of special tokens, or None where no file speaks of
    them; added: (id, token, attributes) of tokens that the tokenizer has, or is to have."""

    values: dict
    kind: str | None  # the tokenizer's class, without Fast
    tokens: dict[str, str] | None
    added: list[tuple[int | None, str, dict]]
    where: str
    said: bool  # tokenizer_config.json is there


def read_tokenizer_settings(folder: Path, family: str = "", kind: str | None = None) -> Settings:
    """family: of the model; kind: config.json's tokenizer_class. Raises FormatError, UnsupportedError."""
    file = folder / "tokenizer_config.json"
    values, where = read_json_if_any(file), str(file)
    check_keys(values, "tokenizer_config.json", where)
    decoder, said = values.get("added_tokens_decoder"), dict(values)
    added: list[tuple[int | None, str, dict]] = []
    if decoder is not None:
        if not isinstance(decoder, dict) or not all(key.isascii() and key.isdigit() for key in decoder):
            raise FormatError(f"{where}: added_tokens_decoder must map ids to tokens, got {brief(decoder)}")
        added = [(int(key), *_token(token, where)) for key, token in decoder.items()]
    else:
        said |= read_json_if_any(folder / "special_tokens_map.json")
        listed = folder / "added_tokens.json"
        for token, i in read_json_if_any(listed).items():
            if type(i) is not int or i < 0:
                raise FormatError(f"{listed}: {brief(token)} has no id but {brief(i)}")
            added.append((i, token, {"normalized": True}))
    kind = values.get("tokenizer_class") or kind
    if not isinstance(kind, str | None):
        raise FormatError(f"{where}: tokenizer_class must be a string, got {brief(kind)}")
    kind = (kind or "").removesuffix("Fast") or _OF_FAMILY.get(family)
    named = _named(said, kind, where) if file.exists() or said else None
    tokens = None if named is None else {name: text for name, (text, _) in named.items()}
    for text, more in [*(named or {}).values(), *_extra(said, where)]:
        added.append((None, text, {"normalized": False} | more | {"special": True}))
    return Settings(
        values, kind, tokens, sorted(added, key=lambda one: (one[0] is None, one[0] or 0)), where, file.exists()
    )


def _named(said: dict, kind: str | None, where: str) -> dict[str, tuple[str, dict]]:
    """Text and attributes of the tokens that have names, those of the checkpoint's own naming included."""
    found = {name: said.get(name, _DEFAULTS.get(kind or "", {}).get(name)) for name in _NAMES}
    own = said.get("extra_special_tokens")
    more = own if isinstance(own, dict) else {}
    more |= {
        name: value
        for name, value in said.items()
        if name.endswith("_token") and name not in _NAMES and isinstance(value, str | dict)
    }
    return {name: _token(value, where) for name, value in (found | more).items() if value is not None}


def _extra(said: dict, where: str) -> list[tuple[str, dict]]:
    found = []
    for name in ("additional_special_tokens", "extra_special_tokens"):
        tokens = said.get(name)
        if tokens is not None and not isinstance(tokens, list | dict):
            raise FormatError(f"{where}: {name} must be a list of tokens, got {brief(tokens)}")
        if isinstance(tokens, list):
            found += [_token(token, where) for token in tokens]
    return found


def _token(value: object, where: str) -> tuple[str, dict]:
    """Text and attributes of a token, a string or an object as transformers writes it."""
    text = value.get("content") if isinstance(value, dict) else value
    if not isinstance(text, str) or not text:
        raise FormatError(f"{where}: {brief(value)} is no token")
    names = ("single_word", "lstrip", "rstrip", "normalized", "special")
    more = {name: value[name] for name in names if name in value} if isinstance(value, dict) else {}
    if not all(isinstance(flag, bool) for flag in more.values()):
        raise FormatError(f"{where}: {brief(value)} is no token")
    return text, more


def read_tokenizer(folder: Path, lowercase: bool = False, settings: Settings | None = None) -> Tokenizer | None:
    """The tokenizer in `folder` with padding and truncation off, or None if there is none. `lowercase`: before all
    else; settings: of the files beside it. Raises FormatError, UnsupportedError."""
    file = folder / "tokenizer.json"
    settings = settings or read_tokenizer_settings(folder)
    if file.exists():
        with open(as_file(file), "rb") as opened:
            data = opened.read(min(file.stat().st_size, MAX_TOKENIZER + 1))
        where = str(file)
    elif (folder / "vocab.txt").exists() and settings.kind in _BERT:
        where = str(folder / "vocab.txt")
        data = _word_pieces(folder / "vocab.txt", settings.tokens or _DEFAULTS["BertTokenizer"])
    else:
        return None
    tokenizer = parse_tokenizer(data, where)
    _apply(tokenizer, settings, file.exists(), where)
    if lowercase:
        rest = [tokenizer.normalizer] if tokenizer.normalizer is not None else []
        tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *rest])
    return tokenizer


def parse_tokenizer(data: bytes, where: str) -> Tokenizer:
    """The tokenizer in `data`, the bytes of a tokenizer.json, with padding and truncation off. Raises FormatError, its
    message starting with `where`."""
    if len(data) > MAX_TOKENIZER:
        raise FormatError(f"{where}: at most {MAX_TOKENIZER} bytes are read, this has more")
    what = f"{where}: not a tokenizer that is read"
    with own_errors(what, FormatError):
        check_tokenizer(parse_json(data, what, dict), what)
        tokenizer = Tokenizer.from_str(data.decode("utf-8"))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        tokenizer.encode("a")  # some contradictions show only here
    return tokenizer


def _word_pieces(file: Path, tokens: dict[str, str]) -> bytes:
    """A tokenizer.json of BERT's word pieces, one a line."""
    with open(as_file(file), "rb") as opened:
        data = opened.read(MAX_TOKENIZER + 1)
    try:
        lines = data.decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise FormatError(f"{file}: not UTF-8 text (byte {error.start})") from None
    lines = lines[:-1] if lines[-1] == "" else lines
    if len(data) > MAX_TOKENIZER or len(lines) > _MAX_WORDS:
        raise FormatError(f"{file}: at most {_MAX_WORDS} words in {MAX_TOKENIZER} bytes are read, this has more")
    vocabulary = {word.removesuffix("\r"): i for i, word in enumerate(lines)}
    for name in ("unk_token", "cls_token", "sep_token"):
        if tokens.get(name) not in vocabulary:
            raise FormatError(f"{file}: no word {brief(tokens.get(name))}, the {name}")
    first, last = tokens["cls_token"], tokens["sep_token"]
    added: list[dict[str, Any]] = [
        {"id": vocabulary[text], "content": text, "special": True}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for text in dict.fromkeys(tokens.values())
        if text in vocabulary
    ]
    whole = {
        "version": "1.0",
        "added_tokens": sorted(added, key=lambda token: token["id"]),
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": True,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "BertProcessing",
            "sep": [last, vocabulary[last]],
            "cls": [first, vocabulary[first]],
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": tokens["unk_token"],
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": vocabulary,
        },
    }
    return json.dumps(whole).encode()


def _apply(tokenizer: Tokenizer, settings: Settings, whole: bool, where: str) -> None:
    """whole: the tokenizer comes from a tokenizer.json, which counts where settings say nothing."""
    values = settings.values
    _add_tokens(tokenizer, settings, where)
    if settings.kind in _NORMALIZED and (settings.said or not whole) and type(tokenizer.model).__name__ == "WordPiece":
        accents = values.get("strip_accents")
        tokenizer.normalizer = normalizers.BertNormalizer(
            clean_text=True,
            handle_chinese_chars=flag_of(values, "tokenize_chinese_chars", settings.where, True),
            strip_accents=None if accents is None else flag_of(values, "strip_accents", settings.where),
            lowercase=flag_of(values, "do_lower_case", settings.where, True),
        )
    if values.get("add_prefix_space") is not None and type(tokenizer.pre_tokenizer).__name__ == "ByteLevel":
        tokenizer.pre_tokenizer.add_prefix_space = flag_of(values, "add_prefix_space", settings.where)
    _check_steps(tokenizer, settings)
    if values.get("add_bos_token") is not None or values.get("add_eos_token") is not None:
        _surround(tokenizer, settings)


def _check_steps(tokenizer: Tokenizer, settings: Settings) -> None:
    """Raises UnsupportedError for settings by which transformers makes other steps than tokenizer.json has."""
    before, cuts = (
        [] if part is None else list(parts_of(json.loads(part.__getstate__()), inside, settings.where))
        for part, inside in ((tokenizer.normalizer, "normalizers"), (tokenizer.pre_tokenizer, "pretokenizers"))
    )
    kinds = {part["type"] for part in before}
    spaces = [part["add_prefix_space"] for part in cuts if part["type"] == "ByteLevel"]
    spaces += [part["prepend_scheme"] != "never" for part in cuts if part["type"] == "Metaspace"]
    spaces += [True for kind in kinds if kind == "Prepend"]
    does = {"add_prefix_space": any(spaces)} if spaces and settings.kind not in _AS_THEY_ARE else {}
    usual = dict(does)
    if settings.kind == "AlbertTokenizer" and type(tokenizer.model).__name__ == "Unigram":
        does |= {"do_lower_case": "Lowercase" in kinds, "keep_accents": "StripAccents" not in kinds}
        usual |= {"do_lower_case": True, "keep_accents": False}
    if settings.kind == "DebertaV2Tokenizer":
        cut = {part["type"] for part in cuts}
        does |= {"do_lower_case": "Lowercase" in kinds, "split_by_punct": "Punctuation" in cut}
        usual |= {"do_lower_case": False, "split_by_punct": False}
    for key, done in does.items():
        if flag_of(settings.values, key, settings.where, usual[key]) is not done:
            raise UnsupportedError(
                f"{settings.where}: {key} {str(not done).lower()} is not implemented where tokenizer.json has it "
                "otherwise"
            )


def _add_tokens(tokenizer: Tokenizer, settings: Settings, where: str) -> None:
    """Tokens that tokenizer.json lacks, or has with other attributes."""
    had = {token.content: token for token in tokenizer.get_added_tokens_decoder().values()}
    for i, text, more in settings.added:
        if i is None and (text in had or tokenizer.token_to_id(text) is not None and not more.get("special")):
            continue
        known = had.get(text)
        if known is not None and all(getattr(known, name) == flag for name, flag in more.items()):
            continue
        if known is not None and i is not None and settings.values.get("added_tokens_decoder") is None:
            continue
        token = AddedToken(text, **more)
        tokenizer.add_special_tokens([token]) if token.special else tokenizer.add_tokens([token])
        had[text] = token
        if i is not None and tokenizer.token_to_id(text) != i:
            raise FormatError(
                f"{settings.where}: token {brief(text)} has id {i}, in {where} it is {tokenizer.token_to_id(text)}"
            )


def _surround(tokenizer: Tokenizer, settings: Settings) -> None:
    """bos and eos around texts, as add_bos_token and add_eos_token say, of tokenizers that put nothing else there."""
    tokens = {name: (settings.tokens or {}).get(f"{name}_token") for name in ("bos", "eos")}
    ids = {name: None if text is None else tokenizer.token_to_id(text) for name, text in tokens.items()}
    around = tokenizer.encode("").ids
    has = {"bos": around[:1] == [ids["bos"]], "eos": around[-1:] == [ids["eos"]] and around[1:] + around[:1] != []}
    if len(around) == 1 and has["bos"] and has["eos"]:  # one token that is both
        has["eos"] = False
    if len(around) != has["bos"] + has["eos"]:
        return
    wanted = {
        name: ids[name] is not None and flag_of(settings.values, f"add_{name}_token", settings.where, has[name])
        for name in has
    }
    if wanted == has:
        return
    first, last = ([f"{tokens[name]}:{{0}}"] if wanted[name] else [] for name in ("bos", "eos"))
    single = " ".join([*first, "$A:{0}", *last])
    second = " ".join([*first, "$B:{0}", *last])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single.format(0),
        pair=f"{single.format(0)} {second.format(1)}",
        special_tokens=[(tokens[name], ids[name]) for name in ("bos", "eos") if wanted[name]],
    )
