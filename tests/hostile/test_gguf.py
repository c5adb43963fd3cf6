"""GGUF files that are broken, lie or mean harm: each gives one clear error, quickly and without much memory."""

import struct
import time
import tracemalloc
from functools import partial

import numpy as np
import pytest

import cq
from cq.errors import CqError, FormatError, UnsupportedError

SECONDS, MEGABYTES = 5, 48
ENTRIES = {
    "general.architecture": "llama",
    "llama.block_count": 1,
    "llama.context_length": 16,
    "llama.embedding_length": 8,
    "llama.feed_forward_length": 6,
    "llama.attention.head_count": 2,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": ["a", "b", "ab", "c"],
    "tokenizer.ggml.merges": ["a b"],
    "tokenizer.ggml.token_type": [1, 1, 1, 3],
    "tokenizer.ggml.eos_token_id": 3,
}
TENSORS = {
    "token_embd.weight": (4, 8),
    "output_norm.weight": (8,),
    "blk.0.attn_norm.weight": (8,),
    "blk.0.ffn_norm.weight": (8,),
    "blk.0.attn_q.weight": (8, 8),
    "blk.0.attn_k.weight": (8, 8),
    "blk.0.attn_v.weight": (8, 8),
    "blk.0.attn_output.weight": (8, 8),
    "blk.0.ffn_gate.weight": (6, 8),
    "blk.0.ffn_up.weight": (6, 8),
    "blk.0.ffn_down.weight": (8, 6),
}


def text(value: str | bytes, length: int | None = None) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data) if length is None else length) + data


def value(item) -> bytes:
    """Type and value; bytes stand for themselves."""
    if isinstance(item, bytes):
        return item
    if isinstance(item, list):
        kind, body = (
            (8, b"".join(map(text, item))) if isinstance(item[0], str) else (5, struct.pack(f"<{len(item)}i", *item))
        )
        return struct.pack("<IIQ", 9, kind, len(item)) + body
    kind, body = {
        str: (8, lambda: text(item)),
        bool: (7, lambda: struct.pack("<?", item)),
        int: (4, lambda: struct.pack("<I", item)),
        float: (6, lambda: struct.pack("<f", item)),
    }[type(item)]
    return struct.pack("<I", kind) + body()


def file(entries=None, tensors=None, magic=b"GGUF", version=3, counts=None, pad=32) -> bytes:
    """A file of ENTRIES and TENSORS with changes: an entry ... is left out; tensors: name → (shape, type, begin,
    bytes), any of which may be None for what is right."""
    entries = {k: v for k, v in (ENTRIES | (entries or {})).items() if v is not ...}
    infos, data = b"", b""
    changes = tensors or {}
    names = [
        name for name in [*TENSORS, *(name for name in changes if name not in TENSORS)] if changes.get(name) is not ...
    ]
    for name in names:
        shape, kind, begin, size = changes.get(name, (None,) * 4)
        shape = TENSORS[name] if shape is None else shape
        begin = len(data) if begin is None else begin
        infos += text(name) + struct.pack(
            f"<I{len(shape)}QIQ", len(shape), *shape[::-1], 0 if kind is None else kind, begin
        )
        body = np.full(int(np.prod(TENSORS[name])), 0.5, "<f4").tobytes() if size is None else bytes(size)
        data += body + bytes(-len(body) % 32)
    counts = counts or (len(names), len(entries))
    head = (
        magic + struct.pack("<IQQ", version, *counts) + b"".join(text(k) + value(v) for k, v in entries.items()) + infos
    )
    return head + bytes(-len(head) % pad) + data


