"""Rotation, compensation and equalization on graphs of other kinds: the same function, or refused with the reason."""

import numpy as np
import pytest
from configurations import LLAMA

import cq
from cq.model import Config, Transformer
from cq.prepare.equalize import equalize_values

GRAPHS = {
    "granite": dict(embedding_scale=12.0, residual_scale=0.22, logits_scale=0.2, attention_scale=0.1, window=9),
    "smollm3": dict(rotated=(True, False), rotary_dim=4, tied=False),
    "gemma2": dict(norm_outputs=True, attention_cap=3.0, logits_cap=2.0, window=7, local=(True, False), tied=False),
    "olmo2": dict(norm_first=False, norm_outputs=True, qk_norm=True, qk_norm_joint=True, tied=False),
    "gpt_neox": dict(norm="layer", activation="gelu", gated=False, parallel=True, tied=False),
    "embedding norm": dict(embedding_norm=True, tied=False),
    "masked": dict(causal=False, head_transform="gelu", tied=False),
}
ROTATED = ("granite", "smollm3")


def made(name):
    config, rng = Config(**LLAMA | dict(family=name) | GRAPHS[name]), np.random.default_rng(9)
    weights = {
        key: rng.normal(key.endswith("norm.weight"), 0.2, shape).astype(np.float32)
        for key, shape in config.shapes().items()
    }
    return Transformer(config, weights), weights


TOKENS = [np.random.default_rng(2).integers(0, 61, n) for n in (5, 30, 17)]


def far(ours, theirs):
    """The largest difference, in the deviation of what it is from."""
    return max(np.abs(a - b).max() for a, b in zip(ours, theirs, strict=True)) / np.std(np.concatenate(theirs))


@pytest.mark.parametrize("name", GRAPHS)
def test_a_rotation_keeps_logits_or_is_refused(name):
    model, _ = made(name)
    if name in ROTATED:
        assert far(cq.rotate(model).logits(TOKENS), model.logits(TOKENS)) < 1e-4
    else:
        with pytest.raises(cq.UnsupportedError, match=f"rotate: {name} models"):
            cq.rotate(model)


def test_a_rotation_of_norms_with_biases_is_refused():
    model, weights = made("smollm3")
    biased = Transformer(model.config, weights | {"final_norm.bias": np.ones(36, np.float32)})
    with pytest.raises(cq.UnsupportedError, match="rotate: smollm3 models"):
        cq.rotate(biased)


@pytest.mark.parametrize("name", GRAPHS)
def test_compensated_codes_are_nearer(name):
    """Weights on int8's codes, and a function that is nearly the same."""
    model, _ = made(name)
    compensated = cq.compensate(model, TOKENS * 6)
    exact = model.logits(TOKENS)
    assert far(compensated.logits(TOKENS), exact) < 0.3
    coded = cq.quantize(compensated, cq.WeightOnly()).logits(TOKENS)
    assert far(coded, compensated.logits(TOKENS)) < 0.3


@pytest.mark.parametrize("name", GRAPHS)
def test_equalized_values_are_the_same_function(name):
    model, weights = made(name)
    for block in model.graph.blocks:
        weights = weights | equalize_values(weights, block.attention, model.config)
    assert far(Transformer(model.config, weights).logits(TOKENS), model.logits(TOKENS)) < 1e-4
