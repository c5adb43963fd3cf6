"""config.json as real models have it: every key has a rule, and what comes of it is what the model is."""

import json
from pathlib import Path

import pytest

from cq.formats.huggingface import parse_config
from cq.formats.keys import rule_of

FILES = sorted(Path(__file__).with_name("configs").glob("*.json"))
WANTED = {  # some entries of what comes of each
    "all-mpnet-base-v2": dict(
        family="mpnet",
        max_positions=512,
        position_offset=2,
        norm_eps=1e-5,
        position_bias={"kind": "buckets", "buckets": 32, "distance": 128},
    ),
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


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_real_configuration_is_read(file):
    values = json.loads(file.read_text())
    config, _ = parse_config(values, file.name)
    assert {name: getattr(config, name) for name in WANTED[file.stem]} == WANTED[file.stem]
    assert [key for key in values if rule_of("config.json", key) is None] == []
