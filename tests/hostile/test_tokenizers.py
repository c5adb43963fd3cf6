"""A stranger's tokenizer: what would exhaust memory, hang, panic or print is refused in one line before the library
sees it, or is an error where texts come; what is in use passes."""

import base64
import json
import struct

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import cq
from cq import CqError, FormatError, UnsupportedError
from cq.door import own_errors
from cq.formats.tensors import read_tensors, write_safetensors
from cq.formats.tokenizer_files import parse_tokenizer
from cq.model.regex_bounds import check_regex

WORDS = {"type": "WordLevel", "vocab": {"a": 0, "b": 1, "[UNK]": 2}, "unk_token": "[UNK]"}


def tokenizer(**parts) -> bytes:
    chains = dict.fromkeys(("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder"))
    return json.dumps({"version": "1.0", "added_tokens": [], "model": WORDS} | chains | parts).encode()


def chain(kind, inside, *parts):
    return {kind: {"type": "Sequence", inside: list(parts)}}


def replace(content, **pattern):
    return {"type": "Replace", "pattern": pattern, "content": content}


def split(regex):
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


def template(single, special_tokens=None):
    tokens = special_tokens or {}
    return {"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": tokens}


def charsmap(cells, strings: bytes) -> dict:
    data = struct.pack(f"<I{len(cells)}I", 4 * len(cells), *cells) + strings
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(data).decode()}


A, SPECIAL = {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "X", "type_id": 0}}
TO_1024 = replace("a" * 1024, String="a")
VOCABULARY = {"type": "BPE", "vocab": {"a": 0, "zz": 2**31 - 1}, "merges": []}
REFUSED = {
    "four nested replacements": chain("normalizer", "normalizers", *[TO_1024] * 4),
    "replacements in chains": chain("normalizer", "normalizers", chain("x", "normalizers", *[TO_1024] * 2)["x"]),
    "replacements of nothing": chain("normalizer", "normalizers", *[replace("ab", String="")] * 9),
    "replacements everywhere": chain("normalizer", "normalizers", *[replace("abcd", Regex="x*")] * 9),
    "things put before": chain("normalizer", "normalizers", *[{"type": "Prepend", "prepend": "a" * 300}] * 2),
    "replacements in decoding": chain("decoder", "decoders", *[TO_1024] * 4),
    "many steps": chain("pre_tokenizer", "pretokenizers", *[{"type": "Whitespace"}] * 100),
    "an id of 2**31 - 1": {"model": VOCABULARY},
    "an id of 2**63": {"model": WORDS | {"vocab": {"a": 2**63}}},
    "an id below 0": {"model": WORDS | {"vocab": {"a": -1}}},
    "an added id": {"added_tokens": [{"id": 2**32 - 1, "content": "zz", "special": True}]},
    "ids of a template": {
        "post_processor": template([SPECIAL, A], {"X": {"id": "X", "ids": [2**32 - 1], "tokens": []}})
    },
    "a type of a template": {"post_processor": template([{"Sequence": {"id": "A", "type_id": 2**32 - 1}}])},
    "no token of a template": {"post_processor": template([SPECIAL, A])},
    "a long template": {"post_processor": template([SPECIAL] * 300, {"X": {"id": "X", "ids": [0], "tokens": ["a"]}})},
    "many ids of a template": {
        "post_processor": template([SPECIAL], {"X": {"id": "X", "ids": [0] * 999, "tokens": ["a"] * 999}})
    },
    "templates that double": chain("post_processor", "processors", *[template([A, A])] * 40),
    "an id of RoBERTa's": {
        "post_processor": {
            "type": "RobertaProcessing",
            "sep": ["a", 2**32 - 1],
            "cls": ["a", 0],
            "trim_offsets": True,
            "add_prefix_space": True,
        }
    },
    "pieces of length 0": {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
    "a long prefix": {"model": WORDS | {"type": "WordPiece", "continuing_subword_prefix": "#" * 9999}},
    "merges without their prefix": {
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}
        | {"continuing_subword_prefix": "######"}
    },
    "merges of two tokens with one id": {
        "model": {"type": "BPE", "vocab": {"a": 3, "b": 1, "ab": 2, "[UNK]": 3}, "merges": [["a", "b"]]}
    },
    "long words": {"model": WORDS | {"type": "WordPiece", "max_input_chars_per_word": 10**9}},
    "an exponential expression": {"pre_tokenizer": split("(a|a|aa)+$")},
    "one in a replacement": {"normalizer": replace("", Regex="(a+)+$")},
    "one in a chain": chain("pre_tokenizer", "pretokenizers", split(r"\s+"), split("(a*)*b")),
    "no table": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
    "no base64": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "?"}},
    "a table that leads out": {"normalizer": charsmap([0xFFFFFF00], b"a\0")},
    "a leaf that leads out": {"normalizer": charsmap([1 << 10 | 1 << 8] + [1 << 31 | 99] * 255, b"a\0")},
    "a leaf into a character": {"normalizer": charsmap([1 << 10 | 1 << 8] + [1 << 31 | 1] * 255, "é\0".encode())},
    "strings without an end": {"normalizer": charsmap([1 << 10] + [0] * 255, b"abc")},
    "a long string": {"normalizer": charsmap([1 << 10] + [0] * 255, b"a" * 5000 + b"\0")},
    "a key twice": None,
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name, capfd):
    data = tokenizer(**REFUSED[name] or {})
    if REFUSED[name] is None:
        data = data.replace(b'"a": 0', b'"a": 2147483647, "a": 0')
    with pytest.raises(CqError) as raised:
        parse_tokenizer(data, "tokenizer.json")
    assert str(raised.value).startswith("tokenizer.json: ") and len(str(raised.value)) < 500
    assert isinstance(raised.value, (FormatError, UnsupportedError)) and capfd.readouterr() == ("", "")


