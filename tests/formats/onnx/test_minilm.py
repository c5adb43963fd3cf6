"""all-MiniLM-L6-v2 in static int8 as other runtimes run it."""

import logging

import numpy as np
import onnx
import onnxruntime as runtime
import openvino
import pytest

import cq

TEXTS = [
    "A cat sits on the mat.",
    "The stock market fell by 3 % on Tuesday, its worst day since March.",
    "He is playing the guitar while she sings an old song that nobody else remembers.",
    "Why?",
    "The committee will meet again in October to discuss next year's budget.",
    "Two dogs run along the beach.",
]


@pytest.fixture(scope="module")
def float_model(minilm_folder) -> cq.Transformer:
    return cq.load(minilm_folder)


@pytest.fixture(scope="module")
def tokens(float_model) -> list[np.ndarray]:
    return [float_model.tokenize(text) for text in TEXTS]


@pytest.fixture(scope="module")
def static(float_model, tokens) -> cq.Transformer:
    return cq.quantize(float_model, cq.Static(), tokens)


@pytest.fixture(scope="module")
def graph(static, run_onnx, tmp_path_factory):
    path = tmp_path_factory.mktemp("static") / "model.onnx"
    cq.export(static, path)
    return run_onnx(path)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """The mean over rows of length 1."""
    return float((a * b).sum(1).mean())


def test_as_cq_computes_it(float_model, static, graph, tokens):
    """A few codes differ, most of them of softmax's weights, whose exponentials cq takes by a polynomial good to
    1.1e-4; what they change differs in more codes, and so on from layer to layer. Already norms' weights off by their
    last bit bring cq to 0.99995 of itself. The graph is as near to float32 as cq is."""
    found, own, exact = graph(tokens)["sentence_embedding"], static.embed(tokens), float_model.embed(tokens)
    assert cosine(found, own) > 0.999
    assert cosine(found, exact) > cosine(own, exact) - 5e-4


def test_codes_of_the_first_block(static, graph, tokens):
    """Before any difference could grow: the same but where rounding decides, and then by one step."""
    name = "layers.0.attention"
    names = [f"{name}.{place}/QuantizeLinear" for place in ("query, key, value", "output")]
    model = onnx.load(graph.path)
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    feeds = graph.feeds(tokens)
    found = runtime.InferenceSession(model.SerializeToString()).run(names, feeds)
    seen: dict = {}
    for batch in static.batches(tokens, seen.__setitem__):
        static.hidden(batch)
    kept = feeds["attention_mask"].ravel() > 0
    for codes, site, most in zip(found, ("query, key, value", "context"), (2e-4, 4e-3)):
        steps = np.abs(codes.reshape(len(kept), -1)[kept] - np.asarray(seen[f"{name}.{site}"].codes, int))
        assert steps.max() <= 1 and (steps > 0).mean() < most, site


def test_products_are_in_codes(graph):
    """Queries, keys and values together and the three other layers, bias and all; both products of attention, and the
    sums of its weights; in 6 blocks."""
    kinds = graph.optimized
    assert kinds.count("QGemm") == 6 * 4
    assert kinds.count("MatMulIntegerToFloat") == 6 * 3
    assert not {"MatMul", "Gemm", "FusedMatMul"} & set(kinds)


def test_nearer_to_float32_than_the_runtimes_own(float_model, graph, run_onnx, tokens, tmp_path):
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):
        def __init__(self):
            self.left = iter(tokens)

        def get_next(self) -> dict | None:
            ids = next(self.left, None)
            if ids is None:
                return None
            ids = ids[None].astype(np.int64)
            return {"input_ids": ids, "attention_mask": ids * 0 + 1, "token_type_ids": ids * 0}

    cq.export(float_model, tmp_path / "float32.onnx")
    logging.disable(logging.WARNING)  # advice to preprocess, which changes nothing here
    quantization.quantize_static(
        tmp_path / "float32.onnx",
        tmp_path / "static.onnx",
        Reader(),
        op_types_to_quantize=["MatMul"],
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        extra_options={"MatMulConstBOnly": True},
    )
    logging.disable(logging.NOTSET)
    exact = float_model.embed(tokens)
    rivals = cosine(run_onnx(tmp_path / "static.onnx")(tokens)["sentence_embedding"], exact)
    assert 1 - cosine(graph(tokens)["sentence_embedding"], exact) < (1 - rivals) / 4


def test_in_openvino(graph, tokens):
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    ready = openvino.Core().compile_model(graph.path, "CPU", settings)
    found = ready(graph.feeds(tokens))[ready.output("sentence_embedding")]
    assert cosine(found, graph(tokens)["sentence_embedding"]) > 0.999
