"""Choices, tokens, samples and paths that are wrong, lie or mean harm, given to models: each gives one clear error
that names the argument, and none ends the process or leaves a file."""

import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

import cq
from cq import CalibrationError, CqError, FormatError, UnsupportedError

IDS = np.arange(6)

SCHEME = [
    (
        "weight_granularity",
        lambda: cq.Scheme(weight_granularity="per_row"),
        CqError,
        "weight_granularity .*per_channel.*'per_row'",
    ),
    (
        "activation_granularity",
        lambda: cq.Scheme(activation_granularity=None),
        CqError,
        "activation_granularity .*None",
    ),
    ("activation_dtype", lambda: cq.Scheme(activation_dtype="int16"), CqError, "activation_dtype .*'int16'"),
    ("activation_dtype, list", lambda: cq.Scheme(activation_dtype=["int8"]), CqError, "activation_dtype"),
    ("bias", lambda: cq.Scheme(bias="int16"), CqError, "bias .*'int16'"),
    ("weight_symmetric", lambda: cq.Scheme(weight_symmetric="no"), CqError, "weight_symmetric .*'no'"),
    ("symmetric uint8", lambda: cq.Scheme(activation_symmetric=True), CqError, "activation_dtype='int8'"),
    ("group_size alone", lambda: cq.Scheme(group_size=32), CqError, "group_size with .*per_group"),
    ("per_group alone", lambda: cq.Scheme(weight_granularity="per_group"), CqError, "group_size .*None"),
    (
        "groups of 6",
        lambda: cq.Scheme(weight_granularity="per_group", group_size=6),
        CqError,
        "group_size .*multiple of 4.*6",
    ),
    ("groups, text", lambda: cq.Scheme(weight_granularity="per_group", group_size="8"), CqError, "group_size .*'8'"),
    ("unknown choice", lambda: cq.Scheme(clip=True), TypeError, "clip"),
    ("scheme, text", lambda: cq.WeightOnly(scheme="textbook"), CqError, "WeightOnly: scheme .*cq.Scheme.*str"),
    ("include, number", lambda: cq.WeightOnly(include=5), CqError, "include .*5"),
    ("exclude, numbers", lambda: cq.Dynamic(exclude=[5]), CqError, "exclude .*5"),
    (
        "groups in int8",
        lambda: cq.Dynamic(cq.Scheme(weight_granularity="per_group", group_size=8)),
        CqError,
        "per_group .*WeightOnly",
    ),
    ("observer", lambda: cq.Static(observer="kl"), CqError, "observer .*minmax.*'kl'"),
    ("observer, None", lambda: cq.Static(observer=None), CqError, "observer .*None"),
    ("observer, object", lambda: cq.Static(observer=cq.observers.MinMax()), CqError, "observer .*MinMax"),
]


def static(m, calibration):
    return cq.quantize(m.encoder, cq.Static(observer="minmax"), calibration=calibration)


QUANTIZE = [
    ("model, None", lambda m: cq.quantize(None, cq.Dynamic()), CqError, "model: .*cq.load.*NoneType"),
    ("model, path", lambda m: cq.quantize("model.safetensors", cq.Dynamic()), CqError, "model: .*cq.load.*str"),
    (
        "model, already quantized",
        lambda m: cq.quantize(m.quantized, cq.Dynamic()),
        CqError,
        "model: already quantized.*dynamic",
    ),
    ("strategy, text", lambda m: cq.quantize(m.encoder, "int8"), CqError, "strategy: .*cq.Static.*'int8'"),
    ("strategy, None", lambda m: cq.quantize(m.encoder, None), CqError, "strategy: .*None"),
    ("strategy, class", lambda m: cq.quantize(m.encoder, cq.Dynamic), CqError, r"strategy: .*cq.Dynamic\(\).*class"),
    ("strategy, scheme", lambda m: cq.quantize(m.encoder, cq.Scheme()), CqError, "strategy: .*Scheme"),
    (
        "static without samples",
        lambda m: cq.quantize(m.encoder, cq.Static()),
        CalibrationError,
        "calibration: .*100-500",
    ),
    (
        "samples for dynamic, fast",
        lambda m: cq.quantize(m.encoder, cq.Dynamic(effort="fast"), ["a"]),
        CqError,
        "calibration: only Static.*Dynamic",
    ),
    (
        "samples for weight-only",
        lambda m: cq.quantize(m.encoder, cq.WeightOnly(), []),
        CqError,
        "calibration: no samples",
    ),
    ("no samples", lambda m: static(m, []), CalibrationError, "calibration: no samples"),
    ("empty batches", lambda m: static(m, [[], []]), CqError, "calibration: no samples"),
    ("an exhausted iterator", lambda m: static(m, iter(())), CalibrationError, "calibration: no samples"),
    ("one text", lambda m: static(m, "a text"), CqError, "calibration: .*iterable.*str"),
    ("bytes", lambda m: static(m, b"a text"), CqError, "calibration: .*bytes"),
    ("a number", lambda m: static(m, 7), CqError, "calibration: .*int"),
    ("None among samples", lambda m: static(m, ["a", None]), CqError, "tokens"),
    ("floats among samples", lambda m: static(m, [np.ones(4)]), CqError, "tokens.*float64"),
    ("an id too large", lambda m: static(m, [np.array([1, 999])]), CqError, "tokens.*999.*255"),
    (
        "progress, no function",
        lambda m: cq.quantize(m.encoder, cq.Static(), ["a"], progress=5),
        CqError,
        "progress: .*int",
    ),
]


