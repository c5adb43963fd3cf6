"""The younger decoders against transformers, on small random models of odd sizes: logits and greedy texts, token by
token through the cache as in a whole pass, under all strategies and schemes, and in checkpoints."""

import numpy as np
import pytest
import torch
from configurations import LLAMA
from families import ODD, SMALL, STRATEGIES, close, outputs, ragged, saved, survives
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    Gemma3TextModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    Olmo3Config,
    Olmo3ForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

import cq
from cq.formats.huggingface import parse_config, read_folder, write_folder
from cq.model.generate import Generator, Step
from cq.model.sampling import Sampling

_ONE = SMALL | dict(vocab_size=67, num_attention_heads=5, num_key_value_heads=5, num_hidden_layers=2)
_TIED = dict(tie_word_embeddings=True)
_LONG = dict(rope_type="longrope", rope_theta=1e4, short_factor=[1.0, 1.1, 1.3], long_factor=[1.0, 2.0, 5.0])
_MULTIPLIED = dict(embedding_multiplier=12.0, logits_scaling=0.8, residual_multiplier=0.22, attention_multiplier=0.2)


def _gemma(sizes, **more):
    return sizes | _TIED | dict(head_dim=16, query_pre_attn_scalar=20, sliding_window=23) | more


def _neox(sizes, share=0.5, **more):
    kept = {key: value for key, value in sizes.items() if key != "num_key_value_heads"}
    rope = dict(rope_type="default", rope_theta=1e4, partial_rotary_factor=share)
    return GPTNeoXConfig(**kept | dict(rope_parameters=rope) | more)


DECODERS = {
    "mistral": (MistralForCausalLM, MistralConfig(**SMALL, sliding_window=20)),
    "mistral odd": (MistralForCausalLM, MistralConfig(**ODD, head_dim=12, sliding_window=67)),
    "mistral one": (MistralForCausalLM, MistralConfig(**_ONE, sliding_window=1)),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**SMALL, use_sliding_window=True, sliding_window=17, max_window_layers=1)),
    "qwen3": (
        Qwen3ForCausalLM,
        Qwen3Config(**ODD, head_dim=8, use_sliding_window=True, sliding_window=64, max_window_layers=0),
    ),
    "gemma2": (
        Gemma2ForCausalLM,
        Gemma2Config(**_gemma(SMALL), attn_logit_softcapping=2.0, final_logit_softcapping=3.0),
    ),
    "gemma2 odd": (Gemma2ForCausalLM, Gemma2Config(**_gemma(ODD, head_dim=10), attention_bias=True)),
    "gemma2 one": (Gemma2ForCausalLM, Gemma2Config(**_gemma(_ONE), attn_logit_softcapping=None)),
    "gemma3": (
        Gemma3ForCausalLM,
        Gemma3TextConfig(**_gemma(SMALL), sliding_window_pattern=2, rope_scaling=dict(rope_type="linear", factor=8.0)),
    ),
    "gemma3 odd": (Gemma3ForCausalLM, Gemma3TextConfig(**_gemma(ODD, head_dim=10), sliding_window_pattern=3)),
    "gemma3 one": (Gemma3ForCausalLM, Gemma3TextConfig(**_gemma(_ONE, final_logit_softcapping=5.0))),
    "phi3": (
        Phi3ForCausalLM,
        Phi3Config(**SMALL, rope_parameters=_LONG | dict(partial_rotary_factor=0.6), sliding_window=50),
    ),
    "phi3 odd": (Phi3ForCausalLM, Phi3Config(**ODD, sliding_window=None)),
    "phi3 one": (
        Phi3ForCausalLM,
        Phi3Config(
            **_ONE | _TIED, rope_parameters=dict(rope_type="default", rope_theta=1e4, partial_rotary_factor=0.75)
        ),
    ),
    "smollm3": (SmolLM3ForCausalLM, SmolLM3Config(**SMALL, no_rope_layer_interval=3)),
    "smollm3 odd": (
        SmolLM3ForCausalLM,
        SmolLM3Config(**ODD, no_rope_layers=[0, 1, 0], attention_bias=True, use_sliding_window=True, sliding_window=9),
    ),
    "smollm3 one": (SmolLM3ForCausalLM, SmolLM3Config(**_ONE | _TIED, no_rope_layer_interval=2, mlp_bias=True)),
    "granite": (GraniteForCausalLM, GraniteConfig(**SMALL, **_MULTIPLIED)),
    "granite odd": (GraniteForCausalLM, GraniteConfig(**ODD, **_MULTIPLIED, attention_bias=True)),
    "granite one": (GraniteForCausalLM, GraniteConfig(**_ONE | _TIED, embedding_multiplier=0.3, mlp_bias=True)),
    "olmo2": (Olmo2ForCausalLM, Olmo2Config(**SMALL)),
    "olmo2 odd": (Olmo2ForCausalLM, Olmo2Config(**ODD, attention_bias=True)),
    "olmo2 one": (Olmo2ForCausalLM, Olmo2Config(**_ONE | _TIED)),
    "olmo3": (Olmo3ForCausalLM, Olmo3Config(**SMALL | dict(num_hidden_layers=5), sliding_window=19)),
    "olmo3 long": (  # layers with a window are not stretched
        Olmo3ForCausalLM,
        Olmo3Config(**SMALL, sliding_window=19, rope_scaling=dict(rope_type="linear", factor=8.0)),
    ),
    "gpt_neox": (GPTNeoXForCausalLM, _neox(SMALL, 0.4)),
    "gpt_neox odd": (GPTNeoXForCausalLM, _neox(ODD, 1.0, attention_bias=False)),
    "gpt_neox one": (GPTNeoXForCausalLM, _neox(_ONE, 0.25, use_parallel_residual=False)),
}
FAMILIES = [name for name in DECODERS if " " not in name]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """loaded(name) → (the reference, the model), each made once."""
    found = {}

    def load(name):
        if name not in found:
            found[name] = saved(tmp_path_factory.mktemp("decoder"), *DECODERS[name])
        return found[name]

    return load


