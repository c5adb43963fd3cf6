"""Objects that travel: what cq makes can be pickled, copied and sent to other processes, and works there as here."""

import copy
import importlib
import inspect
import io
import multiprocessing
import pickle
import pkgutil
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.reduction import ForkingPickler

import joblib
import numpy as np
import pytest
from distributed.protocol import deserialize, serialize

import cq
from cq import _core
from cq.calibrate import calibrate
from cq.model.batch import Sequence
from cq.model.forms import Columns, Stretched
from cq.model.linear import Linear
from cq.model.norm import Norm
from cq.model.sampling import Sampling
from cq.model.transform import Transform
from cq.observers import like_onnxruntime, like_torch, make
from cq.plan import Fold, Plan
from cq.plan_json import to_json
from cq.report import bench, samples, timing
from cq.report.inputs import Ready
from cq.strategies import OBSERVERS
from cq.weights import FloatWeight, Weight, pack_floats

TOKENS = [np.arange(1, 9), np.array([7, 3, 5])]
TEXTS = ["a text", "another one", "and a third"]


def outputs(x) -> object:
    """What an object says, so that two can be compared."""
    if isinstance(x, cq.Transformer):
        run = x.logits if x.head is not None else x.forward
        found = [rows.tobytes() for rows in run(TOKENS)]
        return found, repr(x), x.tokenizer and x.tokenize("a text").tolist(), x.plan and outputs(x.plan)
    if isinstance(x, Plan):
        text, arrays = to_json(x)
        return text, {name: array.tobytes() for name, array in arrays.items()}
    if isinstance(x, Weight):
        parts = x.unpack(), x.panels, x.column_sums, x.zero_points, x.scales
        return x.shape, x.group_size, [None if part is None else part.tobytes() for part in parts]
    if isinstance(x, FloatWeight):
        return x.shape, x.unpack().tobytes()
    if isinstance(x, _core.Coded):
        return x.dequantize().tobytes(), x.codes.tobytes()
    if isinstance(x, cq.QTensor):
        return x.data.tobytes(), x.scale.tobytes(), x.zero_point.tobytes(), x.axis, x.group_size
    if isinstance(x, cq.observers.Observer):
        return repr(x), [np.asarray(part).tobytes() for part in x.qparams("uint8")]
    if hasattr(x, "to_json"):
        return x.to_json()
    if hasattr(x, "sites"):  # a calibration
        return {name: outputs(site) for name, site in x.sites.items()}
    if isinstance(x, Ready):
        return outputs(x.model)
    if isinstance(x, Transform):
        return x.dense.weight.tobytes(), x.norm.weight.tobytes()
    if isinstance(x, Stretched):
        return x.dtype, x.scale, x.columns.scale.tobytes(), x.columns.zero_point.tobytes()
    if isinstance(x, Sequence):
        return x.ids.tolist(), x.types.tolist(), x.positions
    return repr(x)


ERRORS = cq.CqError, cq.FormatError, cq.CalibrationError, cq.UnsupportedError
LIKE = (
    like_torch.MinMax,
    like_torch.MovingAverage,
    like_torch.Histogram,
    like_onnxruntime.Entropy,
    like_onnxruntime.Percentile,
)


@pytest.fixture(scope="module")
def things(tiny_encoder, tiny_lm, random_model):
    """Kind → the object."""
    with pytest.MonkeyPatch.context() as patch:  # each is timed for one call
        for name in ("_TURN_SECONDS", "_LONGEST"):
            patch.setattr(timing, name, 0.0)
        return _made(tiny_encoder, tiny_lm, random_model)


