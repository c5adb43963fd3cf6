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
    "static stretched": cq.Static(stretch=True),
}
WINDOWED = dict(window=4, local=(True, False), rope_theta=1e4)
MODELS = {
    "encoder": ("bert", {}),
    "encoder with a bias": ("bert", dict(position_bias={"kind": "buckets", "buckets": 8, "distance": 9})),
    "encoder whose tokens meet positions": (
        "bert",
        dict(position_bias={"kind": "disentangled", "buckets": 5, "distance": 9, "keys": True, "queries": True}),
    ),
    "encoder with a convolution": ("bert", dict(convolution={"kernel": 3, "activation": "gelu"})),
    "encoder with windows": ("bert", dict(**WINDOWED, norm_first=True, embedding_norm=True)),
    "decoder": ("llama", {}),
    "decoder with windows": ("llama", dict(**WINDOWED, norm_outputs=True, attention_cap=4.0, rotary_dim=4)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MODELS)
def test_openvino(random_model, exported, sequences, name, kind):
    """Its outputs are as near to float32 as codes allow."""
    family, changes = MODELS[name]
    model, _ = random_model(family, **changes)
    tokens, strategy = sequences(model), KINDS[kind]
    graph = exported(cq.quantize(model, strategy, tokens if isinstance(strategy, cq.Static) else None))
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    ready = openvino.Core().compile_model(graph.path, "CPU", settings)
    output = "logits" if family == "llama" else "last_hidden_state"
    found = ready(graph.feeds(tokens))[ready.output(output)]
    own = model.logits(tokens) if family == "llama" else model.forward(tokens)
    for row, exact in zip(found, own):
        assert np.linalg.norm(row[: len(exact)] - exact) < 0.08 * np.linalg.norm(exact)