def tokens(value, words, kind=CqError):
    return lambda m: m.encoder.forward(value), kind, words


FORWARD = [
    ("a text", *tokens("a text", "tokens: got a text.*tokenize")),
    ("bytes", *tokens(b"a text", "tokens: got a text")),
    ("None", *tokens(None, "tokens: .*NoneType")),
    ("a number", *tokens(5, "tokens: .*int")),
    ("1 dimension", *tokens(IDS, r"tokens: .*2-D.*\(6,\)")),
    ("3 dimensions", *tokens(IDS[None, None], r"tokens: .*\(1, 1, 6\)")),
    ("plain ids", *tokens([1, 2, 3], r"tokens\[0\]: .*1-D")),
    ("floats", *tokens([IDS * 1.0], r"tokens\[0\]: .*float64")),
    ("NaN", *tokens([np.full(3, np.nan)], r"tokens\[0\]: .*float64")),
    ("bools", *tokens([IDS > 2], r"tokens\[0\]: .*bool")),
    ("texts", *tokens(["ab", "cd"], r"tokens\[0\]: ")),
    ("None inside", *tokens([IDS, None], r"tokens\[1\]: .*object")),
    ("objects", *tokens([IDS.astype(object)], r"tokens\[0\]: .*object")),
    ("ragged inside", *tokens([[[1], [1, 2]]], r"tokens\[0\]: not a 1-D")),
    ("2 dimensions inside", *tokens([IDS[None]], r"tokens\[0\]: .*1-D.*\(1, 6\)")),
    ("empty sequence", *tokens([IDS, []], r"tokens\[1\]: empty")),
    ("negative id", *tokens([IDS, IDS - 1], r"tokens\[1\]: token id -1 at position 0.*255")),
    ("id too large", *tokens([IDS + 251], r"tokens\[0\]: token id 256 at position 5.*255")),
    ("id beyond int32", *tokens([np.array([2**32 + 1])], r"tokens\[0\]: token id 4294967297")),
    ("id beyond int64", *tokens([[2**70]], r"tokens\[0\]: ")),
    (
        "unsigned id that would wrap",
        *tokens([np.array([2**64 - 1], np.uint64)], r"tokens\[0\]: token id 18446744073709551615"),
    ),
    ("too long", *tokens([np.zeros(65, int)], r"tokens\[0\]: 65 tokens.*at most 64.*cut")),
    ("swapped bytes beyond", *tokens([np.array([300], ">i4")], r"tokens\[0\]: token id 300")),
    (
        "logits of an encoder",
        lambda m: m.encoder.logits([IDS]),
        UnsupportedError,
        "logits: .*no head that reads every token",
    ),
    ("logits, text", lambda m: m.lm.logits("a"), CqError, "tokens: got a text"),
    ("embed of a decoder", lambda m: m.lm.embed(["a"]), UnsupportedError, "embed: .*no pooling"),
    ("embed, None", lambda m: m.encoder.embed(None), CqError, "tokens: .*NoneType"),
    ("embed, number", lambda m: m.encoder.embed(5), CqError, "tokens: .*int"),
    ("embed, None inside", lambda m: m.encoder.embed(["a", None]), CqError, r"tokens\[1\]: "),
    ("embed, empty text", lambda m: m.encoder.embed(["a", ""]), CqError, r"tokens\[1\]: empty"),
    ("embed, bytes", lambda m: m.encoder.embed([b"ab"]), CqError, r"tokens\[0\]: "),
    ("batch_size, 0", lambda m: m.encoder.embed(["a"], batch_size=0), CqError, "batch_size: .*0"),
    ("batch_size, text", lambda m: m.encoder.embed(["a"], batch_size="2"), CqError, "batch_size: .*'2'"),
    ("batch_size, float", lambda m: m.encoder.embed(["a"], batch_size=2.0), CqError, "batch_size: .*2.0"),
    ("batch_size, bool", lambda m: m.encoder.embed(["a"], batch_size=True), CqError, "batch_size: .*True"),
    ("tokenize, None", lambda m: m.encoder.tokenize(None), CqError, "text: .*NoneType"),
    ("tokenize, bytes", lambda m: m.encoder.tokenize(b"a"), CqError, "text: .*bytes"),
    ("tokenize, list", lambda m: m.encoder.tokenize(["a"]), CqError, "text: .*list"),
    ("tokenize, half a character", lambda m: m.encoder.tokenize("\ud800"), CqError, "text: "),
    ("tokenize without a tokenizer", lambda m: m.bare.tokenize("a"), CqError, "tokenize: .*tokenizer.json"),
]