NORMAL = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
IN_USE = {
    "gpt-2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "llama-3": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + NORMAL,
    "o200k": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{M}]*[\p{Ll}\p{M}]+(?i:'s|'t)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{M}]+[\p{Ll}]*(?i:'s|'t)?" + NORMAL,
    "deepseek": r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+" + NORMAL,
    "bloom": r" ?[^(\s|[.,!?…。,、।۔،])]+",
    "thousands": r"\p{N}{1,3}(?=(?:\p{N}{3})*(?:\P{N}|$))|\d{1,3}(?=(?:\d{3})*\b)",
    "kimi": r"[\p{Han}]+|[\p{Lu}&&[^\p{Han}]]*[\p{Ll}&&[^\p{Han}]]+(?i:'s)?" + NORMAL,
    "possessive": r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$"
    r"|\s*[\r\n]|\s+(?!\S)|\s",
    "line ends": r"(?:\r?\n)+(?!\r?\n)",
    "spaces": r" {2,}|\s+|[0-9][0-9][0-9]|[一-龥぀-ゟ゠-ヿ]+|(?:^|\s)x|(?<=a)b|[]a]|.|",
}
SLOW = [
    *("(a|a|aa)+$", "(a+)+$", "a*a*a*b", "a*a*b", r"(?=(a+))\1+$", "(a*)*", "(a|b)*c", "((a{1,9}){1,9}){1,9}"),
    *("a{1,9}{1,9}{1,9}", "a{1,9}+b", "(?=a{1,9}+)", "(?:a{1,9}+|b)c", "(?:a{1,9}+)*", "a{0,9}+", "(?:a|b){1,9}+"),
    *("a{1,9}+$", "a{1,9}+(?!b)", "a{1,9}++", "(?:aa?){1}+", "(?:a{1}?b{1}?)+[cd]", "a{1}?" * 30 + "b"),
    *(r"(?:\r?\n?)+", r"(?:\n?\n)+", r"(?i:a?A)+b", r"(?:\r?\n*)+", r"(?:(?:\r?\n)+)+x", r"(?:\r?\n{1,3})+x"),
    *(r"\g<0>", r"(?<x>a\g<x>)", "(a?){50}", "a?" * 30 + "a" * 30, "(.*)(.*)(.*)x"),
    *(".*.*=.*", "(x+x+)+y", "(?:a{0,60}){0,60}", "(?:(?:a|b)c*)+", "(?x)a # (", "(?~ab)", "(?(1)a|b)", "a++*"),
    *("(" * 3000 + ")" * 3000, "a*(?=a*b)", "a{99999999999}", "(?:a{1000}){1000}{1000}", "x" * 9999, "a*(?!a*$)"),
]


@pytest.mark.parametrize("name", IN_USE)
def test_expressions_in_use(name):
    tokens = parse_tokenizer(tokenizer(pre_tokenizer=split(IN_USE[name])), "tokenizer.json")
    for one in "a", " ", "1", "\n", "\r\n", "é", "A.":
        tokens.encode(one * 20_000)