def other(architecture: str, shapes: dict, linears: dict, norms: tuple, entries=None, tensors=None) -> bytes:
    """As `file`, of another architecture, with biases everywhere. linears: name in the layer → shape."""
    own = {
        key.replace("llama.", architecture + "."): value for key, value in ENTRIES.items() if key.startswith("llama.")
    }
    shapes = {"token_embd.weight": (4, 8), "position_embd.weight": (16, 8)} | shapes
    for name, shape in (
        {f"blk.0.{name}": shape for name, shape in linears.items()} | dict.fromkeys(norms, (8,))
    ).items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    given = dict.fromkeys(TENSORS, ...) | {
        name: (shape, None, None, 4 * int(np.prod(shape))) for name, shape in shapes.items()
    }
    others = dict.fromkeys((key for key in ENTRIES if key.startswith("llama.")), ...)
    return file(others | own | {"general.architecture": architecture} | (entries or {}), given | (tensors or {}))


gpt2 = partial(
    other,
    "gpt2",
    {},
    {"attn_qkv": (24, 8), "attn_output": (8, 8), "ffn_up": (6, 8), "ffn_down": (8, 6)},
    ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"),
)
bert = partial(
    other,
    "bert",
    {"token_types.weight": (2, 8)},
    dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output"), (8, 8)) | {"ffn_up": (6, 8), "ffn_down": (8, 6)},
    ("token_embd_norm", "blk.0.attn_output_norm", "blk.0.layer_output_norm"),
)


WORDS = {"tokenizer.ggml.model": "bert"}
PIECES = {"tokenizer.ggml.model": "llama", "tokenizer.ggml.add_bos_token": False}


def listed(kind: int, count: int, body: bytes = b"") -> bytes:
    return struct.pack("<IIQ", 9, kind, count) + body


