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
FIXED = {"kind": "fixed", "dtype": "uint8", "symmetric": False, "scale": 0.5, "zero_point": 3}
SMOOTHED = FIXED | {"kind": "smoothed", "columns": QUERY}
TOKEN = {"kind": "per_token", "dtype": "uint8", "symmetric": False}
HEADS = {"kind": "per_head", "dtype": "int8", "symmetric": True, "group_size": 16}
CODING = {"symmetric": True, "granularity": "per_channel", "group_size": None}
STATIC = {"runs_in": "static", "reason": "", "weight": CODING, "bias": "int32", "input": FIXED}


def plan(*keys, to):
    return put("plan", *keys, to=to)


def form(*keys, to, layer=QUERY):
    """A change of the form that a layer reads."""
    return put("plan", "layers", layer, "input", *keys, to=to)


DAMAGE = {  # name: base, change, what the message says
    "version": ("lm", put("version", to=99), "version 99"),
    "version of before": ("lm", put("version", to=3), "version 3"),
    "version 4 by name alone": ("lm", put("version", to=4), "strategy"),
    "version a list": ("lm", put("version", to=[]), "version"),
    "config missing": ("lm", put("config", to=...), "config"),
    "config a list": ("lm", put("config", to=[]), "config"),
    "config entry missing": ("lm", put("config", "vocab_size", to=...), "vocab_size"),
    "config entry unknown": ("lm", put("config", "bits", to=4), "bits"),
    "config of another size": ("lm", put("config", "hidden_size", to=128), "shape"),
    "family unknown": ("lm", put("config", "family", to="mamba"), "family"),
    "layers beyond number": ("lm", put("config", "num_layers", to=2**31 - 1), "layers"),
    "layers more": ("lm", put("config", "num_layers", to=3), "layers.2"),
    "layers fewer": ("lm", put("config", "num_layers", to=1), "layers.1"),
    "heads beyond memory": ("lm", put("config", "head_dim", to=2**31 - 2), "shape|features"),
    "vocabulary beyond memory": ("lm", put("config", "vocab_size", to=2**31 - 1), "shape"),
    "positions beyond the table": ("encoder", put("config", "max_positions", to=65), "embed.position"),
    "positions before no table": ("lm", put("config", "position_offset", to=3), "position_offset 3"),
    "plan missing": ("lm", put("plan", to=...), "plan"),
    "plan a list": ("lm", put("plan", to=[]), "not a whole"),
    "plan forgotten": ("lm", put("plan", to=None), "embed.word"),
    "strategy unknown": ("lm", plan("strategy", "name", to="qat"), "strategy"),
    "strategy forgotten": ("lm", plan("strategy", to=None), "static"),
    "strategy of others": ("lm", plan("strategy", to=cq.Dynamic().to_dict()), "dynamic"),
    "scheme nonsense": ("lm", plan("strategy", "scheme", "bias", to="int3"), "bias"),
    "layer missing": ("lm", plan("layers", QUERY, to=...), QUERY),
    "layer unknown": ("lm", plan("layers", "layers.0.router", to=STATIC), "layers.0.router"),
    "layer a number": ("lm", plan("layers", QUERY, to=5), "int"),
    "layer claims float32": ("lm", plan("layers", QUERY, "runs_in", to="float32"), "layers.0.attention"),
    "layer in another strategy": ("lm", plan("layers", QUERY, "runs_in", to="dynamic"), QUERY),
    "layer in none": ("lm", plan("layers", QUERY, "runs_in", to="int4"), "KeyError|int4"),
    "reason a number": ("lm", plan("layers", QUERY, "reason", to=3), "no text"),
    "coding missing": ("lm", plan("layers", QUERY, "weight", to=None), "not a whole"),
    "coding of no granularity": ("lm", plan("layers", QUERY, "weight", "granularity", to="per_row"), "no coding"),
    "coding symmetric or not": ("lm", plan("layers", QUERY, "weight", "symmetric", to=1), "no coding"),
    "bias of no kind": ("lm", plan("layers", QUERY, "bias", to="int4"), "no kind of bias"),
    "form missing": ("lm", form(to=None), QUERY),
    "form of no kind": ("lm", form("kind", to="ternary"), "no form"),
    "form with more": ("lm", form("more", to=1), "no form"),
    "form with less": ("lm", form("scale", to=...), "scale"),
    "columns a number": ("lm", form("columns", to=1), "names no columns"),
    "columns of no name": ("lm", form("columns", to="elsewhere"), "elsewhere.columns.scale"),
    "columns of another width": ("lm", form("columns", to="layers.0.ffn.down"), "columns.scale.*wanted float32"),
    "columns of another width later": ("lm", form("columns", to=QUERY, layer="layers.0.ffn.down"), "features, wanted"),
    "columns in dynamic": ("dynamic", form(to=SMOOTHED), "no tensor"),
    "columns unread": ("lm", form(to=FIXED, layer="layers.0.ffn.down"), "columns"),
    "columns off the middle": ("lm", tensor(QUERY + ".columns.zero_point", lambda a: a + 208), "too far off"),
    "columns far off": (
        "lm",
        tensor(QUERY + ".columns.zero_point", lambda a: np.full_like(a, -(2**31))),
        "too far off",
    ),
    "columns of symmetric codes": (
        "lm",
        form(to=SMOOTHED | {"dtype": "int8", "symmetric": True, "zero_point": 0}),
        "too far off",
    ),
    "columns scale zero": ("lm", tensor(QUERY + ".columns.scale", lambda a: a * 0), "not positive"),
    "columns scale NaN": ("lm", tensor(QUERY + ".columns.scale", lambda a: a * np.nan), "columns.scale"),
    "columns scale type": ("lm", tensor(QUERY + ".columns.scale", lambda a: a.astype(np.int32)), "columns.scale"),
    "columns of queries": ("lm", plan("attention", "layers.0", "query", to=SMOOTHED), "no form of codes here"),
    "values' columns elsewhere": (
        "lm",
        plan("attention", "layers.0", "value", to=SMOOTHED | {"columns": "head"}),
        "head.columns.scale",
    ),
    "form for dynamic": ("lm", form(to=TOKEN), QUERY),
    "form fixed in dynamic": ("encoder", form(to=FIXED), QUERY),
    "form per head": ("encoder", form(to=HEADS), "no form of codes here"),
    "form dtype": ("lm", form(to=FIXED | {"dtype": "int4"}), "no form"),
    "form symmetric uint8": ("lm", form(to=FIXED | {"symmetric": True, "zero_point": 0}), "no form"),
    "form symmetric off zero": ("lm", form(to=FIXED | {"dtype": "int8", "symmetric": True}), "no form"),
    "form scale negative": ("lm", form("scale", to=-0.5), "no form"),
    "form scale zero": ("lm", form("scale", to=0.0), "no form"),
    "form scale beyond float32": ("lm", form("scale", to=1e39), "no form"),
    "form scale NaN": ("lm", form("scale", to=float("nan")), "NaN"),
    "form zero point": ("lm", form("zero_point", to=256), "no form"),
    "attention forms missing": ("lm", plan("attention", to=...), "attention"),
    "attention forms of two": ("lm", plan("attention", "layers.0", to={"query": FIXED, "key": FIXED}), "value"),
    "attention forms of four": ("lm", plan("attention", "layers.0", "output", to=FIXED), "int8 layers hand on"),
    "attention forms dynamic": ("lm", plan("attention", "layers.1", "key", to=TOKEN), "int8 layers hand on"),
    "attention forms empty": ("lm", plan("attention", "layers.1", "key", to=None), "int8 layers hand on"),
    "attention forms elsewhere": (
        "encoder",
        plan("attention", "layers.1", to=dict.fromkeys(("query", "key", "value"), FIXED)),
        "int8 layers hand on",
    ),
    "attention of no block": ("lm", plan("attention", "layers.2", to=HEADS), "names blocks"),
    "heads of another size": ("dynamic", plan("attention", "layers.0", "group_size", to=8), "query"),
    "heads of uint8": ("dynamic", plan("attention", "layers.0", "dtype", to="uint8"), "query"),
    "heads of affine codes": ("dynamic", plan("attention", "layers.0", "symmetric", to=False), "query"),
    "heads in static": ("lm", plan("attention", "layers.0", to=HEADS), "query"),
    "fixed heads in dynamic": (
        "dynamic",
        plan("attention", "layers.0", to=dict.fromkeys(("query", "key", "value"), FIXED)),
        "int8 layers hand on",
    ),
    "residual missing": ("stream", plan("residual", to=...), "residual"),
    "residual too short": ("stream", plan("residual", to=[FIXED]), "no residual stream"),
    "residual too long": ("stream", plan("residual", to=lambda forms: forms + [None]), "no residual stream"),
    "residual of tokens": ("stream", plan("residual", 1, to=TOKEN), "no residual stream"),
    "residual in dynamic": ("dynamic", plan("residual", to=[FIXED] * 5), "no residual stream"),
    "residual of no form": ("stream", plan("residual", 1, "dtype", to="int4"), "no form"),
    "residual of no scale": ("stream", plan("residual", 1, "scale", to=0.0), "no form"),
    "group size zero": ("groups", plan("layers", DOWN, "weight", "group_size", to=0), "groups of 0"),
    "group size negative": ("groups", plan("layers", DOWN, "weight", "group_size", to=-4), "groups of -4"),
    "group size odd": ("groups", plan("layers", DOWN, "weight", "group_size", to=6), "groups of 6"),
    "group size huge": ("groups", plan("layers", DOWN, "weight", "group_size", to=10**30), "groups of 1000"),
    "group size a float": ("groups", plan("layers", DOWN, "weight", "group_size", to=24.0), "groups of 24.0"),
    "groups in integer products": (
        "lm",
        plan("layers", DOWN, "weight", to={"symmetric": True, "granularity": "per_group", "group_size": 24}),
        "grouped scales",
    ),
    "word table elsewhere": ("lm", plan("word", "weight", to=CODING), "embed.word"),
    "word table forgotten": ("lm", plan("word", "reason", to="as I like it"), "embed.word"),
    "word table unknown": ("lm", plan("word", to="int4"), "not a whole"),
    "word table of an untied head": ("untied", plan("word", "with_head", to=True), "word table"),
    "word table of a grouped head": ("groups", plan("word", "weight", to=None), "word table|no layer reads"),
    "tied head without codes": (
        "groups",
        plan("layers", "head", to={"runs_in": "float32", "reason": ""}),
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
