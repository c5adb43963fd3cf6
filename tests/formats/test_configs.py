"""config.json as real models have it: every key has a rule, and what comes of it is what the model is."""

import json
from pathlib import Path

import pytest

from cq.errors import FormatError, UnsupportedError
from cq.formats.huggingface import parse_config
from cq.formats.keys import rule_of

FILES = Path(__file__).with_name("configs")
WANTED = {  # some entries of what comes of each
    "embeddinggemma-300m": dict(
        family="gemma3_text",
        causal=False,
        lm_head=False,
        window=256,
        local=tuple((i + 1) % 6 != 0 for i in range(24)),
        rope_theta=1e6,
        local_rope_theta=1e4,
        norm_outputs=True,
        qk_norm=True,
        pooling="mean",
    ),
    "ModernBERT-base": dict(
        family="modernbert",
        window=64,
        local=tuple(i % 3 != 0 for i in range(22)),
        rope_theta=160000.0,
        local_rope_theta=10000.0,
        embedding_norm=True,
        gated=True,
    ),
    "jina-embeddings-v2-base-en": dict(
        family="jina-bert", position_table=False, position_bias={"kind": "alibi"}, gated=True, max_positions=8192
    ),
    "sentence-t5-base": dict(
        family="t5",
        norm="rms",
        norm_first=True,
        gated=False,
        activation="relu",
        attention_scale=1.0,
        head_dim=64,
        position_bias={"kind": "buckets", "buckets": 32, "distance": 128},
    ),
    "t5-v1_1-base": dict(family="t5-gated", gated=True, activation="gelu_tanh", intermediate_size=2048),
    "nomic-embed-text-v1.5": dict(
        family="nomic_bert", max_positions=8192, rope_theta=1000.0, activation="silu", gated=True, type_vocab_size=2
    ),
    "nomic-bert-2048": dict(max_positions=2048, rope_scaling=None),
    "gte-base-en-v1.5": dict(
        family="new", type_vocab_size=0, rope_theta=5e5, rope_scaling={"kind": "ntk", "factor": 2.0}, gated=True
    ),
    "electra-base-discriminator": dict(family="electra", embedding_width=None, type_vocab_size=2, norm_eps=1e-12),
    "electra-small-discriminator": dict(embedding_width=128, hidden_size=256, head_dim=64),
    "albert-base-v2": dict(family="albert", embedding_width=128, num_layers=12, activation="gelu_tanh"),
    "all-mpnet-base-v2": dict(
        family="mpnet",
        max_positions=512,
        position_offset=2,
        norm_eps=1e-5,
        position_bias={"kind": "buckets", "buckets": 32, "distance": 128},
    ),
    "deberta-v3-base": dict(
        family="deberta-v2",
        position_table=False,
        type_vocab_size=0,
        norm_eps=1e-7,
        attention_scale=1 / 192**0.5,
        classifier=None,
        position_bias={"kind": "disentangled", "buckets": 256, "distance": 512, "keys": True, "queries": True},
    ),
    "deberta-v2-xlarge": dict(head_dim=64, convolution={"kernel": 3, "activation": "gelu"}),
    "nli-deberta-v3-small": dict(
        classifier="gelu", labels=("contradiction", "entailment", "neutral"), num_layers=6, pad_token_id=0
    ),
    "mxbai-rerank-xsmall-v1": dict(hidden_size=384, head_dim=64, classifier="gelu", labels=("LABEL_0",)),
    "Mistral-7B-v0.1": dict(window=4096, local=(), num_kv_heads=8, max_positions=32768),
    "gemma-2-2b-it": dict(
        window=4096,
        local=(True, False) * 13,
        attention_cap=50.0,
        logits_cap=30.0,
        attention_scale=1 / 16,
        embedding_scale=48.0,
        activation="gelu_tanh",
        tied=True,
        eos_token_ids=(1, 107),
    ),
    "gemma-3-1b-it": dict(
        window=512,
        local=(*(True,) * 5, False) * 4 + (True, True),
        qk_norm=True,
        rope_theta=1e6,
        local_rope_theta=1e4,
        logits_cap=None,
    ),
    "Phi-4-mini-instruct": dict(rotary_dim=96, num_kv_heads=8, window=262144, tied=True),
    "SmolLM3-3B": dict(rotated=(True, True, True, False) * 9, window=None, rope_theta=5e6, tied=True),
    "granite-3.1-2b-instruct": dict(
        embedding_scale=12.0, residual_scale=0.22, attention_scale=1 / 64, logits_scale=1 / 8
    ),
    "OLMo-2-1124-7B": dict(norm_first=False, norm_outputs=True, qk_norm=True, qk_norm_joint=True, rope_theta=5e5),
    "pythia-160m": dict(parallel=True, rotary_dim=16, norm="layer", activation="gelu", tied=False),
}


