"""Files that are broken, lie or mean harm: each gives one clear error, quickly and without much memory, and runs
nothing."""

import io
import json
import pickle
import struct
import time
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models

from cq.errors import CqError, FormatError, UnsupportedError
from cq.formats.arrays import read_arrays
from cq.formats.huggingface import read_folder
from cq.formats.tensors import read_tensors

SECONDS, MEGABYTES = 5, 48  # CPU time and memory per file, at most; most take milliseconds
CONFIG = dict(
    model_type="bert",
    vocab_size=11,
    hidden_size=8,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=6,
    max_position_embeddings=5,
    type_vocab_size=2,
)


def bert() -> dict[str, np.ndarray]:
    """Weights of the smallest BERT, all of them sound."""
    shapes = {
        "embeddings.word_embeddings.weight": (11, 8),
        "embeddings.position_embeddings.weight": (5, 8),
        "embeddings.token_type_embeddings.weight": (2, 8),
        "embeddings.LayerNorm.weight": (8,),
        "embeddings.LayerNorm.bias": (8,),
    }
    for i in range(2):
        for module, out, into in (
            ("attention.self.query", 8, 8),
            ("attention.self.key", 8, 8),
            ("attention.self.value", 8, 8),
            ("attention.output.dense", 8, 8),
            ("intermediate.dense", 6, 8),
            ("output.dense", 8, 6),
        ):
            shapes |= {f"encoder.layer.{i}.{module}.weight": (out, into), f"encoder.layer.{i}.{module}.bias": (out,)}
        for module in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes |= {f"encoder.layer.{i}.{module}.weight": (8,), f"encoder.layer.{i}.{module}.bias": (8,)}
    return {name: np.ones(shape, np.float32) for name, shape in shapes.items()}


def good(folder):
    (folder / "config.json").write_text(json.dumps(CONFIG))
    save_file(bert(), folder / "model.safetensors")
    Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1}, "[UNK]")).save(str(folder / "tokenizer.json"))
    return folder


class Explosive:
    """Unpickled, it ends the test run."""

    def __reduce__(self):
        return exec, ("import os; os._exit(66)",)


# Makers: each takes a good folder, spoils it, and returns what is to be opened: the folder, or one file.


def model(data: bytes):
    def make(folder):
        (folder / "model.safetensors").write_bytes(data)
        return folder

    return make


def header(entries, data: bytes = b"", length: int | None = None):
    """A safetensors file of this header: a dict, or the bytes themselves."""
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return model(struct.pack("<Q", len(text) if length is None else length) + text + data)