def _made(tiny_encoder, tiny_lm, random_model):
    encoder, lm = cq.load(tiny_encoder), cq.load(tiny_lm)
    norms = dict(qk_norm=True, num_kv_heads=1)
    classifier = random_model("bert", labels=("a", "b"), classifier="tanh")[0]
    data, x = samples.read(TEXTS * 3, lm), np.linspace(-1, 1, 64, dtype=np.float32).reshape(8, 8)
    strategies = {
        "weight-only": cq.WeightOnly(),
        "groups": cq.WeightOnly(cq.Scheme(weight_granularity="per_group", group_size=8, weight_symmetric=False)),
        "dynamic": cq.Dynamic(),
        "textbook": cq.Static(cq.Scheme.textbook(), observer="minmax"),
        "static": cq.Static(observer="minmax"),
        "int8 stream": cq.Static(observer="minmax", residual="int8"),
        "qat": cq.QAT(steps=1, batch_size=2),
    }
    models = {
        f"{what}, {name}": cq.quantize(
            model, strategy, TEXTS if name not in ("weight-only", "groups", "dynamic") else None
        )
        for what, model in (("encoder", encoder), ("lm", lm))
        for name, strategy in strategies.items()
        if name != "qat" or what == "lm"
    }
    calibration = calibrate(lm, TEXTS, "minmax")
    report = cq.compare(lm, data, strategies=[cq.Dynamic(), cq.WeightOnly()])
    seen = {f"observer {name}": make(name) for name in OBSERVERS}
    seen |= {f"{kind}": kind() for kind in LIKE}
    for one in seen.values():
        one.update(x)
    return (
        {"encoder": encoder, "lm": lm, "heads' norms": random_model("llama", **norms)[0]}
        | models
        | strategies
        | seen
        | {
            "mixed": cq.quantize(lm, cq.Mixed((("*.ffn.*", cq.Dynamic()), ("*", None)))),
            "plan": models["lm, static"].plan,
            "coverage": models["lm, static"].coverage(),
            "calibration": calibration,
            "report": report,
            "sensitivity": cq.sensitivity(lm, data, strategies=[cq.Dynamic()]),
            "samples": data,
            "bench": bench("lm", {"lm": lm}, [(1, 8)], profiled=True),
            "mix": cq.mix(lm, data, 1.0, [cq.Dynamic(), cq.WeightOnly()], max_trials=3),
            "packed": cq.pack(cq.quantize_tensor(x, axis=1)),
            "packed, zero points": cq.pack(np.arange(64, dtype=np.int8).reshape(8, 8), 3),
            "packed, no rows": cq.pack(np.empty((0, 3), np.int8)),
            "float weight": pack_floats(x),
            "codes": _core.Coded(np.arange(64, dtype=np.uint8).reshape(8, 8), 0.5, 3),
            "qtensor": cq.quantize_tensor(x, group_size=4),
            "fold": Fold(None, np.ones(3)),
            "config": lm.config,
            "stretched": Stretched("uint8", False, 0.5, 128, Columns(x[:1], np.full((1, 8), 128, np.int32))),
            "transform": Transform(Linear(x), Norm(x[0], None, 1e-5, False)),
            "classifier": classifier,
            "classifier, textbook": cq.quantize(classifier, cq.Dynamic(cq.Scheme.textbook())),
            "compared": Ready("a file", models["lm, dynamic"]),
            "sequence": Sequence(TOKENS[0], np.zeros(8, np.int32)),
            "sampling": Sampling(temperature=1.0),
            "distances": random_model("bert", position_bias={"kind": "alibi"})[0],
            "positions": random_model(
                "bert",
                position_bias={"kind": "disentangled", "buckets": 4, "distance": 9, "keys": True, "queries": True},
                convolution={"kernel": 3, "activation": "gelu"},
            )[0],
            "layer": lm.config.layer(0),
            "errors": [kind("words") for kind in ERRORS],
            "training": cq.Training(steps=3),
        }
    )


# What never leaves its process: parts of calls, of files being read, of searches and of trainings.
STAYS = ("cq.cli", "cq.door", "cq.train", "cq.formats", "cq._core", "cq.convert")
PARTS = {
    "cq.model.activation.Activation",
    "cq.model.batch.Batch",
    "cq.model.entities.Piece",
    "cq.model.cache.KVCache",
    "cq.model.cache.LayerCache",
    "cq.model.generate.Generator",
    "cq.model.generate.Step",
    "cq.model.generate.Text",
    "cq.model.generate.Writer",
    "cq.model.linear.Then",
    "cq.report.evaluate.Evaluation",
    "cq.report.trials.Search",
}


def rooms():
    """Every class of the rooms whose objects a user gets hold of, by its place."""
    modules = pkgutil.walk_packages(cq.__path__, "cq.")
    for module in (module for module in modules if module.name != "cq.__main__"):
        found = importlib.import_module(module.name)
        for name, kind in inspect.getmembers(found, inspect.isclass):
            if kind.__module__ == found.__name__ and not name.startswith("_"):
                yield kind