def greedy(reference, prompt, count):
    """The most likely tokens, one after another, each from a whole pass."""
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(count):
            ids.append(int(reference(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("name", DECODERS)
def test_logits_and_texts_are_those_of_transformers(loaded, name):
    reference, model = loaded(name)
    tokens = ragged((7, 1, 30, 190))
    ours, theirs = model.logits(tokens), outputs(reference, tokens, "logits")
    size = np.sqrt(np.mean([np.square(x).mean() for x in theirs]))
    assert max(np.abs(a - b).max() for a, b in zip(ours, theirs, strict=True)) < 1e-4 * size
    ends = set(model.config.eos_token_ids)
    wanted = greedy(reference, tokens[2], 6)
    wanted = wanted[: next((i for i, token in enumerate(wanted) if token in ends), len(wanted))]
    assert model.generate(tokens[2], 6).tolist() == wanted


@pytest.mark.parametrize("name", FAMILIES)
def test_weights_go_back_to_the_names_they_came_with(tmp_path, name):
    kind, config = DECODERS[name]
    saved(tmp_path, kind, config)
    settings, weights, _ = read_folder(tmp_path)
    write_folder(tmp_path / "again", tmp_path, weights, settings.family)
    again = kind.from_pretrained(tmp_path / "again").state_dict()
    for key, tensor in kind.from_pretrained(tmp_path).state_dict().items():
        raised = name.startswith("gemma") and key.endswith("norm.weight")  # 1 is added and taken off again
        assert torch.allclose(again[key], tensor, rtol=0, atol=2e-7) if raised else torch.equal(again[key], tensor)


# --- the cache --------------------------------------------------------------------------------------------------------


def stepped(model, ids, begin, cache=None):
    """Scores of ids[begin:], each from what the cache keeps: a prompt, then token by token."""
    generator = Generator(model, [ids[:begin]], len(ids) - begin + 1, Sampling(), cache)
    rows, most = [generator.prefill()], 0
    step = Step(model, model.head, generator.cache)
    for token in ids[begin:]:
        rows.append(step(np.array([token], np.int32)).copy())
        most = max(most, generator.cache.nbytes)
    return np.concatenate(rows), most


CACHED = ["mistral", "mistral one", "gemma2", "gemma3", "olmo3", "smollm3 odd", "phi3 one", "gpt_neox", "granite"]


@pytest.mark.parametrize("strategy", [None, cq.Dynamic(), cq.Static()], ids=lambda s: s.name if s else "float32")
@pytest.mark.parametrize("name", CACHED)
def test_token_by_token_is_the_whole_pass(loaded, name, strategy):
    """To the bit, through windows that leave the cache's first tokens behind."""
    _, model = loaded(name)
    if strategy is not None:
        model = cq.quantize(model, strategy, ragged((12, 30, 40)) if isinstance(strategy, cq.Static) else None)
    (ids,) = ragged((195,))
    whole = model.logits([ids])[0]
    for begin in (5, 130):
        rows, _ = stepped(model, ids, begin)
        assert rows.tobytes() == whole[begin - 1 :].tobytes()


def test_a_window_bounds_the_cache():
    """However long a text becomes; without a window memory grows with it."""
    sizes = dict(vocab_size=50, hidden_size=32, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=16)
    rng = np.random.default_rng(3)
    for window, room in ((100, 192), (None, 704)):
        config = cq.Config(**LLAMA | sizes | dict(max_positions=700, window=window))
        weights = {name: rng.normal(0, 0.1, shape).astype(np.float32) for name, shape in config.shapes().items()}
        model = cq.Transformer(config, weights)
        ids = rng.integers(0, 50, 640)
        _, most = stepped(model, ids, 3)
        assert room - 64 < most / (32 * 4) <= room


# --- strategies -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_under_every_strategy(loaded, tmp_path, name, strategy):
    _, model = loaded(name)
    chosen = STRATEGIES[strategy]
    if isinstance(chosen, cq.QAT) and name == "phi3":
        with pytest.raises(cq.UnsupportedError, match="longrope"):
            cq.quantize(model, chosen, ragged())
    else:
        survives(model, chosen, tmp_path, cq.Transformer.logits, longest=61)  # beyond every window


def test_coverage_counts_what_a_window_shows(loaded):
    _, model = loaded("mistral")
    pairs = {row.name: row.multiply_adds for row in model.coverage(100)}["layers.0.attention.scores"]
    assert pairs == 2 * 40 * sum(min(i + 1, 20) for i in range(100))


# --- what files say ---------------------------------------------------------------------------------------------------


def test_an_encoder_of_gemma3_sees_half_a_window_on_either_side(tmp_path):
    config = Gemma3TextConfig(**_gemma(SMALL), sliding_window_pattern=2, use_bidirectional_attention=True)
    reference, model = saved(tmp_path, Gemma3TextModel, config)
    assert (model.config.causal, model.config.window) == (False, 11)
    close(model.forward(ragged()), outputs(reference, ragged(), "last_hidden_state"))


def test_a_sliding_window_that_is_not_used_counts_for_nothing():
    config = Qwen2Config(**SMALL, use_sliding_window=False, sliding_window=20).to_dict() | dict(sliding_window=20)
    assert parse_config(config, "x")[0].window is None


@pytest.mark.parametrize(
    "family, change, error, words",
    [
        ("gemma2", dict(layer_types=["full_attention"]), cq.FormatError, "layer_types"),
        ("gemma2", dict(layer_types=["chunked_attention"] * 3), cq.UnsupportedError, "layer_types"),
        ("mistral", dict(sliding_window=0), cq.FormatError, "sliding_window"),
        ("smollm3", dict(no_rope_layers=[2, 1, 0]), cq.FormatError, "no_rope_layers"),
        ("granite", dict(residual_multiplier=-1), cq.FormatError, "residual_multiplier"),
        ("gpt_neox", dict(rotary_pct=3.0, rope_parameters=None), cq.UnsupportedError, "partial_rotary_factor"),
        ("olmo2", dict(sliding_window=5), cq.UnsupportedError, "sliding_window"),
        ("smollm3", dict(num_hidden_layers=10**9, no_rope_layers=None), cq.FormatError, "num_hidden_layers"),
        ("granite", dict(partial_rotary_factor=0.5), cq.UnsupportedError, "partial_rotary_factor"),
    ],
)
def test_what_makes_no_sense_is_named(family, change, error, words):
    with pytest.raises(error, match=words):
        parse_config(DECODERS[family][1].to_dict() | change, "x")