NOT_A_NUMBER = {"blk.0.ffn_up.weight": ((6, 32), 8, None, 6 * 34)}  # Q8_0: scale and 32 codes
FILES = [
    ("empty", b"", FormatError, "truncated"),
    ("magic", file(magic=b"GGML"), FormatError, "not GGUF"),
    ("version 1", file(version=1), UnsupportedError, "version 1"),
    ("big-endian", file(version=3 << 24), UnsupportedError, "little-endian"),
    ("tensors without end", file(counts=(2**63, 1)), FormatError, "at most 65536"),
    ("entries without end", file(counts=(1, 2**64 - 1)), FormatError, "at most 65536"),
    ("more entries than there are", file(counts=(11, 9999)), CqError, "truncated|type|at most|twice"),
    ("a list without end", file({"x": listed(5, 2**62)}), FormatError, "at most 2097152"),
    ("an empty list of texts without end", file({"x": listed(8, 2**21)}), FormatError, "truncated|at most|UTF-8"),
    ("lists within lists", file({"x": listed(9, 1, listed(9, 1))}), UnsupportedError, "list of type 9"),
    ("a value of no type", file({"x": struct.pack("<I", 99)}), FormatError, "type 99"),
    (
        "a text without end",
        file({"x": struct.pack("<IQ", 8, 2**63)}),
        FormatError,
        "a string of 9223372036854775808 bytes",
    ),
    ("a text beyond the file", file({"x": struct.pack("<IQ", 8, 2**20)}), FormatError, "truncated"),
    ("not UTF-8", file({"x": struct.pack("<I", 8) + text(b"\xff")}), FormatError, "UTF-8"),
    ("alignment of 0", file({"general.alignment": 0}), FormatError, "power of two"),
    ("alignment of 33", file({"general.alignment": 33}), FormatError, "power of two"),
    ("no architecture", file({"general.architecture": ...}), UnsupportedError, "general.architecture None"),
    ("architecture of a number", file({"general.architecture": 3}), UnsupportedError, "general.architecture 3"),
    (
        "no size",
        file({"llama.embedding_length": ...}),
        FormatError,
        "embedding_length must be a positive integer.*missing",
    ),
    ("size of 0", file({"llama.attention.head_count": 0}), FormatError, "head_count must be"),
    ("sizes in a list", file({"llama.attention.head_count": [2, 2]}), FormatError, "head_count must be"),
    ("heads that do not divide", file({"llama.attention.head_count": 3}), CqError, "llama|shape"),
    ("too many layers", file({"llama.block_count": 2**31 - 1}), FormatError, "2147483647 layers"),
    ("another size", file({"llama.feed_forward_length": 2**31 - 1}), FormatError, "asks for"),
    ("epsilon", file({"llama.attention.layer_norm_rms_epsilon": float("nan")}), FormatError, "layer_norm_rms_epsilon"),
    ("base", file({"llama.rope.freq_base": "10"}), FormatError, "rope.freq_base"),
    ("a part of a model", file({"split.count": 3}), UnsupportedError, "one of 3 files.*--merge"),
    (
        "a scaling of no kind",
        file({"llama.rope.scaling.type": 3}),
        UnsupportedError,
        "rope.scaling.type 3 is not implemented",
    ),
    (
        "a scaling by a word",
        file({"llama.rope.scaling.factor": "x"}),
        FormatError,
        "scaling.factor must be a positive number",
    ),
    (
        "a scaling below 0",
        file({"llama.rope.scaling.factor": -2.0}),
        FormatError,
        "scaling.factor must be a positive number",
    ),
    (
        "yarn by infinity",
        file({"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": float("inf")}),
        FormatError,
        "scaling.factor must be a positive number",
    ),
    (
        "yarn over nothing",
        file({"llama.rope.scaling.type": "yarn", "llama.rope.scaling.original_context_length": 0}),
        FormatError,
        "original_context_length must be a positive integer",
    ),
    (
        "factors without end",
        file(tensors={"rope_freqs.weight": ((2**28,), None, None, 0)}),
        FormatError,
        "truncated|inside",
    ),
    (
        "factors of another head",
        file(tensors={"rope_freqs.weight": ((4,), None, None, 16)}),
        FormatError,
        "rope_freqs.* shape",
    ),
    (
        "factors of 0",
        file(tensors={"rope_freqs.weight": ((2,), None, None, 8)}),
        FormatError,
        "rope_freqs.* must be positive",
    ),
    ("another architecture's entries", file({"general.architecture": "qwen2"}), FormatError, "qwen2: .*and is missing"),
    (
        "a Llama's tensors as GPT-2's",
        gpt2(tensors={"blk.0.ffn_gate.weight": (None, None, None, None)}),
        UnsupportedError,
        "has no place",
    ),
    ("no positions", gpt2(tensors={"position_embd.weight": ...}), FormatError, "missing weight embed.position"),
    ("fewer positions", gpt2({"gpt2.context_length": 17}), FormatError, r"embed.position has shape \(16, 8\)"),
    (
        "no bias",
        gpt2(tensors={"blk.0.attn_qkv.bias": ...}),
        FormatError,
        "missing weight layers.0.attention.query.bias",
    ),
    (
        "fused weights of another width",
        gpt2(tensors={"blk.0.attn_qkv.weight": ((23, 8), None, None, 736)}),
        FormatError,
        "attention.qkv.weight.*wanted the outputs of attention.query",
    ),
    (
        "fused weights of too many",
        gpt2(tensors={"blk.0.attn_qkv.weight": ((48, 8), None, None, 1536)}),
        FormatError,
        "wanted the outputs of",
    ),
    ("a bias of a matrix", gpt2(tensors={"blk.0.attn_qkv.bias": ((24, 8), None, None, 768)}), FormatError, "asks for"),
    (
        "types in a row",
        bert(tensors={"token_types.weight": ((2,), None, None, 8)}),
        FormatError,
        r"embed.type has shape \(2,\)",
    ),
    (
        "a pooling of no kind",
        bert({"bert.pooling_type": "mean"}),
        UnsupportedError,
        "pooling_type 'mean' is not implemented",
    ),
    (
        "no layer norm",
        bert(tensors={"blk.0.attn_output_norm.weight": ...}),
        FormatError,
        "missing weight layers.0.attention_",
    ),
    ("a head on an encoder", bert(tensors={"cls.weight": ((8, 8), None, None, 256)}), UnsupportedError, "has no place"),
    (
        "words without their marks",
        bert(WORDS | {"tokenizer.ggml.bos_token_id": 9}),
        FormatError,
        "bos_token_id 9 is none of 4",
    ),
    ("words that nothing begins", bert(WORDS), FormatError, "no entry tokenizer.ggml.bos_token_id"),
    ("pieces without scores", file(PIECES), FormatError, "scores must be a list of float"),
    (
        "scores that are numbers of tokens",
        file(PIECES | {"tokenizer.ggml.scores": [1, 2, 3, 4]}),
        FormatError,
        "list of float",
    ),
    ("scores without end", file(PIECES | {"tokenizer.ggml.scores": listed(6, 2**40)}), FormatError, "at most 2097152"),
    (
        "fewer scores",
        file(PIECES | {"tokenizer.ggml.scores": listed(6, 1, bytes(4))}),
        FormatError,
        "scores must be 4 numbers",
    ),
    (
        "a piece of a book",
        file(
            PIECES
            | {
                "tokenizer.ggml.scores": listed(6, 4, bytes(16)),
                "tokenizer.ggml.tokens": ["a", "b", "ab", "ab" * 100000],
                "tokenizer.ggml.token_type": [1, 1, 1, 1],
            }
        ),
        FormatError,
        "of 200000 characters",
    ),
    ("no embedding", file(tensors={"token_embd.weight": ...}), FormatError, "token_embd"),
    ("no weight", file(tensors={"blk.0.ffn_up.weight": ...}), FormatError, "missing weight layers.0.ffn.up.weight"),
    ("a stranger", file(tensors={"blk.0.ssm_a": ((8,), None, None, 32)}), UnsupportedError, "has no place"),
    ("no dimensions", file(tensors={"blk.0.ffn_up.weight": ((), None, None, 0)}), FormatError, "0 dimensions"),
    ("a dimension of 0", file(tensors={"blk.0.ffn_up.weight": ((0, 8), None, None, 0)}), FormatError, "is no shape"),
    (
        "a product beyond 64 bits",
        file(tensors={"blk.0.ffn_up.weight": ((2**40, 2**40), None, None, 0)}),
        FormatError,
        "is no shape",
    ),
    (
        "more than the file has",
        file(tensors={"blk.0.ffn_up.weight": ((2**30, 8), None, None, 0)}),
        FormatError,
        "truncated|inside",
    ),
    ("a type of no kind", file(tensors={"blk.0.ffn_up.weight": (None, 999, None, 0)}), UnsupportedError, "type 999"),
    ("rows that are no blocks", file(tensors={"blk.0.ffn_up.weight": (None, 8, None, 0)}), FormatError, "blocks of 32"),
    (
        "integers",
        file(tensors={"blk.0.ffn_up.weight": (None, 26, None, None)}),
        UnsupportedError,
        "does not dequantize I32",
    ),
    ("another shape in codes", file(tensors=NOT_A_NUMBER), FormatError, r"shape \(6, 32\)"),
    (
        "shared bytes",
        file(tensors={"blk.0.ffn_up.weight": (None, None, 0, None)}),
        FormatError,
        "inside the one before",
    ),
    ("not aligned", file(tensors={"blk.0.ffn_down.weight": (None, None, 2**40 + 1, None)}), FormatError, "not aligned"),
    ("beyond the file", file(tensors={"blk.0.ffn_down.weight": (None, None, 2**63, None)}), FormatError, "truncated"),
    ("not finite", file().replace(struct.pack("<f", 0.5), struct.pack("<f", np.inf)), FormatError, "must be finite"),
    ("end beyond the vocabulary", file({"tokenizer.ggml.eos_token_id": 4}), FormatError, "no token id below 4"),
    ("a template of numbers", file({"tokenizer.chat_template": 4}), FormatError, "chat_template"),
    ("no tokens", file({"tokenizer.ggml.tokens": ...}), FormatError, "tokens must be a list of str"),
    ("tokens that are numbers", file({"tokenizer.ggml.tokens": [1, 2]}), FormatError, "tokens must be a list of str"),
    ("too many tokens", file({"tokenizer.ggml.tokens": list("abcde")}), FormatError, "5 tokens"),
    (
        "the same token twice",
        file({"tokenizer.ggml.tokens": ["a", "b", "ab", "a"]}),
        FormatError,
        "3 of them different",
    ),
    ("a merge of nothing", file({"tokenizer.ggml.merges": ["x y"]}), FormatError, "not a tokenizer"),
    ("a merge of one", file({"tokenizer.ggml.merges": ["ab"]}), FormatError, "not a tokenizer"),
    ("a beginning that is none", file({"tokenizer.ggml.add_bos_token": True}), FormatError, "bos_token_id None"),
    (
        "a flag that is none",
        file({"tokenizer.ggml.add_bos_token": "yes"}),
        FormatError,
        "add_bos_token must be true or false",
    ),
]


