"""rotate: the same logits from weights without outliers, which int8 then holds better."""

from itertools import product

import numpy as np
import pytest
import torch
import transformers

import cq
from cq.prepare.rotate import _Rotation as Rotation

TOKENS = [np.arange(9, dtype=np.int32), np.array([5, 1], np.int32)]
SIZES = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 60,
    "head_dim": 12,
}
FAMILIES = {
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM, {"attention_bias": True, "mlp_bias": True}),
    "tied llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM, {"tie_word_embeddings": True}),
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM, {}),
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM, {}),
}


def saved(folder, family: str):
    config, kind, more = FAMILIES[family]
    torch.manual_seed(0)
    model = kind(config(**SIZES | more))
    with torch.no_grad():
        for name, value in model.named_parameters():  # norms of ones and biases of zeros would hide what is not folded
            value.copy_(torch.randn_like(value) * 0.1 + ("norm" in name))
    model.save_pretrained(folder)
    return folder


def with_heads_of(dim: int, family: str, folder) -> cq.Transformer:
    config, kind, more = FAMILIES[family]
    torch.manual_seed(0)
    kind(config(**SIZES | more | {"head_dim": dim})).save_pretrained(folder)
    return cq.load(folder)


@pytest.fixture(scope="module", params=FAMILIES)
def model(request, tmp_path_factory):
    return cq.load(saved(tmp_path_factory.mktemp("model"), request.param))


def test_logits_stay(model):
    turned = cq.rotate(model)
    for ours, theirs in zip(turned.logits(TOKENS), model.logits(TOKENS)):
        np.testing.assert_allclose(ours, theirs, atol=2e-5 * np.abs(theirs).max())
    assert turned.config.tied is False and turned.strategy is None
    assert np.abs(turned.forward(TOKENS)[0] - model.forward(TOKENS)[0]).max() > 0.1


@pytest.mark.parametrize("size", [1, 2, 3, 8, 12, 40, 45, 64, 576])
def test_rotations_are_orthogonal_and_spread(size):
    turn = Rotation(size)(np.eye(size, dtype=np.float32)).astype(np.float64)
    np.testing.assert_allclose(turn @ turn.T, np.eye(size), atol=1e-6)
    assert np.abs(turn).max() <= np.sqrt(2 / size) + 1e-6


def test_rotations_are_the_product_of_signs_cosines_and_hadamard():
    """12 features: 4 of a Hadamard matrix by 3 of a cosine transform, as matrices."""
    hadamard = np.array([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]) / 2
    row, column = np.ogrid[:3, :3]
    cosines = np.cos(np.pi * row * (2 * column + 1) / 6) * np.sqrt(np.where(row, 2, 1) / 3)
    signs = np.where(np.random.default_rng(0).random(12) < 0.5, -1, 1)
    x = np.random.default_rng(1).standard_normal((5, 12), np.float32)
    np.testing.assert_allclose(Rotation(12)(x), (x * signs) @ np.kron(hadamard, cosines), atol=1e-6)


def test_outliers_cost_less(tmp_path):
    """A feature of the residual stream is a hundred times the others, as in real decoders."""
    model = cq.load(saved(tmp_path, "llama"))
    weights = {name: np.array(value) for name, value in model.weights().items()}
    weights["embed.word"][:, 7] *= 100
    model = cq.Transformer(model.config, weights)
    exact = model.logits(TOKENS)[0]
    errors = [
        np.abs(cq.quantize(m, strategy, given).logits(TOKENS)[0] - exact).mean()
        for m in (model, cq.rotate(model))
        for strategy, given in ((cq.Dynamic(), None), (cq.Static(smooth=False), [TOKENS]))
    ]
    assert errors[2] < 0.8 * errors[0] and errors[3] < 0.6 * errors[1], errors


def test_everything_takes_a_rotated_model(model, tmp_path):
    turned = cq.rotate(model)
    for strategy in (
        cq.WeightOnly(),
        cq.Dynamic(),
        cq.Static(),
        cq.Mixed([("*.down", cq.Dynamic()), ("*", cq.Static())]),
    ):
        q = cq.quantize(turned, strategy, [TOKENS] if "Static" in repr(strategy) else None)
        cq.save(q, tmp_path / "q.safetensors")
        assert cq.load(tmp_path / "q.safetensors").logits(TOKENS)[0].tobytes() == q.logits(TOKENS)[0].tobytes()


def test_what_cannot_be_turned_is_refused(tiny_encoder, model):
    with pytest.raises(cq.UnsupportedError, match="bert models do not go through a rotation"):
        cq.rotate(cq.load(tiny_encoder))
    with pytest.raises(cq.CqError, match="already quantized"):
        cq.rotate(cq.quantize(model, cq.Dynamic()))
    with pytest.raises(cq.CqError, match="need a cq.Transformer"):
        cq.rotate("model")


def test_online_logits_stay(model):
    """64 hidden features take one block; heads of 12 features take none."""
    turned, plain = cq.rotate(model, online=True), cq.rotate(model)
    assert turned.config.hadamard == 64 and turned.config.head_hadamard is None
    assert (plain.config.hadamard, plain.config.head_hadamard) == (None, None)
    for ours, theirs in zip(turned.logits(TOKENS), model.logits(TOKENS)):
        np.testing.assert_allclose(ours, theirs, atol=2e-5 * np.abs(theirs).max())
    again = cq.rotate(turned, online=True)
    assert again.config.hadamard == 64
    np.testing.assert_allclose(again.logits(TOKENS)[0], model.logits(TOKENS)[0], atol=4e-5 * np.abs(theirs).max())