def entry(shape, begin: int, end: int, dtype="F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def weights(change):
    """The weights that `change` makes of the good ones, dict → dict."""

    def make(folder):
        save_file(change(bert()), folder / "model.safetensors")
        return folder

    return make


def config(**entries):
    """config.json with these entries; ... removes one."""

    def make(folder):
        values = {key: value for key, value in (CONFIG | entries).items() if value is not ...}
        (folder / "config.json").write_text(json.dumps(values))
        return folder

    return make


def file(name: str, data: bytes):
    def make(folder):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
        return folder

    return make


def shards(weight_map):
    """The weights in a file of another name, and an index of this map beside it."""

    def make(folder):
        (folder / "model.safetensors").rename(folder / "shard.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        return folder

    return make


def without(*names: str, then=None):
    def make(folder):
        for name in names:
            (folder / name).unlink()
        return then(folder) if then else folder

    return make


def modules(*entries, **files):
    """modules.json of (type, path), and 1_Pooling/config.json if `pooling` is given."""

    def make(folder):
        (folder / "modules.json").write_text(
            json.dumps([{"type": f"st.{kind}", "path": path} for kind, path in entries])
        )
        return file("1_Pooling/config.json", files["pooling"])(folder) if files else folder

    return make


def npz(members: dict[str, bytes], method=zipfile.ZIP_DEFLATED):
    """An npz of these members, opened by itself."""

    def make(folder):
        with zipfile.ZipFile(folder / "a.npz", "w", method) as archive:
            for name, data in members.items():
                archive.writestr(name, data)
        return folder / "a.npz"

    return make


def named(name: str, data):
    def make(folder):
        (folder / name).write_bytes(data)
        return folder / name

    return make


def npy(array, **options) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.asarray(array), **options)
    return buffer.getvalue()


def npy_header(shape, descr="<f4", data: bytes = b"") -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": descr, "fortran_order": False, "shape": shape})
    return buffer.getvalue() + data


def saved(save, value) -> bytes:
    buffer = io.BytesIO()
    save(value, buffer)
    return buffer.getvalue()


def twice(folder):
    with pytest.warns(UserWarning, match="Duplicate name"):
        with zipfile.ZipFile(folder / "a.npz", "w") as archive:
            archive.writestr("a.npy", npy([1.0]))
            archive.writestr("a.npy", npy([2.0]))
    return folder / "a.npz"


def bomb(folder):
    """Two megabytes that would unpack to half a gigabyte."""
    with zipfile.ZipFile(folder / "a.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("a.npy", "w") as member:
            member.write(npy_header((2**27,)))
            for _ in range(64):
                member.write(bytes(8 << 20))
    return folder / "a.npz"


def panicking(folder):
    """A tokenizer whose template names a special token that it has not: the Rust library panics, which is no
    Exception."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    both = [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}]
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "pair": both,
        "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}],
        "special_tokens": {},
    }
    return file("tokenizer.json", json.dumps(tokenizer).encode())(folder)


def nan_at(name, index, value):
    def change(tensors):
        tensors[name][index] = value
        return tensors

    return weights(change)


def set_to(name, array):
    return weights(lambda tensors: tensors | {name: array})


def torch_zip() -> bytes:
    return saved(torch.save, {"a": torch.zeros(3)})


QUERY = "encoder.layer.1.attention.self.query.weight"
PICKLE = pickle.dumps(Explosive())
EIGHT = bytes(8)
HUGE_CONFIG = dict(vocab_size=2**31 - 1, hidden_size=2**31 - 1, num_attention_heads=1, num_hidden_layers=2**31 - 1)

FILES = [
    # safetensors: the container
    ("empty", model(b""), FormatError, "model.safetensors: truncated"),
    ("five bytes", model(b"\0\0\0\0\0"), FormatError, "truncated"),
    ("eight bytes", model(bytes(8)), FormatError, "header"),
    ("header of 2**63", header({}, length=2**63), FormatError, "truncated.*9223372036854775808 bytes"),
    ("header of 2**64-1", header({}, length=2**64 - 1), FormatError, "truncated"),
    ("header longer than the file", header({"a": entry([1], 0, 4)}, bytes(4), length=1000), FormatError, "truncated"),
    ("header shorter than it is", header({"a": entry([1], 0, 4)}, bytes(4), length=20), FormatError, "not valid JSON"),
    ("header of 40 MB", header(b" " * (40 << 20)), FormatError, "header of 41943040 bytes; at most"),
    ("not JSON", header(b"hello"), FormatError, "header: not valid JSON"),
    ("not UTF-8", header(b'{"\xff\xfe": 1}'), FormatError, "header: not UTF-8"),
    ("a list", header([1, 2]), FormatError, "wanted a JSON object"),
    ("deep nesting", header(b'{"a":' + b"[" * 100_000), FormatError, "not valid JSON"),
    ("a number of 100,000 digits", header(b'{"a":' + b"9" * 100_000 + b"}"), FormatError, "not valid JSON"),
    ("random bytes", model(np.random.default_rng(0).bytes(4096)), FormatError, "truncated"),
    ("pickle as safetensors", model(PICKLE), FormatError, "pickled objects"),
    ("torch's zip as safetensors", model(torch_zip()), FormatError, "zip archive"),
    ("HTML as safetensors", model(b"<!DOCTYPE html><html>404</html>"), FormatError, "truncated"),
    (
        "git-lfs pointer as safetensors",
        model(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        FormatError,
        "truncated",
    ),
    # safetensors: the entries
    (
        "offsets beyond the file",
        header({"a": entry([4], 0, 16)}, EIGHT),
        FormatError,
        "truncated: tensor 'a' ends at byte 16",
    ),
    ("offsets of 2**62", header({"a": entry([2**60], 0, 2**62)}, EIGHT), FormatError, "truncated: tensor 'a'"),
    (
        "offsets overlap",
        header({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, bytes(12)),
        FormatError,
        "'b' begins at 4, inside",
    ),
    (
        "offsets leave a hole",
        header({"a": entry([1], 0, 4), "b": entry([1], 8, 12)}, bytes(12)),
        FormatError,
        "'b'.*not at the end",
    ),
    ("offsets reversed", header({"a": entry([2], 8, 0)}, EIGHT), FormatError, "'a'.*takes 8 bytes"),
    ("offsets negative", header({"a": entry([2], -8, 0)}, EIGHT), FormatError, "'a'.*natural numbers"),
    (
        "three offsets",
        header({"a": dict(dtype="F32", shape=[2], data_offsets=[0, 4, 8])}, EIGHT),
        FormatError,
        "'a'.*natural",
    ),
    (
        "bytes after the last tensor",
        header({"a": entry([2], 0, 8)}, bytes(9)),
        FormatError,
        "1 bytes after the last tensor",
    ),
    ("shape lies", header({"a": entry([3], 0, 8)}, EIGHT), FormatError, "'a': shape .3. of F32 takes 12 bytes"),
    ("shape overflows 64 bits", header({"a": entry([2**40, 2**40], 0, 8)}, EIGHT), FormatError, "'a'.*no size"),
    ("shape wraps to what fits", header({"a": entry([2**62, 4, 2], 0, 0)}), FormatError, "'a'.*no size"),
    ("shape huge beside a zero", header({"a": entry([0, 2**63, 2**63], 0, 0)}), FormatError, "'a'.*no size"),
    ("shape negative", header({"a": entry([-2, -1], 0, 8)}, EIGHT), FormatError, "'a'.*natural numbers"),
    ("shape of floats", header({"a": entry([2.0], 0, 8)}, EIGHT), FormatError, "'a'.*natural numbers"),
    ("shape of booleans", header({"a": entry([True, 2], 0, 8)}, EIGHT), FormatError, "'a'.*natural numbers"),
    ("100 dimensions", header({"a": entry([1] * 100, 0, 4)}, bytes(4)), FormatError, "'a': 100 dimensions"),
    (
        "the same name twice",
        header(b'{"a":%s,"a":%s}' % ((json.dumps(entry([2], 0, 8)).encode(),) * 2), EIGHT),
        FormatError,
        "'a' occurs twice",
    ),
    ("dtype unknown", header({"a": entry([2], 0, 8, "Q9")}, EIGHT), UnsupportedError, "'a': dtype 'Q9'"),
    ("dtype of 8 bits", header({"a": entry([8], 0, 8, "F8_E4M3")}, EIGHT), UnsupportedError, "F8_E4M3"),
    ("dtype a number", header({"a": entry([2], 0, 8, 7)}, EIGHT), FormatError, "'a': dtype must be a string"),
    ("entry a number", header({"a": 7}), FormatError, "'a': wanted dtype, shape and data_offsets"),
    ("metadata of numbers", header({"__metadata__": {"a": 1}}), FormatError, "__metadata__"),
    # weights
    (
        "no tensors",
        weights(lambda tensors: {"pooler.dense.bias": tensors["embeddings.LayerNorm.bias"]}),
        FormatError,
        "layers none",
    ),
    (
        "weight missing",
        weights(lambda tensors: {k: v for k, v in tensors.items() if k != QUERY}),
        FormatError,
        r"missing weight layers.1.attention.query.weight of shape \(8, 8\)",
    ),
    (
        "bias missing",
        weights(lambda tensors: {k: v for k, v in tensors.items() if k != "embeddings.LayerNorm.bias"}),
        FormatError,
        "missing weight embed.norm.bias",
    ),
    (
        "layer missing",
        weights(lambda tensors: {k: v for k, v in tensors.items() if ".layer.1." not in k}),
        FormatError,
        "says 2 layers",
    ),
    ("layer too many", set_to(QUERY.replace("1", "2"), np.ones((8, 8), np.float32)), FormatError, "says 2 layers"),
    (
        "layer of a large number",
        set_to(QUERY.replace("1", "999999999"), np.ones((8, 8), np.float32)),
        FormatError,
        "999999999",
    ),
    (
        "weight unknown",
        set_to("encoder.layer.0.crossattention.self.query.weight", np.ones((8, 8), np.float32)),
        UnsupportedError,
        "crossattention",
    ),
    (
        "weight transposed",
        set_to("encoder.layer.1.output.dense.weight", np.ones((6, 8), np.float32)),
        FormatError,
        r"layers.1.ffn.down.weight has shape \(6, 8\).*asks for \(8, 6\)",
    ),
    ("weight flat", set_to(QUERY, np.ones(64, np.float32)), FormatError, r"query.weight has shape \(64,\)"),
    (
        "weight of integers",
        set_to(QUERY, np.ones((8, 8), np.int8)),
        FormatError,
        "layers.1.attention.query.weight is int8",
    ),
    (
        "weight NaN",
        nan_at(QUERY, (3, 5), np.nan),
        FormatError,
        r"layers.1.attention.query.weight is nan at index \(3, 5\)",
    ),
    (
        "weight infinite",
        nan_at("embeddings.LayerNorm.bias", 7, -np.inf),
        FormatError,
        r"embed.norm.bias is -inf at index \(7,\)",
    ),
    ("weight beyond float32", set_to(QUERY, np.full((8, 8), 1e300)), FormatError, r"is inf at index \(0, 0\)"),
    (
        "weight twice",
        set_to("bert." + QUERY, np.ones((8, 8), np.float32)),
        FormatError,
        "both the weight layers.1.attention.query",
    ),
    # config.json
    ("config missing", without("config.json"), FormatError, "no config.json"),
    ("config empty", file("config.json", b""), FormatError, "config.json: not valid JSON"),
    ("config not JSON", file("config.json", b"{'a': 1}"), FormatError, "config.json: not valid JSON"),
    ("config a list", file("config.json", b"[]"), FormatError, "wanted a JSON object"),
    ("config UTF-16", file("config.json", json.dumps(CONFIG).encode("utf-16")), FormatError, "config.json: not UTF-8"),
    (
        "config with NaN",
        file("config.json", json.dumps(CONFIG | {"layer_norm_eps": float("nan")}).encode()),
        FormatError,
        "NaN",
    ),
    ("config deep", file("config.json", b'{"a":' * 100_000), FormatError, "not valid JSON"),
    ("config of 17 MB", file("config.json", b" " * (17 << 20)), FormatError, "at most 16777216"),
    (
        "config with an entry twice",
        file("config.json", b'{"model_type": "bert", "model_type": "llama"}'),
        FormatError,
        "twice",
    ),
    ("config a folder", without("config.json", then=file("config.json/a", b"")), FormatError, "not a regular file"),
    ("config without a field", config(hidden_size=...), FormatError, r"embed.word has shape .* asks for \(11, 768\)"),
    ("config with null", config(vocab_size=None), FormatError, "vocab_size .* got None"),
    ("config negative", config(num_hidden_layers=-1), FormatError, "num_hidden_layers .* got -1"),
    ("config zero", config(num_attention_heads=0), FormatError, "num_attention_heads .* got 0"),
    ("config a float", config(intermediate_size=6.0), FormatError, "intermediate_size .* got 6.0"),
    ("config a string", config(vocab_size="11"), FormatError, "vocab_size .* got '11'"),
    ("config a boolean", config(num_hidden_layers=True), FormatError, "num_hidden_layers .* got True"),
    ("config 2**31 layers", config(num_hidden_layers=2**31), FormatError, "num_hidden_layers"),
    ("config 10**4000", config(hidden_size=10**4000), FormatError, "hidden_size"),
    ("config all huge", config(**HUGE_CONFIG), FormatError, "says 2147483647 layers"),
    (
        "config huge but for layers",
        config(**HUGE_CONFIG | {"num_hidden_layers": 2}),
        FormatError,
        "asks for .2147483647, 2147483647",
    ),
    ("config uneven heads", config(num_attention_heads=3), FormatError, "hidden_size 8 is not a multiple"),
    ("config eps negative", config(layer_norm_eps=-1e-12), FormatError, "layer_norm_eps"),
    ("config activation a list", config(hidden_act=["gelu"]), UnsupportedError, "hidden_act"),
    ("config activation of a megabyte", config(hidden_act="x" * (1 << 20)), UnsupportedError, "hidden_act"),
    ("config without model_type", config(model_type=...), FormatError, "no model_type"),
    ("config of another model", config(model_type="mamba"), UnsupportedError, "family 'mamba'"),
    ("config model_type a dict", config(model_type={}), UnsupportedError, "family"),
    (
        "config heads that share unevenly",
        config(model_type="llama", num_attention_heads=4, num_key_value_heads=3),
        FormatError,
        "num_kv_heads 3",
    ),
    ("config rope a string", config(model_type="llama", rope_scaling="linear"), FormatError, "rope_scaling"),
    ("config rope negative", config(model_type="llama", rope_theta=-1), FormatError, "rope_theta"),
    (
        "config architectures a string",
        config(model_type="llama", architectures="LlamaForCausalLM"),
        FormatError,
        "architectures",
    ),
    # the folder
    ("folder missing", lambda folder: folder / "nothing", FileNotFoundError, "nothing: no such"),
    ("weights missing", without("model.safetensors"), FormatError, "no model.safetensors"),
    ("shards without a map", shards(None), FormatError, "weight_map must map tensors to files, got None"),
    ("shards of numbers", shards({"a": 3}), FormatError, "weight_map must map tensors to files"),
    (
        "shards elsewhere",
        shards({"a": "../b.safetensors"}),
        FormatError,
        "is not the name of a .safetensors file beside it",
    ),
    ("shards pickled", shards({"a": "b.bin"}), FormatError, "is not the name of a .safetensors file beside it"),
    (
        "shard missing",
        shards({"a": "b.safetensors"}),
        FormatError,
        "'b.safetensors', one of the files that it names, is not there",
    ),
    ("shards with too little", shards({"a": "shard.safetensors"}), FormatError, "has not the tensors that it should"),
    (
        "weights pickled",
        without("model.safetensors", then=file("pytorch_model.bin", PICKLE)),
        FormatError,
        "pytorch_model.bin is a pickle",
    ),
    ("tokenizer garbage", file("tokenizer.json", b"\x00\x01garbage"), FormatError, "tokenizer.json: not a tokenizer"),
    ("tokenizer empty", file("tokenizer.json", b""), FormatError, "tokenizer.json: not a tokenizer"),
    ("tokenizer another JSON", file("tokenizer.json", b'{"a": 1}'), FormatError, "tokenizer.json: not a tokenizer"),
    (
        "tokenizer not UTF-8",
        file("tokenizer.json", b'{"version": "\xff"}'),
        FormatError,
        "tokenizer.json: not a tokenizer",
    ),
    ("tokenizer deep", file("tokenizer.json", b"[" * 1_000_000), FormatError, "tokenizer.json: not a tokenizer"),
    ("tokenizer that panics", panicking, FormatError, "tokenizer.json: not a tokenizer"),
    ("modules garbage", file("modules.json", b"garbage"), FormatError, "modules.json: not valid JSON"),
    ("modules a dict", file("modules.json", b"{}"), FormatError, "wanted a JSON array"),
    ("modules of numbers", file("modules.json", b"[1, 2]"), FormatError, "each module must have a type and a path"),
    ("modules unknown", modules(("Transformer", ""), ("WordWeights", "2_Words")), UnsupportedError, "WordWeights"),
    ("modules path upwards", modules(("Transformer", "../../etc")), FormatError, "inside the model's folder"),
    ("modules path absolute", modules(("Transformer", "/etc")), FormatError, "inside the model's folder"),
    ("modules path of a zero byte", modules(("Transformer", "a\0b")), FormatError, "inside the model's folder"),
    ("modules path long", modules(("Transformer", "x" * 5000)), FormatError, "inside the model's folder"),
    ("modules path not there", modules(("Transformer", "0_Transformer")), FormatError, "no config.json"),
    ("pooling not there", modules(("Transformer", ""), ("Pooling", "1_Pooling")), FileNotFoundError, "1_Pooling"),
    (
        "pooling garbage",
        modules(("Transformer", ""), ("Pooling", "1_Pooling"), pooling=b"x"),
        FormatError,
        "not valid JSON",
    ),
    (
        "pooling of another width",
        modules(("Transformer", ""), ("Pooling", "1_Pooling"), pooling=b'{"word_embedding_dimension": 9}'),
        FormatError,
        "hidden_size 8",
    ),
    (
        "pooling flag a number",
        modules(("Transformer", ""), ("Pooling", "1_Pooling"), pooling=b'{"pooling_mode_cls_token": 1}'),
        FormatError,
        "pooling_mode_cls_token",
    ),
    ("length negative", file("sentence_bert_config.json", b'{"max_seq_length": -5}'), FormatError, "max_seq_length"),
    ("length garbage", file("sentence_bert_config.json", b"\xff"), FormatError, "not UTF-8"),
    # npz and other single files
    ("npz empty", named("a.npz", b""), FormatError, "a.npz: not a whole npz file"),
    ("npz not a zip", named("a.npz", b"hello" * 100), FormatError, "a.npz: not a whole npz file"),
    ("npz is a pickle", named("a.npz", PICKLE), FormatError, "a.npz: not a whole npz file"),
    ("npz is torch's zip", named("a.npz", torch_zip()), FormatError, "a.npz: holds pickled objects"),
    (
        "npz of objects",
        npz({"a.npy": npy(np.array([Explosive()], object), allow_pickle=True)}),
        FormatError,
        "'a': holds pickled",
    ),
    (
        "npz of objects within a record",
        npz({"a.npy": npy(np.zeros(1, [("x", "O")]), allow_pickle=True)}),
        FormatError,
        "pickled",
    ),
    ("npz of records", npz({"a.npy": npy(np.zeros(1, [("x", "<f4")]))}), UnsupportedError, "'a': dtype"),
    ("npz of complex", npz({"a.npy": npy([1j])}), UnsupportedError, "'a': dtype complex128"),
    ("npz of dates", npz({"a.npy": npy(np.zeros(1, "M8[s]"))}), UnsupportedError, "'a': dtype datetime"),
    ("npz of many strings", npz({"a.npy": npy(["x", "y"])}), FormatError, "'a': strings"),
    ("npz of other files", npz({"readme.txt": b"hello"}), FormatError, "contains 'readme.txt'"),
    ("npz whose npy is none", npz({"a.npy": b"hello"}), FormatError, "'a': not an npy array"),
    ("npz whose npy is empty", npz({"a.npy": b""}), FormatError, "'a': not an npy array"),
    (
        "npz whose header is code",
        npz({"a.npy": b"\x93NUMPY\x01\x00\x36\x00" + b"__import__('os')._exit(66)".ljust(53) + b"\n"}),
        FormatError,
        "'a': not an npy array",
    ),
    ("npz of another version", npz({"a.npy": b"\x93NUMPY\x09\x00\x36\x00"}), FormatError, "'a': not an npy array"),
    (
        "npz shape lies",
        npz({"a.npy": npy_header((100,), data=bytes(8))}),
        FormatError,
        "'a'.*takes 400 bytes, the file has 8",
    ),
    ("npz shape of terabytes", npz({"a.npy": npy_header((2**40,), data=bytes(8))}), FormatError, "'a'.*the file has 8"),
    ("npz shape overflows", npz({"a.npy": npy_header((2**62, 4), data=bytes(8))}), FormatError, "'a'.*no size"),
    ("npz shape negative", npz({"a.npy": npy_header((-2, -1), data=bytes(8))}), FormatError, "'a'.*no size"),
    (
        "npz item of gigabytes",
        npz({"a.npy": npy_header((), "<U536870911", bytes(8))}),
        FormatError,
        "'a'.*the file has 8",
    ),
    ("npz array twice", twice, FormatError, "'a' occurs 2 times"),
    ("npz bomb", bomb, FormatError, "decompression bomb"),
    ("npz by LZMA", npz({"a.npy": npy([1.0])}, zipfile.ZIP_LZMA), FormatError, "compressed by a method"),
    ("npz config garbage", npz({"config.npy": npy("{]")}), FormatError, "a.npz: config: not valid JSON"),
    ("npz config a lone surrogate", npz({"config.npy": npy("\ud800")}), FormatError, "a.npz: config: not UTF-8"),
    (
        "npz config no character",
        npz({"config.npy": npy_header((), "<U1", b"\xff\xff\xff\xff")}),
        FormatError,
        "'config': not text",
    ),
    ("npz config not UTF-8", npz({"config.npy": npy(np.bytes_(b"\xff\xff"))}), FormatError, "'config': not text"),
    ("npz without a layer", npz({"a.npy": npy([1.0])}), UnsupportedError, "'a' has no place"),
    ("pickle", named("model.bin", PICKLE), FormatError, "model.bin: holds pickled objects"),
    ("torch's pickle", named("model.pt", torch_zip()), FormatError, "model.pt: holds pickled objects"),
    ("pickle by its plain name", named("model.pkl", PICKLE), FormatError, "model.pkl: holds pickled objects"),
    ("another kind of file", named("model.onnx", b"hello"), UnsupportedError, "wanted a name ending in"),
    ("no file", lambda folder: folder / "none.npz", FileNotFoundError, "none.npz"),
]


def open_it(path):
    """As a user would: a folder or a file of arrays."""
    return read_arrays(path) if path.suffix in (".npz", ".bin", ".pt", ".pkl", ".onnx") else read_folder(path)


def test_the_good_folder_is_good(tmp_path):
    config, weights, tokenizer = read_folder(good(tmp_path))
    assert len(weights) == len(bert()) and config.num_layers == 2 and tokenizer.encode("a").ids == [1]


@pytest.mark.parametrize("make, error, words", [row[1:] for row in FILES], ids=[row[0] for row in FILES])
def test_bad_files_give_one_clear_error(tmp_path, make, error, words):
    path = make(good(tmp_path))
    tracemalloc.start()
    began = time.process_time()
    try:
        with pytest.raises(error, match=words) as caught:
            open_it(path)
        assert caught.type is error and len(str(caught.value)) < 1000 and "\n" not in str(caught.value)
        assert time.process_time() - began < SECONDS
        assert tracemalloc.get_traced_memory()[1] < MEGABYTES << 20
    finally:
        tracemalloc.stop()


def test_names_are_unique():
    assert len({row[0] for row in FILES}) == len(FILES)


def test_safetensors_cut_anywhere(tmp_path):
    path = good(tmp_path) / "model.safetensors"
    whole = path.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    for length in [
        *range(0, 64),
        *range(64, start, 37),
        start,
        start + 1,
        *range(start, len(whole), 101),
        len(whole) - 1,
    ]:
        path.write_bytes(whole[:length])
        with pytest.raises(FormatError, match="model.safetensors"):
            read_folder(tmp_path)


def test_npz_cut_anywhere(tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, **bert())
    whole = path.read_bytes()
    for length in [*range(0, 200), *range(200, len(whole), 97), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(FormatError, match="a.npz"):
            read_arrays(path, CONFIG)


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_flipped_bytes_give_a_model_or_an_error_of_cq(tmp_path, suffix):
    """Every outcome but another exception, a crash or a hang is right: most flips in data cannot be seen."""
    path = tmp_path / f"a{suffix}"
    save_file(bert(), path) if suffix == ".safetensors" else np.savez_compressed(path, **bert())
    whole, rng, refused = np.frombuffer(path.read_bytes(), np.uint8), np.random.default_rng(5), 0
    for _ in range(600):
        data = whole.copy()
        at = rng.integers(0, len(data) if suffix == ".npz" else len(data) // 2, rng.integers(1, 4))
        data[at] = rng.integers(0, 256, len(at))
        path.write_bytes(data.tobytes())
        try:
            read_arrays(path, CONFIG)
        except CqError:
            refused += 1
    assert refused > 300


def test_many_entries_are_read_in_time(tmp_path):
    """30,000 empty tensors: nothing is quadratic."""
    header({f"tensor.{i}": entry([0], 0, 0) for i in range(30_000)})(tmp_path)
    began = time.process_time()
    assert len(read_tensors(tmp_path / "model.safetensors")[0]) == 30_000
    with pytest.raises(UnsupportedError, match="29999 more"):
        read_arrays(tmp_path / "model.safetensors", CONFIG)
    assert time.process_time() - began < 20
