"""cq's own checkpoint: the same bits back, the same bytes again, whole or not at all."""

import errno
import resource

import numpy as np
import pytest
from safetensors.numpy import load_file

import cq
from cq.formats import tensors as tensor_files
from cq.formats.tensors import read_tensors

TEXTBOOK = cq.Scheme.textbook()
STRATEGIES = {
    "float32": None,
    "weight-only": cq.WeightOnly(),
    "weight-only textbook": cq.WeightOnly(TEXTBOOK),
    "groups": cq.WeightOnly(cq.Scheme(weight_granularity="per_group", group_size=24)),
    "one group": cq.WeightOnly(cq.Scheme(weight_granularity="per_group", group_size=512)),
    "dynamic": cq.Dynamic(),
    "dynamic textbook": cq.Dynamic(TEXTBOOK),
    "symmetric": cq.Dynamic(cq.Scheme(activation_dtype="int8", activation_symmetric=True)),
    "static": cq.Static(),
    "static textbook": cq.Static(TEXTBOOK, observer="minmax"),
    "stream": cq.Static(residual="int8"),
    "some of the stream": cq.Static(exclude="*.key", residual="int8"),
    "float attention": cq.Dynamic(cq.Scheme(attention="float32")),
    "some dynamic": cq.Dynamic(exclude="*.query"),
    "some static": cq.Static(exclude=("*.query", "layers.1.ffn.up")),
    "float head": cq.Static(exclude="head"),
    "float table": cq.Dynamic(exclude="embed.*"),
    "nothing": cq.Dynamic(include=()),
}


@pytest.fixture(scope="module")
def models(tiny_encoder, tiny_lm):
    lm = cq.load(tiny_lm)
    untied = lm.config.to_dict() | {"tied": False}
    weights = read_tensors(tiny_lm)[0]
    weights["head.weight"] = np.asarray(weights["embed.word"])[::-1].copy()
    weights["head.bias"] = np.linspace(-1, 1, 256, dtype=np.float32)
    return {
        "encoder": cq.load(tiny_encoder),
        "lm": lm,
        "untied lm": cq.Transformer(cq.Config(**untied), weights, lm.tokenizer),
    }


def tokens():
    rng = np.random.default_rng(8)
    return [rng.integers(0, 256, n) for n in (11, 1, 40)]


def quantized(model, strategy):
    if strategy is None:
        return model
    return cq.quantize(model, strategy, [tokens()] if isinstance(strategy, cq.Static) else None)


def results(model) -> list[np.ndarray]:
    return model.forward(tokens()) + (model.logits(tokens()) if model.head else [model.embed(["a text", "b"])])


@pytest.mark.parametrize("kind", ["encoder", "lm", "untied lm"])
@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
def test_there_and_back(models, tmp_path, kind, strategy):
    model = quantized(models[kind], strategy)
    assert cq.save(model, tmp_path / "a.safetensors") is None
    again = cq.load(tmp_path / "a.safetensors")
    for a, b in zip(results(model), results(again), strict=True):
        assert np.array_equal(a, b)
    assert (again.config, again.strategy, again.coverage(), again.nbytes, repr(again)) == (
        model.config,
        model.strategy,
        model.coverage(),
        model.nbytes,
        repr(model),
    )
    assert again.tokenizer.to_str() == model.tokenizer.to_str()
    if model.config.tied:
        assert (again.embedding.source is getattr(again.head, "weight", None)) == (
            model.embedding.source is model.head.weight
        )
    cq.save(again, tmp_path / "b.safetensors")
    assert (tmp_path / "b.safetensors").read_bytes() == (tmp_path / "a.safetensors").read_bytes()
    cq.save(again, tmp_path / "a.safetensors")  # over the file that its weights are mapped from
    assert all(map(np.array_equal, results(again), results(model)))


def test_saving_twice_gives_the_same_bytes(models, tmp_path):
    for name in "ab":
        cq.save(quantized(models["lm"], cq.Static()), tmp_path / f"{name}.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


@pytest.mark.parametrize("kind", ["encoder", "lm"])
def test_size_on_disk(models, tmp_path, kind):
    sizes = []
    for strategy in (None, cq.Dynamic()):
        model = quantized(models[kind], strategy)
        cq.save(model, tmp_path / "a.safetensors")
        sizes.append((tmp_path / "a.safetensors").stat().st_size - len(model.tokenizer.to_str()))
        assert abs(sizes[-1] - model.nbytes) < 20_000  # of names, and the record
    assert sizes[1] < 0.5 * sizes[0]


def test_a_model_without_a_tokenizer(models, tmp_path):
    weights = read_tensors_of(models["lm"], tmp_path)
    cq.save(cq.Transformer(models["lm"].config, weights), tmp_path / "a.safetensors")
    assert cq.load(tmp_path / "a.safetensors").tokenizer is None


def read_tensors_of(model, folder) -> dict:
    cq.save(model, folder / "float.safetensors")
    return {
        name: array for name, array in load_file(folder / "float.safetensors").items() if not name.endswith(".json")
    }


def no_room(monkeypatch):
    """Files may have 100 kB from here on: the write fails halfway, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def failing(error, *names):
    def start(monkeypatch):
        for name in names:
            monkeypatch.setattr(tensor_files.os, name, lambda *arguments, **more: (_ for _ in ()).throw(error))
        return monkeypatch.undo

    return start


@pytest.mark.parametrize(
    "fault",
    [
        no_room,
        failing(OSError(errno.EIO, "Input/output error"), "fsync"),
        failing(KeyboardInterrupt(), "fsync"),
        failing(PermissionError(errno.EACCES, "Permission denied"), "replace", "link"),
    ],
    ids=["room", "disk", "interrupt", "permission"],
)
@pytest.mark.parametrize("old", [None, b"what was there before"])
def test_a_save_that_fails_leaves_nothing_behind(models, tmp_path, monkeypatch, fault, old):
    target = tmp_path / "a.safetensors"
    if old:
        target.write_bytes(old)
    repair = fault(monkeypatch)
    try:
        with pytest.raises((OSError, KeyboardInterrupt)):
            cq.save(models["lm"], target)
    finally:
        repair()
    assert [path.name for path in tmp_path.iterdir()] == (["a.safetensors"] if old else [])
    assert not old or target.read_bytes() == old


@pytest.mark.parametrize(
    "path, error",
    [
        ("missing/a.safetensors", FileNotFoundError),
        ("file/a.safetensors", OSError),
        ("a.npz", cq.FormatError),
        ("a", cq.FormatError),
        ("folder.safetensors", cq.CqError),
    ],
)
def test_places_where_nothing_can_be_saved(models, tmp_path, path, error):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(error):
        cq.save(models["lm"], tmp_path / path)
    with pytest.raises(cq.CqError, match="model"):
        cq.save("no model", tmp_path / "a.safetensors")
