"""What cq exports of all-MiniLM-L6-v2, run by onnxruntime, beside what onnxruntime's own quantization makes of it: how
fast, and how far embeddings are from float32's and from those of cq's own kernels."""

import numpy as np
import pytest

import cq
from cq.report import metrics

from . import encoder
from .measure import Entry, contest
from .peers import ort
from .test_model import entry

pytestmark = pytest.mark.skipif(not ort.HAVE, reason="onnx or onnxruntime is not installed")
SHAPES = {"1×16": (1, 16), "1×128": (1, 128), "8×128": (8, 128)}
SENTENCES, ROUNDS = 64, 3


@pytest.fixture(scope="module")
def models(float_model, calibration) -> dict[str, cq.Transformer]:
    """Name → what is exported."""
    return {
        "float32": float_model,
        "weight-only": cq.quantize(float_model, cq.WeightOnly()),
        "dynamic": cq.quantize(float_model, cq.Dynamic()),
        "dynamic, per tensor": cq.quantize(
            float_model, cq.Dynamic(cq.Scheme(activation_granularity="per_tensor", attention="float32"))
        ),
        "static": cq.quantize(float_model, cq.Static(), calibration=calibration),
        "static, plain attention": cq.quantize(
            float_model, cq.Static(cq.Scheme(attention="float32")), calibration=calibration
        ),
    }


@pytest.fixture(scope="module")
def exported(models, threads, tmp_path_factory) -> dict:
    """Name → a session of its graph, with the same settings as the peer's."""
    folder = tmp_path_factory.mktemp("exported")
    for i, model in enumerate(models.values()):
        cq.export(model, folder / f"{i}.onnx")
    return {name: ort.session(folder / f"{i}.onnx", threads) for i, name in enumerate(models)}


@pytest.fixture(scope="module")
def peer(source, threads) -> dict:
    """onnxruntime's own quantization, as `peers` describes it; and its static int8 as it runs with no optimizer left
    out."""
    found = ort.encoders(source, threads)
    usual = ort.session(source.scratch / "static.onnx", threads, without=())
    found["onnxruntime static int8, all optimizers"] = lambda ids, mask, often: (
        lambda: usual.run(None, {"ids": ids, "mask": mask})[0]
    )
    return found


def hidden(session, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    return session.run(["last_hidden_state"], feeds)[0]


@pytest.mark.parametrize("case", SHAPES, ids=lambda case: case.replace("×", "x"))
def test_time(benchmark, threads, models, exported, peer, float_model, case):
    tokens = encoder.random(float_model, *SHAPES[case])
    ids, mask = encoder.padded(tokens)
    reference = float_model.forward(tokens)

    def row(name: str, call, outputs) -> Entry:
        return entry(name, call, list(outputs), reference, tokens, float_model, {})

    entries = [
        row(f"cq {name}, exported", lambda session=session: hidden(session, ids, mask), hidden(session, ids, mask))
        for name, session in exported.items()
    ]
    for name, prepare in peer.items():
        call = prepare(ids, mask, True)
        entries.append(row(name, call, call()))
    static = models["static"]
    own = Entry("own kernels", "cq static", lambda: static.forward(tokens), entries[0].operations, "int8")
    contest(benchmark, case, [*entries, own], threads, ROUNDS)


def test_accuracy(benchmark, threads, models, exported, peer, float_model):
    """Of sentences of STS 2014, padded to the longest: mean cosines of embeddings."""
    tokens = encoder.sentences(float_model, SENTENCES)
    ids, mask = encoder.padded(tokens)
    exact = float_model.embed(tokens)

    def embedded(rows: np.ndarray) -> np.ndarray:
        means = (rows * mask[:, :, None]).sum(1) / mask.sum(1, keepdims=True)
        return means / np.linalg.norm(means, axis=1, keepdims=True)

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return round(float(metrics.cosine(a, b).mean()), 6)

    rows = []

    def measured() -> None:
        for name, session in exported.items():
            found, own = embedded(hidden(session, ids, mask)), models[name].embed(tokens)
            facts = {"cosine": cosine(found, exact), "cosine_to_own": cosine(found, own)}
            rows.append({"name": f"cq {name}, exported"} | facts | {"own_cosine": cosine(own, exact)})
        for name, prepare in peer.items():
            rows.append({"name": name, "cosine": cosine(embedded(prepare(ids, mask, False)()), exact)})

    benchmark.pedantic(measured, rounds=1, iterations=1)
    benchmark.extra_info["rows"] = [
        {"case": f"{SENTENCES} sentences", "work": "accuracy", "threads": threads} | row for row in rows
    ]
