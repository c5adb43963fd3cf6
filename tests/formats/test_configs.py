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
    )
}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_real_configuration_is_read(file):
    values = json.loads(file.read_text())
    config, _ = parse_config(values, file.name)
    assert {name: getattr(config, name) for name in WANTED[file.stem]} == WANTED[file.stem]
    assert [key for key in values if rule_of("config.json", key) is None] == []
