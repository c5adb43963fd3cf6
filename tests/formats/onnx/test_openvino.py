"""OpenVINO runs every kind of exported graph."""

import numpy as np
import openvino
import pytest

import cq

KINDS = {
    "weight-only": cq.WeightOnly(cq.Scheme(weight_granularity="per_group", group_size=16)),
    "dynamic": cq.Dynamic(cq.Scheme(weight_symmetric=False)),
    "dynamic textbook": cq.Dynamic(cq.Scheme.textbook()),
    "static": cq.Static(),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_openvino(random_model, exported, sequences, family, kind):
    """Its outputs are as near to float32 as codes allow."""
    model, _ = random_model(family)
    tokens, strategy = sequences(model), KINDS[kind]
    graph = exported(cq.quantize(model, strategy, tokens if isinstance(strategy, cq.Static) else None))
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    ready = openvino.Core().compile_model(graph.path, "CPU", settings)
    name = "logits" if family == "llama" else "last_hidden_state"
    found = ready(graph.feeds(tokens))[ready.output(name)]
    own = model.logits(tokens) if family == "llama" else model.forward(tokens)
    for row, exact in zip(found, own):
        assert np.linalg.norm(row[: len(exact)] - exact) < 0.08 * np.linalg.norm(exact)