@pytest.mark.parametrize("regex", SLOW, ids=lambda regex: regex[:20])
def test_slow_expressions(regex):
    with pytest.raises(UnsupportedError, match="^x: the regular expression .* may take forever: ") as raised:
        check_regex(regex, "x")
    assert len(str(raised.value)) < 400


def test_a_table_of_replacements_in_order():
    """The library takes it: "b" becomes "xy"."""
    cells = [0] * 512
    cells[0] = 256 << 10  # to the second block
    cells[256 ^ ord("b")] = ord("b") | 1 << 8 | (ord("b") << 10)  # its leaf at 256
    cells[256] = 1 << 31 | 2
    found = parse_tokenizer(tokenizer(normalizer=charsmap(cells, b"q\0xy\0")), "x")
    assert found.normalizer.normalize_str("abc") == "axyc"


HANDED_IN = ("four nested replacements", "things put before", "many steps", "an id of 2**31 - 1", "ids of a template")
HANDED_IN += ("no token of a template", "a long template", "templates that double", "an id of RoBERTa's")
HANDED_IN += ("pieces of length 0", "an exponential expression", "one in a replacement", "a table that leads out")


@pytest.mark.parametrize("name", HANDED_IN)
@pytest.mark.parametrize("causal", [False, True])
def test_objects_that_are_handed_in_are_looked_at_too(tiny_encoder, tiny_lm, name, causal, capfd):
    model, given = cq.load(tiny_lm if causal else tiny_encoder), Tokenizer.from_str(tokenizer(**REFUSED[name]).decode())
    with pytest.raises(CqError, match="^tokenizer: ") as raised:
        cq.Transformer(model.config, model.weights(), given)
    assert len(str(raised.value)) < 500 and capfd.readouterr() == ("", "")


def test_what_is_no_tokenizer_is_named(tiny_lm):
    model, there = cq.load(tiny_lm), Tokenizer.from_str(tokenizer().decode())
    wrapped = PreTrainedTokenizerFast(tokenizer_object=there)
    for given, words in ((wrapped, "TokenizersBackend|Fast; give its backend_tokenizer"), ("a", "got str")):
        with pytest.raises(CqError, match=f"^tokenizer: need a tokenizers.Tokenizer, .*{words}"):
            cq.Transformer(model.config, model.weights(), given)
    found = cq.Transformer(model.config, model.weights(), wrapped.backend_tokenizer)
    assert found.tokenize("a").tolist() == [0]


def test_parts_in_python_are_the_callers_own(tiny_lm):
    class Letters:
        def pre_tokenize(self, text):
            text.split(lambda i, part: [part[j : j + 1] for j in range(len(str(part)))])

    model, own = cq.load(tiny_lm), Tokenizer.from_str(tokenizer().decode())
    own.pre_tokenizer = pre_tokenizers.PreTokenizer.custom(Letters())
    assert cq.Transformer(model.config, model.weights(), own).tokenize("ab").tolist() == [0, 1]


def test_panics_where_texts_come(tiny_encoder, capfd):
    """A tokenizer that was changed after it was given has not been checked."""
    encoder, text = cq.load(tiny_encoder), "a" * 60 + "b"
    encoder.tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("(a|a|aa)+$"), "isolated")
    encoder.take_tokenizer(encoder.tokenizer)
    for action in (lambda: encoder.embed([text]), lambda: encoder.tokenize(text), lambda: encoder.tokens_of(text)):
        with pytest.raises(CqError, match="text: the tokenizer fails: .*retry-limit"):
            action()
    capfd.readouterr()  # the library itself says so
    with pytest.raises(KeyboardInterrupt), own_errors("here"):
        raise KeyboardInterrupt


def test_checkpoints_bring_theirs_through_the_same_door(tiny_encoder, tmp_path, capfd):
    path = tmp_path / "a.safetensors"
    cq.save(cq.load(tiny_encoder), path)
    tensors, metadata = read_tensors(path)
    values = json.loads(bytes(tensors["tokenizer.json"]))
    values["model"]["vocab"]["!"] = 2**31 - 1
    write_safetensors(
        path, tensors | {"tokenizer.json": np.frombuffer(json.dumps(values).encode(), np.uint8)}, metadata
    )
    with pytest.raises(FormatError, match="the id of '!' must be"):
        cq.load(path)
    assert capfd.readouterr() == ("", "")
