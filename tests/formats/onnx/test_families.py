"""Exported models of every kind that families are of: where norms stand, what multiplies and caps, which positions
there are, what a token sees."""

import re

import numpy as np
import onnx
import pytest
from exports import check, error, quantized

import cq
from cq.formats.onnx import network
from cq.model.position_bias import KINDS

BUCKETS = {"kind": "buckets", "buckets": 8, "distance": 9}
MET = {"kind": "disentangled", "buckets": 5, "distance": 9, "keys": True, "queries": True}
GPT2 = dict(norm="layer", activation="gelu_tanh", gated=False, rope_theta=None, num_kv_heads=6, norm_eps=1e-5)
YARN = dict(kind="yarn", factor=4.0, original_positions=16, beta_fast=32.0, beta_slow=1.0, attention_factor=1.1)
LONGROPE = dict(
    kind="longrope",
    short_factors=[1.0, 1.1, 1.3, 2.0],
    long_factors=[1.0, 2.0, 5.0, 9.0],
    original_positions=8,
    attention_factor=1.2,
)
MODERNBERT = dict(
    norm_first=True,
    embedding_norm=True,
    rope_theta=1e4,
    gated=True,
    type_vocab_size=0,
    num_layers=3,
    window=3,
    local=(True, False, True),
    local_rope_theta=100.0,
)
GEMMA = dict(
    norm_outputs=True, activation="gelu_tanh", window=4, local=(True, False), embedding_scale=6.0, attention_scale=0.3
)
FAMILIES = {
    "roberta": ("bert", dict(position_offset=2, type_vocab_size=1)),
    "distilbert": ("bert", dict(type_vocab_size=0)),
    "types that never reach the model": ("bert", dict(token_types=False)),
    "relu, rms norms": ("bert", dict(activation="relu", norm="rms")),
    "gelu by tanh": ("bert", dict(activation="gelu_tanh")),
    "electra": ("bert", dict(embedding_width=17)),
    "mpnet": ("bert", dict(position_bias=BUCKETS, position_offset=2, type_vocab_size=0)),
    "jina": ("bert", dict(position_bias={"kind": "alibi"}, position_table=False, gated=True)),
    "biases of shared keys": ("bert", dict(position_bias=BUCKETS, num_heads=6, num_kv_heads=2)),
    "deberta": (
        "bert",
        dict(position_bias=MET, position_table=False, type_vocab_size=0, attention_scale=(3 * 20) ** -0.5),
    ),
    "deberta, keys of every distance": (
        "bert",
        dict(position_bias=MET | dict(buckets=0, queries=False), attention_scale=(2 * 20) ** -0.5),
    ),
    "deberta, queries alone": ("bert", dict(position_bias=MET | dict(keys=False), position_table=False)),
    "deberta with a convolution": (
        "bert",
        dict(position_bias=MET, position_table=False, convolution={"kernel": 3, "activation": "gelu"}),
    ),
    "a convolution after one layer": ("bert", dict(num_layers=1, convolution={"kernel": 5, "activation": "relu"})),
    "positions that meet shared keys": (
        "bert",
        dict(position_bias=MET, num_heads=6, num_kv_heads=2, head_dim=10, rope_theta=1e4, window=4),
    ),
    "t5": (
        "bert",
        dict(
            position_bias=BUCKETS,
            position_table=False,
            norm="rms",
            norm_first=True,
            activation="relu",
            attention_scale=1.0,
            type_vocab_size=0,
        ),
    ),
    "modernbert": ("bert", MODERNBERT),
    "gpt2": ("llama", GPT2),
    "qwen3": ("llama", dict(qk_norm=True, tied=False)),
    "mistral": ("llama", dict(window=4)),
    "gemma2": ("llama", dict(**GEMMA, attention_cap=2.0, logits_cap=3.0)),
    "gemma3": ("llama", dict(**GEMMA, qk_norm=True, local_rope_theta=100.0)),
    "embeddinggemma": ("llama", dict(**GEMMA, qk_norm=True, causal=False, lm_head=False, tied=False)),
    "olmo2": ("llama", dict(norm_first=False, norm_outputs=True, qk_norm=True, qk_norm_joint=True)),
    "hadamard transforms": ("llama", dict(head_dim=48, intermediate_size=96, hadamard=32, head_hadamard=16)),
    "smollm3": ("llama", dict(rotated=(False, True))),
    "granite": ("llama", dict(embedding_scale=12.0, residual_scale=0.3, logits_scale=1.25, attention_scale=0.2)),
    "gpt-neox": ("llama", dict(parallel=True, norm="layer", gated=False, activation="gelu", rotary_dim=4)),
    "yarn": ("llama", dict(rope_scaling=YARN)),
    "longrope": ("llama", dict(rope_scaling=LONGROPE)),
    "decoder that embeds": ("llama", dict(lm_head=False, tied=False, pooling="last", normalize=True)),
}
CACHED = ["gpt2", "mistral", "gemma2", "gemma3", "olmo2", "smollm3", "gpt-neox"]