def test_the_good_file_is_good(tmp_path):
    (tmp_path / "a.gguf").write_bytes(file())
    model = cq.load(tmp_path / "a.gguf")
    assert list(model.tokenize("abc")) == [2, 3] and model.logits([[0, 1]])[0].shape == (2, 4)
    (tmp_path / "a.gguf").write_bytes(gpt2(PIECES | {"tokenizer.ggml.scores": listed(6, 4, bytes(16))}))
    model = cq.load(tmp_path / "a.gguf")
    assert list(model.tokenizer.encode("ab").ids) == [2] and model.logits([[0, 1]])[0].shape == (2, 4)
    marks = {f"tokenizer.ggml.{name}_token_id": 3 for name in ("bos", "unknown")}
    (tmp_path / "a.gguf").write_bytes(bert(WORDS | marks))
    model = cq.load(tmp_path / "a.gguf")
    assert list(model.tokenizer.encode("xx").ids) == [3, 3, 3] and model.embed([[0, 1]]).shape == (1, 8)


@pytest.mark.parametrize("data, error, words", [row[1:] for row in FILES], ids=[row[0] for row in FILES])
def test_bad_files_give_one_clear_error(tmp_path, data, error, words):
    (tmp_path / "a.gguf").write_bytes(data)
    tracemalloc.start()
    began = time.process_time()
    try:
        with pytest.raises(error, match=words) as caught:
            cq.load(tmp_path / "a.gguf")
        assert str(tmp_path) in str(caught.value)
        assert len(str(caught.value)) < 1000 and "\n" not in str(caught.value)
        assert time.process_time() - began < SECONDS
        assert tracemalloc.get_traced_memory()[1] < MEGABYTES << 20
    finally:
        tracemalloc.stop()


def test_an_entry_twice(tmp_path):
    (tmp_path / "a.gguf").write_bytes(file({"llama.block_counu": 1}).replace(b"block_counu", b"block_count"))
    with pytest.raises(FormatError, match="occurs twice"):
        cq.load(tmp_path / "a.gguf")


def test_cut_anywhere(tmp_path):
    whole = file()
    for length in [*range(0, 64), *range(64, len(whole), 41), len(whole) - 33]:
        (tmp_path / "a.gguf").write_bytes(whole[:length])
        with pytest.raises(FormatError, match="a.gguf"):
            cq.load(tmp_path / "a.gguf")


def test_flipped_bytes_give_a_model_or_an_error_of_cq(tmp_path):
    whole, rng, refused = np.frombuffer(file(), np.uint8), np.random.default_rng(5), 0
    for _ in range(500):
        data = whole.copy()
        at = rng.integers(0, len(data) // 2, rng.integers(1, 4))
        data[at] = rng.integers(0, 256, len(at))
        (tmp_path / "a.gguf").write_bytes(data.tobytes())
        try:
            cq.load(tmp_path / "a.gguf")
        except CqError:
            refused += 1
    assert refused > 250
