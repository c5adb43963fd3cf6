"""Damaged checkpoints of cq's own: each gives one clear error, quickly and without much memory."""

import copy
import json
import time
import tracemalloc

import numpy as np
import pytest
from safetensors.numpy import save_file

import cq
from cq.formats.tensors import read_tensors

SECONDS, MEGABYTES = 5, 48  # per file, at most
TEXTBOOK, GROUPS = cq.Scheme.textbook(), cq.WeightOnly(cq.Scheme(weight_granularity="per_group", group_size=24))
BASES = {
    "lm": ("lm", cq.Static()),
    "encoder": ("encoder", cq.Dynamic(TEXTBOOK)),
    "groups": ("lm", GROUPS),
    "static": ("encoder", cq.Static(TEXTBOOK)),
    "float32": ("lm", None),
    "untied": ("untied", cq.Static()),
    "dynamic": ("lm", cq.Dynamic()),
    "stream": ("encoder", cq.Static(residual="int8")),
}


@pytest.fixture(scope="module")
def bases(tiny_encoder, tiny_lm, tmp_path_factory):
    """Base → (tensors, record) of a sound checkpoint."""
    models = {"encoder": cq.load(tiny_encoder), "lm": cq.load(tiny_lm)}
    weights = read_tensors(tiny_lm)[0]
    models["untied"] = cq.Transformer(
        cq.Config(**models["lm"].config.to_dict() | {"tied": False}), weights | {"head.weight": weights["embed.word"]}
    )
    path, result = tmp_path_factory.mktemp("bases") / "a.safetensors", {}
    for name, (kind, strategy) in BASES.items():
        samples = [np.arange(50)] if isinstance(strategy, cq.Static) else None
        cq.save(models[kind] if strategy is None else cq.quantize(models[kind], strategy, samples), path)
        tensors, metadata = read_tensors(path)
        result[name] = {name: np.array(array) for name, array in tensors.items()}, json.loads(metadata["cq"])
    return result


def write(path, tensors, record):
    save_file(
        {name: np.ascontiguousarray(array) for name, array in tensors.items()},
        path,
        {"cq": record if isinstance(record, str) else json.dumps(record)},
    )


def put(*keys, to, at="record"):
    """A change: the entry of the record, or the tensor, replaced (... removes it)."""

    def change(tensors, record):
        place = record if at == "record" else tensors
        for key in keys[:-1]:
            place = place[key]
        if to is ...:
            del place[keys[-1]]
        else:
            place[keys[-1]] = to(place[keys[-1]]) if callable(to) else to

    return change


def tensor(name, to):
    return put(name, to=to, at="tensors")


def added(name, array):
    """A tensor too many, that the record knows of."""

    def change(tensors, record):
        tensors[name] = array
        record["tensors"].append(name)

    return change


def filled(value):
    return lambda array: np.full_like(array, value)


def panicking(data: np.ndarray) -> np.ndarray:
    """A template that names a special token the tokenizer has not: the Rust library panics, which is no Exception."""
    values = json.loads(data.tobytes())
    both = [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}]
    values["post_processor"] = {
        "type": "TemplateProcessing",
        "pair": both,
        "special_tokens": {},
        "single": [{"SpecialToken": {"id": "[X]", "type_id": 0}}, both[0]],
    }
    return np.frombuffer(json.dumps(values).encode(), np.uint8)