class Seen(pickle.Pickler):
    """Notes the kinds of all that it pickles."""

    def __init__(self, kinds):
        super().__init__(io.BytesIO(), 5)
        self.kinds = kinds

    def persistent_id(self, thing):
        self.kinds.add(type(thing))


def test_every_kind(things):
    kinds = set()
    for thing in things.values():
        Seen(kinds).dump(thing)
    reached = {base for kind in kinds for base in kind.__mro__}
    left = {f"{kind.__module__}.{kind.__name__}" for kind in set(rooms()) - reached}
    assert {name for name in left if not name.startswith(STAYS)} == PARTS
    assert {Weight, FloatWeight, _core.Coded} <= reached


def test_pickled_and_copied(things):
    for name, thing in things.items():
        expected = outputs(thing)
        for protocol in (2, 5):
            assert outputs(pickle.loads(pickle.dumps(thing, protocol))) == expected, name
        assert outputs(copy.deepcopy(thing)) == outputs(copy.copy(thing)) == expected, name
        assert outputs(ForkingPickler.loads(ForkingPickler.dumps(thing))) == expected, name


def test_spawned_processes(things):
    """One worker that has never seen cq; what it gives has the bits of this process."""
    names = ["encoder", "lm, int8 stream", "lm, groups", "heads' norms", "classifier"]
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        for name, future in [(name, pool.submit(things[name].forward, TOKENS)) for name in names]:
            expected = things[name].forward(TOKENS)
            assert [rows.tobytes() for rows in future.result()] == [rows.tobytes() for rows in expected], name


def test_what_joblib_and_dask_send(things):
    names = ["encoder", "lm", "lm, static", "lm, groups"]
    here = {name: [rows.tobytes() for rows in things[name].forward(TOKENS)] for name in names}
    there = joblib.Parallel(2, max_nbytes=100)(joblib.delayed(things[name].forward)(TOKENS) for name in names)
    for name, found in zip(names, there):
        sent = deserialize(*serialize(things[name]))
        for results in (found, sent.forward(TOKENS)):
            assert [rows.tobytes() for rows in results] == here[name], name


def test_weights_in_a_file_travel_as_its_name(tiny_lm, tmp_path):
    """Between processes of one machine; anywhere else the bytes themselves."""
    file = tmp_path / "model.safetensors"
    file.write_bytes(tiny_lm.read_bytes())
    expected, fresh = outputs(cq.load(file)), cq.load(file)
    named, whole = bytes(ForkingPickler.dumps(fresh)), pickle.dumps(fresh)
    assert len(named) < file.stat().st_size / 2 < len(whole)
    assert outputs(ForkingPickler.loads(named)) == expected
    cq.formats.files.write_whole(file, file.read_bytes())  # the same again, but another file
    with pytest.raises(cq.FormatError, match="model.safetensors: replaced"):
        ForkingPickler.loads(named)
    file.unlink()
    with pytest.raises(FileNotFoundError):
        ForkingPickler.loads(named)
    assert outputs(ForkingPickler.loads(ForkingPickler.dumps(fresh))) == outputs(pickle.loads(whole)) == expected


@pytest.mark.parametrize("kv_heads", [1, 2, 6])
def test_norms_of_heads(random_model, kv_heads):
    """Queries and keys normed head by head: also where one key/value head serves all."""
    model, weights = random_model("llama", qk_norm=True, num_kv_heads=kv_heads)
    x, form = np.random.default_rng(1).standard_normal((5, (6 + 2 * kv_heads) * 8)).astype(np.float32), np.float64
    expected, attention = x.astype(form), model.blocks[0].attention
    for name, start, heads in (("query", 0, 6), ("key", 6, kv_heads)):
        part = expected[:, start * 8 : (start + heads) * 8].reshape(5, heads, 8)
        part *= weights[f"layers.0.attention.{name}_norm.weight"] / np.sqrt((part**2).mean(-1, keepdims=True) + 1e-5)
        part += weights[f"layers.0.attention.{name}_norm.bias"]
    attention._norm_heads(x)
    np.testing.assert_allclose(x, expected, rtol=1e-5, atol=1e-6)
    for q in (model, cq.quantize(model, cq.Dynamic()), cq.quantize(model, cq.Static(observer="minmax"), TOKENS)):
        assert q.generate(TOKENS[0], 2).size == 2 and len(q.logits(TOKENS)) == 2