FILES = [
    ("save, no model", lambda m: cq.save(None, m.folder / "a.safetensors"), CqError, "model: .*NoneType"),
    ("save, weights", lambda m: cq.save({"w": IDS}, m.folder / "a.safetensors"), CqError, "model: .*dict"),
    ("save, no path", lambda m: cq.save(m.encoder, None), CqError, "path: .*NoneType"),
    ("save, number", lambda m: cq.save(m.encoder, 3), CqError, "path: .*int"),
    ("save, suffix", lambda m: cq.save(m.encoder, m.folder / "a.bin"), FormatError, "a.bin: .*safetensors"),
    ("save, pickle", lambda m: cq.save(m.encoder, str(m.folder / "a.pt")), FormatError, "a.pt: .*safetensors"),
    (
        "save, no folder",
        lambda m: cq.save(m.encoder, m.folder / "no" / "a.safetensors"),
        FileNotFoundError,
        "no: no such folder",
    ),
    (
        "save, a folder's name",
        lambda m: cq.save(m.encoder, m.folder / "taken.safetensors"),
        CqError,
        "taken.safetensors: .*regular",
    ),
    ("save, zero byte", lambda m: cq.save(m.encoder, "a\0.safetensors"), CqError, "path: .*zero byte"),
    ("load, nothing there", lambda m: cq.load(m.folder / "none"), FileNotFoundError, "none: no such file"),
    ("load, None", lambda m: cq.load(None), CqError, "path: .*NoneType"),
    ("load, number", lambda m: cq.load(5), CqError, "path: .*int"),
    ("load, model", lambda m: cq.load(m.encoder), CqError, "path: .*Transformer"),
    ("load, zero byte", lambda m: cq.load("a\0b"), CqError, "path: .*zero byte"),
    ("load, config", lambda m: cq.load(m.path.parent, config=5), CqError, "config: "),
    ("threads, 0", lambda m: cq.set_num_threads(0), CqError, "n: .*1 to 1024.*0"),
    ("threads, text", lambda m: cq.set_num_threads("2"), CqError, "n: .*'2'"),
    ("threads, many", lambda m: cq.set_num_threads(10**9), CqError, "n: .*1000000000"),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory, tiny_encoder, tiny_lm):
    encoder, bare, folder = cq.load(tiny_encoder), cq.load(tiny_encoder), tmp_path_factory.mktemp("files")
    bare.tokenizer = None
    (folder / "taken.safetensors").mkdir()
    return SimpleNamespace(
        encoder=encoder,
        lm=cq.load(tiny_lm),
        quantized=cq.quantize(encoder, cq.Dynamic()),
        bare=bare,
        folder=folder,
        path=tiny_encoder,
    )


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("case", SCHEME, ids=lambda case: case[0])
def test_choices(case, assert_clear):
    assert_clear(*case)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("case", QUANTIZE + FORWARD + FILES, ids=lambda case: case[0])
def test_models_and_files(case, models, assert_clear):
    name, action, kind, words = case
    assert_clear(name, lambda: action(models), kind, words)
    assert sorted(path.name for path in models.folder.iterdir()) == ["taken.safetensors"]  # no failure leaves a file


@pytest.mark.parametrize("isa", ["foo", "sse", "é", "a" * 5000])
def test_instruction_sets(isa):
    run = subprocess.run(
        [sys.executable, "-c", "import cq"], env=dict(os.environ, CQ_ISA=isa), capture_output=True, text=True
    )
    assert run.returncode == 1 and "UnsupportedError: CQ_ISA=" in run.stderr.splitlines()[-1]


def test_strange_but_right(models):
    """What looks odd and is meant so: no error."""
    expected = models.encoder.forward([IDS])[0]
    for odd in (
        [IDS.astype(">i8")],
        [IDS.astype(np.uint8)],
        [np.repeat(IDS, 2)[::2]],
        IDS[None],
        [list(IDS)],
        (IDS,),
        iter([IDS]),
    ):
        assert models.encoder.forward(odd)[0].tobytes() == expected.tobytes()
    read_only = IDS.copy()
    read_only.setflags(write=False)
    assert models.encoder.forward([read_only])[0].tobytes() == expected.tobytes()
    assert models.encoder.forward([]) == [] and models.encoder.embed([]).shape == (0, 64)
    assert models.encoder.embed("one text").shape == (1, 64)
    assert np.array_equal(
        models.encoder.encode(["a", "b"], batch_size=np.int64(1), truncate_dim=np.int8(7)),
        models.encoder.encode(["a", "b"], truncate_dim=7),
    )
    assert models.lm.coverage(np.int64(5)) == models.lm.coverage(5)
    cq.Static(observer="minmax", include="layers.*")