QUERY, DOWN = "layers.0.attention.query", "layers.1.ffn.down"
FIXED = ["uint8", False, 0.5, 3]
DAMAGE = {  # name: base, change, what the message says
    "version": ("lm", put("version", to=99), "version 99"),
    "version of before": ("lm", put("version", to=3), "version 3"),
    "version a list": ("lm", put("version", to=[]), "version"),
    "config missing": ("lm", put("config", to=...), "config"),
    "config a list": ("lm", put("config", to=[]), "config"),
    "config entry missing": ("lm", put("config", "vocab_size", to=...), "vocab_size"),
    "config entry unknown": ("lm", put("config", "bits", to=4), "bits"),
    "config of another size": ("lm", put("config", "hidden_size", to=128), "shape"),
    "family unknown": ("lm", put("config", "family", to="mamba"), "family"),
    "layers beyond number": ("lm", put("config", "num_layers", to=2**31 - 1), "layers"),
    "layers more": ("lm", put("config", "num_layers", to=3), "layers.2"),
    "layers fewer": ("lm", put("config", "num_layers", to=1), "no residual stream|no layer reads"),
    "heads beyond memory": ("lm", put("config", "head_dim", to=2**31 - 2), "shape"),
    "vocabulary beyond memory": ("lm", put("config", "vocab_size", to=2**31 - 1), "shape"),
    "positions beyond the table": ("encoder", put("config", "max_positions", to=65), "embed.position"),
    "positions before no table": ("lm", put("config", "position_offset", to=3), "position_offset 3"),
    "strategy unknown": ("lm", put("strategy", "name", to="qat"), "strategy"),
    "strategy forgotten": ("lm", put("strategy", to=None), "static"),
    "strategy of others": ("lm", put("strategy", to=cq.Dynamic().to_dict()), "dynamic"),
    "scheme nonsense": ("lm", put("strategy", "scheme", "bias", to="int3"), "bias"),
    "layer missing": ("lm", put("layers", QUERY, to=...), QUERY),
    "layer a number": ("lm", put("layers", QUERY, to=5), "int"),
    "layer claims float32": ("lm", put("layers", QUERY, "runs_in", to="float32"), QUERY),
    "layer claims int8": (
        "float32",
        put("layers", QUERY, to={"runs_in": "static", "input": FIXED, "group_size": 64}),
        "strategy",
    ),
    "layer in another strategy": ("lm", put("layers", QUERY, "runs_in", to="dynamic"), QUERY),
    "form missing": ("lm", put("layers", QUERY, "input", to=None), QUERY),
    "form of five": ("lm", put("layers", QUERY, "input", to=FIXED + [1]), "names no columns"),
    "form of six": ("lm", put("layers", QUERY, "input", to=FIXED + [1, 2]), "KeyError"),
    "columns of no name": ("lm", put("layers", QUERY, "input", 4, to="elsewhere"), "elsewhere.columns.scale"),
    "columns of another width": (
        "lm",
        put("layers", QUERY, "input", 4, to="layers.0.ffn.down"),
        "columns.scale.*wanted float32",
    ),
    "columns of another width later": (
        "lm",
        put("layers", "layers.0.ffn.down", "input", 4, to=QUERY),
        "features, wanted",
    ),
    "columns in dynamic": ("dynamic", put("layers", QUERY, "input", to=FIXED + [QUERY]), "no tensor"),
    "columns unread": ("lm", put("layers", "layers.0.ffn.down", "input", to=FIXED), "columns"),
    "columns off the middle": ("lm", tensor(QUERY + ".columns.zero_point", lambda a: a + 208), "too far off"),
    "columns far off": (
        "lm",
        tensor(QUERY + ".columns.zero_point", lambda a: np.full_like(a, -(2**31))),
        "too far off",
    ),
    "columns of symmetric codes": (
        "lm",
        put("layers", QUERY, "input", to=["int8", True, 0.5, 0, QUERY]),
        "too far off",
    ),
    "columns scale zero": ("lm", tensor(QUERY + ".columns.scale", lambda a: a * 0), "not positive"),
    "columns scale NaN": ("lm", tensor(QUERY + ".columns.scale", lambda a: a * np.nan), "columns.scale"),
    "columns scale type": ("lm", tensor(QUERY + ".columns.scale", lambda a: a.astype(np.int32)), "columns.scale"),
    "columns of queries": ("lm", put("attention", 0, 0, to=FIXED + [QUERY]), "KeyError"),
    "values' columns elsewhere": ("lm", put("attention", 0, 2, to=FIXED + ["head"]), "head.columns.scale"),
    "form for dynamic": ("lm", put("layers", QUERY, "input", to=["uint8", False]), QUERY),
    "form fixed in dynamic": ("encoder", put("layers", QUERY, "input", to=FIXED), QUERY),
    "form of no granularity": ("encoder", put("layers", QUERY, "input", to=["int8", False, "per_row"]), QUERY),
    "form dtype": ("lm", put("layers", QUERY, "input", to=["int4", False, 0.5, 3]), "no form"),
    "form symmetric uint8": ("lm", put("layers", QUERY, "input", to=["uint8", True, 0.5, 0]), "no form"),
    "form symmetric off zero": ("lm", put("layers", QUERY, "input", to=["int8", True, 0.5, 1]), "no form"),
    "form scale negative": ("lm", put("layers", QUERY, "input", 2, to=-0.5), "no form"),
    "form scale zero": ("lm", put("layers", QUERY, "input", 2, to=0.0), "no form"),
    "form scale beyond float32": ("lm", put("layers", QUERY, "input", 2, to=1e39), "no form"),
    "form scale NaN": ("lm", put("layers", QUERY, "input", 2, to=float("nan")), "NaN"),
    "form zero point": ("lm", put("layers", QUERY, "input", 3, to=256), "no form"),
    "attention forms missing": ("lm", put("attention", to=...), "attention"),
    "attention forms too few": ("lm", put("attention", to=[]), "IndexError"),
    "attention forms of two": ("lm", put("attention", 0, to=[FIXED] * 2), "int8 layers hand on"),
    "attention forms dynamic": ("lm", put("attention", 1, to=[["uint8", False]] * 3), "int8 layers hand on"),
    "attention forms empty": ("lm", put("attention", 1, to=[None] * 3), "int8 layers hand on"),
    "attention forms elsewhere": ("encoder", put("attention", 1, to=[FIXED] * 3), "int8 layers hand on"),
    "heads of another size": ("dynamic", put("attention", 0, 2, to=8), "attention|not a whole"),
    "heads of uint8": ("dynamic", put("attention", 0, 0, to="uint8"), "not a whole"),
    "heads of affine codes": ("dynamic", put("attention", 0, 1, to=False), "attention|not a whole"),
    "heads in static": ("lm", put("attention", 0, to=["int8", True, 16]), "attention|not a whole"),
    "fixed heads in dynamic": ("dynamic", put("attention", 0, to=[FIXED] * 3), "int8 layers hand on"),
    "streams missing": ("stream", put("streams", to=...), "streams"),
    "streams too few": ("stream", put("streams", to=[FIXED]), "no residual stream"),
    "streams too many": ("stream", put("streams", to=lambda forms: forms + [None]), "no residual stream"),
    "streams of tokens": ("stream", put("streams", 1, to=["uint8", False]), "no residual stream"),
    "streams in dynamic": ("dynamic", put("streams", 1, to=FIXED), "no residual stream"),
    "streams in float32": ("float32", put("streams", 1, to=FIXED), "no residual stream"),
    "streams of no form": ("stream", put("streams", 1, to=["int4", False, 0.5, 3]), "no form"),
    "streams of no scale": ("stream", put("streams", 1, 2, to=0.0), "no form"),
    "group size zero": ("groups", put("layers", DOWN, "group_size", to=0), "shape"),
    "group size negative": ("groups", put("layers", DOWN, "group_size", to=-4), "groups of -4"),
    "group size odd": ("groups", put("layers", DOWN, "group_size", to=6), "groups of 6"),
    "group size huge": ("groups", put("layers", DOWN, "group_size", to=10**30), "shape"),
    "group size a float": ("groups", put("layers", DOWN, "group_size", to=24.0), "groups of 24.0"),
    "groups in integer products": ("lm", put("layers", DOWN, "group_size", to=24), "scale"),
    "word table elsewhere": ("lm", put("word", to="int8"), "embed.word"),
    "word table forgotten": ("lm", put("word", to="float32"), "embed.word"),
    "word table unknown": ("lm", put("word", to="int4"), "int4"),
    "word table of an untied head": ("untied", put("word", to="head"), "word table|no layer reads"),
    "word table of a grouped head": ("groups", put("word", to="head"), "word table|no layer reads"),
    "tied head without codes": (
        "groups",
        put("layers", "head", to={"runs_in": "float32", "reason": ""}),
        "float32 head",
    ),
    "tensor list missing": ("lm", put("tensors", to=...), "tensors"),
    "tensor unknown": ("lm", added("surprise", np.zeros(3)), "surprise"),
    "tensor unlisted": ("lm", lambda t, r: t.update(surprise=np.zeros(3)), "surprise"),
    "bias too many": ("lm", added("head.bias", np.zeros(9, np.float32)), "head.bias"),
    "codes uint8": ("lm", tensor(QUERY + ".weight", lambda a: a.view(np.uint8)), "uint8"),
    "codes of another shape": ("lm", tensor(QUERY + ".weight", lambda a: a[:, :-1]), QUERY),
    "codes in one dimension": ("lm", tensor(QUERY + ".weight", np.ravel), QUERY),
    "scale negative": ("lm", tensor(QUERY + ".scale", lambda a: -a), "not positive"),
    "scale zero": ("lm", tensor(QUERY + ".scale", filled(0)), "not positive"),
    "scale subnormal": ("lm", tensor(QUERY + ".scale", filled(1e-40)), "not positive"),
    "scale NaN": ("lm", tensor(QUERY + ".scale", filled(np.nan)), "nan"),
    "scale infinite": ("lm", tensor(QUERY + ".scale", filled(np.inf)), "inf"),
    "scale of integers": ("lm", tensor(QUERY + ".scale", lambda a: a.astype(np.int64)), "int64"),
    "zero point high": ("encoder", tensor(QUERY + ".zero_point", filled(128)), "outside"),
    "zero point low": ("encoder", tensor(QUERY + ".zero_point", filled(-129)), "outside"),
    "zero point shape": ("encoder", tensor(QUERY + ".zero_point", lambda a: np.repeat(a, 3, axis=1)), "zero_point"),
    "bias int64": ("encoder", tensor(QUERY + ".bias", lambda a: a.astype(np.int64)), "int64"),
    "bias int32 without a scale": (
        "encoder",
        tensor(QUERY + ".bias", lambda a: a.astype(np.int32)),
        "fixed input scale",
    ),
    "bias int32 too large": (
        "static",
        tensor(QUERY + ".bias", lambda a: np.full(a.shape, -(2**31), np.int32)),
        "may reach",
    ),
    "bias scale negative": ("encoder", tensor(QUERY + ".bias.scale", lambda a: -a), "scale"),
    "bias zero point": ("encoder", tensor(QUERY + ".bias.zero_point", filled(500)), "zero_point"),
    "norm NaN": ("lm", tensor("final_norm.weight", filled(np.nan)), "final_norm"),
    "tokenizer garbage": ("lm", tensor("tokenizer.json", lambda a: a[:50]), "tokenizer"),
    "tokenizer not text": ("lm", tensor("tokenizer.json", lambda a: a | 0x80), "tokenizer"),
    "tokenizer of floats": ("lm", tensor("tokenizer.json", lambda a: a.astype(np.float32)), "tokenizer"),
    "tokenizer empty": ("lm", tensor("tokenizer.json", lambda a: a[:0]), "tokenizer"),
    "tokenizer that panics": ("lm", tensor("tokenizer.json", panicking), "tokenizer"),
}
RECORDS = {
    "empty": "",
    "garbage": "{version",
    "a list": "[]",
    "null": "null",
    "twice": '{"version": 1, "version": 1}',
    "deep": "[" * 100_000,
}