def test_online_spreads_hidden_outliers(tmp_path):
    """A hidden feature is hundreds of times the others, as of real decoders."""
    model = cq.load(saved(tmp_path, "llama"))
    weights = {name: np.array(value) for name, value in model.weights().items()}
    for i in range(2):
        weights[f"layers.{i}.ffn.up.weight"][5] *= 300
        weights[f"layers.{i}.ffn.up.bias"][5] *= 300
        weights[f"layers.{i}.ffn.down.weight"][:, 5] /= 300
    model = cq.Transformer(model.config, weights)
    exact = model.logits(TOKENS)[0]
    for strategy, given in ((cq.Dynamic(), None), (cq.Static(smooth=False), [TOKENS])):
        errors = [
            np.abs(cq.quantize(cq.rotate(model, online=online), strategy, given).logits(TOKENS)[0] - exact).mean()
            for online in (False, True)
        ]
        assert errors[1] < 0.9 * errors[0], errors


@pytest.mark.parametrize("strategy", [None, cq.WeightOnly(), cq.Dynamic(), cq.Static(), cq.Static(stretch=True)])
def test_online_is_saved_and_written_token_by_token(model, tmp_path, strategy):
    turned = cq.rotate(model, online=True)
    if strategy is not None:
        turned = cq.quantize(turned, strategy, [TOKENS] if isinstance(strategy, cq.Static) else None)
    cq.save(turned, tmp_path / "q.safetensors")
    back = cq.load(tmp_path / "q.safetensors")
    assert back.config == turned.config
    ids, whole = TOKENS[0], turned.logits(TOKENS)
    for a, b in zip(back.logits(TOKENS), whole):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(back.logits([ids])[0], whole[0])
    text = back.generate(ids, max_new_tokens=5)
    for i, token in enumerate(text):
        assert token == turned.logits([np.array([*ids, *text[:i]], np.int32)])[0][-1].argmax()


def test_online_needs_gates_of_even_widths(tmp_path):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SIZES | {"intermediate_size": 40})
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    model = cq.load(tmp_path)
    assert cq.rotate(model, online=True).config.hadamard is None  # 40 = 8 * 5
    with pytest.raises(cq.CqError, match="online: need True or False, got 1"):
        cq.rotate(model, online=1)
    sizes = model.config.to_dict() | {"intermediate_size": 96, "head_dim": 48}
    for name, block in product(("hadamard", "head_hadamard"), (8, 24, 32.0, "64", 128)):
        with pytest.raises(cq.FormatError, match=f"config: {name}"):
            cq.Config(**sizes | {name: block})
    for name, change in (("hadamard", {"gated": False}), ("head_hadamard", {"rope_theta": None})):
        with pytest.raises(cq.FormatError, match=f"config: {name} must be .* beside"):
            cq.Config(**sizes | {name: 16} | change)


@pytest.mark.parametrize("kind", ["float32", "int8"])
@pytest.mark.parametrize("family", ["tied llama", "qwen3"])
def test_online_turns_queries_and_keys(tmp_path, family, kind):
    """Of heads of 48 features, three blocks each; the same in a whole pass and with a cache of either kind."""
    model = with_heads_of(48, family, tmp_path)
    turned = cq.rotate(model, online=True)
    assert turned.config.head_hadamard == 16
    for ours, theirs in zip(turned.logits(TOKENS), model.logits(TOKENS)):
        np.testing.assert_allclose(ours, theirs, atol=2e-5 * np.abs(theirs).max())
    if kind == "int8":
        turned = cq.quantize(turned, cq.Dynamic())
    ids = TOKENS[0]
    text = turned.generate(ids, max_new_tokens=5)
    for i, token in enumerate(text):
        assert token == turned.logits([np.array([*ids, *text[:i]], np.int32)])[0][-1].argmax()


def test_online_spreads_outliers_of_keys(tmp_path):
    """Two features of every key are a hundred times the others, and the queries' as much smaller."""
    model = with_heads_of(16, "llama", tmp_path)
    weights = {name: np.array(value) for name, value in model.weights().items()}
    for i in range(2):
        for part, factor in (("key", 100.0), ("query", 0.01)):
            for kind in ("weight", "bias"):
                array = weights[f"layers.{i}.attention.{part}.{kind}"]
                array.reshape(-1, 16, array.size // len(array))[:, [3, 11]] *= factor
                array *= 8 if part == "query" else 1  # scores that matter
    model = cq.Transformer(model.config, weights)
    exact, turned = model.logits(TOKENS)[0], [cq.rotate(model, online=online) for online in (False, True)]
    for strategy, given in ((cq.Dynamic(), None), (cq.Static(smooth=False), [TOKENS])):
        errors = [np.abs(cq.quantize(m, strategy, given).logits(TOKENS)[0] - exact).mean() for m in turned]
        assert errors[1] < 0.9 * errors[0], errors