@pytest.mark.parametrize("strategy", ["float32", "dynamic", "static", "static plain"])
@pytest.mark.parametrize("name", FAMILIES)
def test_families(random_model, exported, sequences, name, strategy):
    family, changes = FAMILIES[name]
    model, _ = random_model(family, **changes)
    tokens = sequences(model)
    check(exported, model, quantized(model, strategy, tokens), tokens)


@pytest.mark.parametrize("strategy", ["static stream", "static stretched"])
@pytest.mark.parametrize(
    "name", ["deberta with a convolution", "modernbert", "hadamard transforms", "gemma3", "gpt-neox"]
)
def test_streams_in_codes_and_tokens_that_stretch(random_model, exported, sequences, name, strategy):
    """Where norms stand otherwise than in BERT and Llama."""
    family, changes = FAMILIES[name]
    model, _ = random_model(family, **changes)
    tokens = sequences(model)
    check(exported, model, quantized(model, strategy, tokens), tokens)


@pytest.mark.parametrize(
    "name", ["mpnet", "jina", "deberta", "deberta with a convolution", "modernbert", "embeddinggemma", "mistral"]
)
def test_padding_moves_nothing(random_model, exported, sequences, name):
    """Windows and biases go by the distance between tokens, wherever padding stands."""
    family, changes = FAMILIES[name]
    model, _ = random_model(family, **changes | dict(lm_head=False, tied=False) if family == "llama" else changes)
    tokens, graph = sequences(model), exported(model)
    for left in (False, True):
        assert error(graph.rows(tokens, left=left), model.forward(tokens)) < 1e-4


def test_every_bias_by_distance_is_tried():
    biases = [changes["position_bias"]["kind"] for _, changes in FAMILIES.values() if "position_bias" in changes]
    assert set(biases) == set(KINDS)


def test_buckets_beyond_the_last_distance(random_model, exported, sequences):
    """The table of biases ends where they do, or where sequences do."""
    for distance in (3, 500):
        model, _ = random_model("bert", position_bias=BUCKETS | dict(distance=distance))
        tokens = sequences(model, (33, 30))
        assert error(exported(model).rows(tokens), model.forward(tokens)) < 1e-5


@pytest.mark.parametrize(
    "change", [dict(distance=3, buckets=2), dict(distance=10), dict(distance=500), dict(distance=20, buckets=0)]
)
def test_relative_positions_beyond_the_last_distance(random_model, exported, sequences, change):
    """The table of positions ends where they do, or where sequences do."""
    model, _ = random_model("bert", position_bias=MET | change)
    tokens = sequences(model, (33, 1, 30))
    assert error(exported(model).rows(tokens), model.forward(tokens)) < 1e-5


@pytest.mark.parametrize("name", CACHED)
def test_past_is_what_one_pass_gives(random_model, exported, sequences, name):
    """In pieces of several tokens, past the end of windows."""
    model, _ = random_model("llama", **FAMILIES[name][1])
    (ids,), past, rows = sequences(model, (13,)), None, []
    graph = exported(model)
    for piece in (ids[:6], ids[6:7], ids[7:]):
        past = graph([piece], past=past)
        rows.append(past["logits"][0])
    assert error([np.concatenate(rows)], model.logits([ids])) < 1e-4
    assert past["present.1.key"].shape == (1, model.config.num_kv_heads, 13, model.config.head_dim)


def test_longrope_turns_each_sequence_by_its_own_length(random_model, exported, sequences):
    """In one batch; pieces of a text that is longer than the turning point from its first one on."""
    model, _ = random_model("llama", rope_scaling=LONGROPE)
    tokens, graph = sequences(model, (8, 9, 20, 3)), exported(model)
    for left in (False, True):
        assert error(graph.rows(tokens, "logits", left), model.logits(tokens)) < 1e-4
    past = graph([tokens[2][:10]])
    assert error([graph([tokens[2][10:]], past=past)["logits"][0]], [model.logits(tokens)[2][10:]]) < 1e-4


def test_settings_that_no_graph_has_are_refused(random_model, monkeypatch, tmp_path):
    """Each one that is not in the list of what is drawn, such as those that come later."""
    monkeypatch.setattr(network, "_DRAWN", network._DRAWN - {"window"})
    with pytest.raises(cq.UnsupportedError, match="no graph for window=4 of this llama model"):
        cq.export(random_model("llama", window=4)[0], tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("strategy", ["float32", "dynamic"])
def test_layers_of_the_same_weights_are_written_once(random_model, exported, sequences, strategy):
    """As ALBERT's are."""
    model, weights = random_model("bert", num_layers=4)
    shared = {name: weights[re.sub(r"layers\.\d", "layers.0", name)] for name in weights}
    model = cq.Transformer(model.config, shared)
    tokens = sequences(model)
    check(exported, model, quantized(model, strategy, tokens), tokens)
    graph = onnx.load(exported(quantized(model, strategy, tokens)).path).graph
    matrices = [tensor.name for tensor in graph.initializer if len(tensor.dims) == 2 and min(tensor.dims) > 30]
    assert len([name for name in matrices if name.startswith("layers.")]) <= 6