@pytest.fixture
def opened(tmp_path):
    """opened(tensors, record) → the model in the file of them; fails if it takes long or much memory."""

    def load(tensors, record):
        write(tmp_path / "a.safetensors", tensors, record)
        start = time.process_time()
        tracemalloc.start()
        try:
            return cq.load(tmp_path / "a.safetensors")
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert peak < MEGABYTES << 20 and time.process_time() - start < SECONDS

    return load


@pytest.mark.parametrize("base", BASES)
def test_undamaged(bases, opened, base):
    assert np.isfinite(opened(*bases[base]).forward([[1, 2, 3]])[0]).all()


@pytest.mark.parametrize("base, change, message", DAMAGE.values(), ids=DAMAGE)
def test_damage_is_named(bases, opened, base, change, message):
    tensors, record = copy.deepcopy(bases[base])
    change(tensors, record)
    with pytest.raises(cq.FormatError, match=message) as caught:
        opened(tensors, record)
    assert "a.safetensors" in str(caught.value) and len(str(caught.value)) < 1000


@pytest.mark.parametrize("text", RECORDS.values(), ids=RECORDS)
def test_records_that_are_none(bases, opened, text):
    with pytest.raises(cq.FormatError):
        opened(bases["lm"][0], text)


@pytest.mark.parametrize("base", ["encoder", "groups", "static", "stream"])
def test_every_tensor_and_entry_is_needed(bases, opened, base):
    tensors, record = bases[base]
    for name in tensors:
        with pytest.raises(cq.FormatError, match=name.replace(".", r"\.")):
            opened({other: array for other, array in tensors.items() if other != name}, record)
    for name in record:
        with pytest.raises(cq.FormatError, match=name):
            opened(tensors, {other: value for other, value in record.items() if other != name})