@pytest.mark.parametrize("model", WANTED)
def test_a_real_configuration_is_read(model):
    values = json.loads((FILES / f"{model}.json").read_text())
    config, _ = parse_config(values, model)
    assert {name: getattr(config, name) for name in WANTED[model]} == WANTED[model]
    assert [key for key in values if rule_of("config.json", key) is None] == []


LINEAR = {"rope_type": "linear", "factor": 2.0}


@pytest.mark.parametrize(
    ("name", "entries", "words"),
    [
        ("ModernBERT-base", {"rope_scaling": LINEAR}, "rope_scaling 'linear' of layers with a window"),
        ("ModernBERT-base", {"local_attention": 1}, "local_attention 1 is not implemented, only 2 and more"),
        ("ModernBERT-base", {"architectures": ["ModernBertForTokenClassification"]}, "of modernbert models no head"),
        ("ModernBERT-base", {"architectures": ["ModernBertForQuestionAnswering"]}, "of modernbert models no head"),
        ("sentence-t5-base", {"architectures": ["T5ForTokenClassification"]}, "of t5 models no head"),
        ("t5-v1_1-base", {"architectures": ["T5ForQuestionAnswering"]}, "of t5-gated models no head"),
        ("t5-v1_1-base", {"dense_act_fn": "relu"}, "dense_act_fn 'relu' beside feed_forward_proj 'gated-gelu'"),
        ("sentence-t5-base", {"is_gated_act": True}, "is_gated_act True beside feed_forward_proj 'relu'"),
        ("gemma-2-2b-it", {"use_bidirectional_attention": True}, "use_bidirectional_attention true"),
        ("gemma-2-2b-it", {"is_causal": False}, "is_causal false"),
        ("pythia-160m", {"is_causal": False}, "is_causal false"),
        ("embeddinggemma-300m", {"sliding_window": 1}, "sliding_window 1 is not implemented, only 2 and more"),
        ("Phi-4-mini-instruct", {"rope_scaling": {"type": "yarn", "factor": 2.0}}, "rope_type 'yarn' is not .* phi3"),
        (
            "Mistral-7B-v0.1",
            {"rope_scaling": LINEAR, "rope_parameters": {"rope_type": "default", "rope_theta": 5.0}},
            "rope_scaling .* beside other rope_parameters",
        ),
    ],
)
def test_what_would_compute_something_else_is_refused(name, entries, words):
    """Each of these changes what transformers computes with the file."""
    values = json.loads(Path(__file__).with_name("configs").joinpath(f"{name}.json").read_text())
    with pytest.raises(UnsupportedError, match=f"^config.json: .*{words}"):
        parse_config(values | entries, "config.json")


@pytest.mark.parametrize(
    ("name", "entries"),
    [
        ("t5-v1_1-base", {"dense_act_fn": "gelu_new", "is_gated_act": True}),
        ("embeddinggemma-300m", {"is_causal": False}),
        ("albert-base-v2", {"is_causal": False}),
        ("Mistral-7B-v0.1", {"is_causal": True, "rope_scaling": LINEAR, "rope_parameters": LINEAR}),
    ],
)
def test_what_says_the_same_again_is_taken(name, entries):
    values = json.loads(Path(__file__).with_name("configs").joinpath(f"{name}.json").read_text())
    parse_config(values | entries, "config.json")


@pytest.mark.parametrize(
    ("model_type", "entries", "words"),
    [
        ("qwen2", {"use_sliding_window": True, "max_window_layers": "all"}, "max_window_layers must be an integer of"),
        ("gemma3_text", {"sliding_window_pattern": 0}, "sliding_window_pattern must be a positive integer"),
    ],
)
def test_which_layers_have_a_window_is_checked(model_type, entries, words):
    with pytest.raises(FormatError, match=f"^config.json: {words}"):
        parse_config({"model_type": model_type} | entries, "config.json")


def test_every_file_is_read():
    assert {file.stem for file in FILES.iterdir()} == set(WANTED)
