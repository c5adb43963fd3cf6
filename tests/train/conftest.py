"""Small models of awkward sizes, with every bias, for gradients in float64."""

import numpy as np
import pytest
from configurations import BERT, LLAMA

from cq import Config, Dynamic, WeightOnly
from cq.model.forms import Fixed
from cq.model.sites import Graph
from cq.plan import Plan
from cq.quantize.dynamic import plan_dynamic
from cq.quantize.static import plan_fixed
from cq.quantize.weight_only import plan_weight_only

_SIZES = dict(vocab_size=23, hidden_size=12, num_heads=3, num_kv_heads=3, head_dim=4, intermediate_size=17)
_BERT = BERT | _SIZES | dict(max_positions=16)
_LLAMA = LLAMA | dict(vocab_size=19, hidden_size=12, num_heads=4, head_dim=6, intermediate_size=13, max_positions=16)
_UNTIED = _LLAMA | dict(num_heads=2, tied=False)
_ODD = {
    "bert": _BERT,
    "biased": _BERT
    | dict(
        family="mpnet",
        type_vocab_size=0,
        pooling=None,
        normalize=False,
        max_positions=14,
        position_offset=2,
        position_bias={"kind": "buckets", "buckets": 8, "distance": 7},
        embedding_width=7,
    ),
    "disentangled": _BERT
    | dict(
        family="deberta-v2",
        vocab_size=21,
        type_vocab_size=0,
        max_positions=14,
        position_table=False,
        attention_scale=0.3,
        position_bias={"kind": "disentangled", "buckets": 4, "distance": 6, "keys": True, "queries": True},
        convolution={"kernel": 3, "activation": "gelu"},
    ),
    "llama": _LLAMA,
    "transformed": _LLAMA
    | dict(num_layers=1, num_heads=2, head_dim=16, intermediate_size=32, hadamard=32, head_hadamard=16),
    "normed": _LLAMA | dict(family="qwen3", hidden_size=14, num_layers=1, qk_norm=True, tied=False),
    "gemma": _LLAMA
    | dict(
        family="gemma3_text",
        norm_outputs=True,
        activation="gelu_tanh",
        local_rope_theta=1e3,
        window=3,
        local=(True, False),
        embedding_scale=3.5,
        attention_scale=0.5,
        attention_cap=1.5,
        logits_cap=2.0,
    ),
    "after": _UNTIED
    | dict(
        family="olmo2",
        num_kv_heads=1,
        norm_first=False,
        norm_outputs=True,
        rotated=(False, True),
        qk_norm=True,
        qk_norm_joint=True,
        residual_scale=0.3,
        logits_scale=2.5,
    ),
    "parallel": _UNTIED
    | dict(
        family="gpt_neox",
        norm="layer",
        activation="gelu",
        gated=False,
        parallel=True,
        window=2,
        residual_scale=0.7,
        rotary_dim=4,
    ),
    "mixed": _UNTIED | dict(num_layers=1, num_kv_heads=1, norm="layer", activation="gelu_tanh", gated=False),
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