@pytest.mark.parametrize("base", ["lm", "encoder"])
def test_cut_files(bases, tmp_path, base):
    write(tmp_path / "whole.safetensors", *bases[base])
    data, path = (tmp_path / "whole.safetensors").read_bytes(), tmp_path / "cut.safetensors"
    for length in [0, 1, 8, 9, 1000, *np.linspace(2000, len(data) - 1, 12).astype(int)]:
        path.write_bytes(data[:length])
        with pytest.raises(cq.FormatError):
            cq.load(path)


def leaves(value, path=()):
    """Paths of all entries, at every depth."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in pairs:
        yield (*path, key)
        yield from leaves(entry, (*path, key))


@pytest.mark.parametrize("base", BASES)
def test_any_entry_may_be_anything(bases, tmp_path, base):
    """What still loads runs, or says in one sentence why not; what does not is a FormatError and nothing else."""
    tensors, record = bases[base]
    rng, path = np.random.default_rng(len(base)), tmp_path / "a.safetensors"
    garbage = [None, True, 0, -1, 3, 2**31, 10**400, 0.5, -1e308, "", "x", [], [[]], {}, {"a": 1}]
    paths = [path for path in leaves(record) if path[0] != "tensors"]
    for where in (paths[i] for i in rng.permutation(len(paths))[:120]):
        broken = copy.deepcopy(record)
        put(*where, to=garbage[rng.integers(len(garbage))])(None, broken)
        write(path, tensors, broken)
        try:
            model = cq.load(path)
        except cq.FormatError:
            continue
        try:
            assert model.forward([[1, 2, 3]])[0].shape == (3, 64) and model.coverage() and repr(model)
        except cq.CqError as error:
            assert "NaN or Inf" in str(error) or "tokens" in str(error)
