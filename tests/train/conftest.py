"""Small models of awkward sizes, with every bias, for gradients in float64."""

import numpy as np
import pytest

from cq import Config, Dynamic, WeightOnly
from cq.model.forms import Fixed
from cq.model.sites import Graph
from cq.plan import Plan
from cq.quantize.dynamic import plan_dynamic
from cq.quantize.static import plan_fixed
from cq.quantize.weight_only import plan_weight_only

_ODD = {
    "bert": dict(
        family="bert",
        vocab_size=23,
        hidden_size=12,
        num_layers=2,
        num_heads=3,
        num_kv_heads=3,
        head_dim=4,
        intermediate_size=17,
        max_positions=16,
        type_vocab_size=2,
        pooling="mean",
        normalize=True,
    ),
    "biased": dict(
        family="mpnet",
        vocab_size=23,
        hidden_size=12,
        num_layers=2,
        num_heads=3,
        num_kv_heads=3,
        head_dim=4,
        intermediate_size=17,
        max_positions=14,
        position_offset=2,
        position_bias={"kind": "buckets", "buckets": 8, "distance": 7},
        embedding_width=7,
    ),
    "llama": dict(
        family="llama",
        vocab_size=19,
        hidden_size=12,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=6,
        intermediate_size=13,
        max_positions=16,
        norm="rms",
        norm_eps=1e-5,
        norm_first=True,
        activation="silu",
        gated=True,
        rope_theta=1e4,
        causal=True,
        lm_head=True,
        tied=True,
    ),
    "normed": dict(
        family="qwen3",
        vocab_size=19,
        hidden_size=14,
        num_layers=1,
        num_heads=4,
        num_kv_heads=2,
        head_dim=6,
        intermediate_size=13,
        max_positions=16,
        norm="rms",
        norm_eps=1e-5,
        norm_first=True,
        activation="silu",
        gated=True,
        rope_theta=1e4,
        qk_norm=True,
        causal=True,
        lm_head=True,
        tied=False,
    ),
    "gemma": dict(
        family="gemma3_text",
        vocab_size=19,
        hidden_size=12,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=6,
        intermediate_size=13,
        max_positions=16,
        norm="rms",
        norm_eps=1e-5,
        norm_first=True,
        norm_outputs=True,
        activation="gelu_tanh",
        gated=True,
        rope_theta=1e4,
        local_rope_theta=1e3,
        window=3,
        local=(True, False),
        embedding_scale=3.5,
        attention_scale=0.5,
        attention_cap=1.5,
        logits_cap=2.0,
        causal=True,
        lm_head=True,
        tied=True,
    ),
    "after": dict(
        family="olmo2",
        vocab_size=19,
        hidden_size=12,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        head_dim=6,
        intermediate_size=13,
        max_positions=16,
        norm="rms",
        norm_eps=1e-5,
        norm_outputs=True,
        activation="silu",
        gated=True,
        rope_theta=1e4,
        rotated=(False, True),
        qk_norm=True,
        qk_norm_joint=True,
        residual_scale=0.3,
        logits_scale=2.5,
        causal=True,
        lm_head=True,
        tied=False,
    ),
    "parallel": dict(
        family="gpt_neox",
        vocab_size=19,
        hidden_size=12,
        num_layers=2,
        num_heads=2,
        num_kv_heads=2,
        head_dim=6,
        intermediate_size=13,
        max_positions=16,
        norm="layer",
        norm_first=True,
        parallel=True,
        window=2,
        residual_scale=0.7,
        rope_theta=1e4,
        rotary_dim=4,
        causal=True,
        lm_head=True,
        tied=False,
    ),
    "mixed": dict(
        family="llama",
        vocab_size=19,
        hidden_size=12,
        num_layers=1,
        num_heads=2,
        num_kv_heads=1,
        head_dim=6,
        intermediate_size=13,
        max_positions=16,
        norm="layer",
        norm_first=True,
        activation="gelu_tanh",
        rope_theta=1e4,
        causal=True,
        lm_head=True,
        tied=False,
    ),
}


@pytest.fixture(scope="session")
def small():
    """small(one of _ODD, **changes) → (configuration, weights in float32)."""

    def make(family: str, **changes) -> tuple[Config, dict[str, np.ndarray]]:
        config, rng = Config(**_ODD[family] | changes), np.random.default_rng(5)
        shapes = config.shapes()
        shapes |= {name[:-6] + "bias": shape[:1] for name, shape in shapes.items() if name.endswith(".weight")}
        return config, {
            name: rng.normal(name.endswith("norm.weight"), 0.4, shape).astype(np.float32)
            for name, shape in shapes.items()
        }

    return make


@pytest.fixture(scope="session")
def ragged():
    """ragged(vocabulary) → five sequences of ids, two of them equally long."""

    def make(vocab: int, seed: int = 0, lengths=(5, 1, 8, 5, 3)) -> list[np.ndarray]:
        rng = np.random.default_rng(seed)
        return [rng.integers(0, vocab, n) for n in lengths]

    return make


@pytest.fixture(scope="session")
def plan_for():
    """plan_for(config, strategy or None, params, smoothed) → the plan that a training of it begins with. params: site →
    scale and zero point of fixed codes, else the default; smoothed: site → form, where features have scales of their
    own."""

    def make(config: Config, strategy, params=None, smoothed=None, default=(1.0, 0)) -> Plan:
        if strategy is None:
            return Plan.float32(Graph(config))
        if isinstance(strategy, WeightOnly):
            return plan_weight_only(config, strategy)
        if isinstance(strategy, Dynamic):
            return plan_dynamic(config, strategy)
        scheme, smoothed = strategy.scheme, smoothed or {}
        codes = scheme.activation_dtype, scheme.activation_symmetric

        def form_at(site):
            scale, zero_point = (params or {}).get(site, default)
            return smoothed.get(site, Fixed(*codes, float(scale), int(zero_point)))

        return plan_fixed(config, strategy, form_at)

    return make
