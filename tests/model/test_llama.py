"""Llama-type decoders against transformers, on small random models of awkward sizes; causality and packing."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

import cq
from cq.model.attention import Rotary

TOLERANCE = 1e-4  # of hidden states and logits, which are of the order of 1
LENGTHS = (7, 1, 60, 2, 16, 17)
SHAPES = {
    "grouped": dict(
        hidden_size=40,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=20,
        intermediate_size=37,
        tie_word_embeddings=False,
    ),
    "tied": dict(
        hidden_size=36,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=50,
        tie_word_embeddings=True,
        rope_theta=5e5,
    ),
    "one key": dict(
        hidden_size=24,
        num_attention_heads=3,
        num_key_value_heads=1,
        head_dim=16,
        intermediate_size=64,
        tie_word_embeddings=False,
        hidden_act="gelu_pytorch_tanh",
    ),
    "biased": dict(
        hidden_size=27,
        num_attention_heads=3,
        num_key_value_heads=3,
        head_dim=2,
        intermediate_size=33,
        tie_word_embeddings=True,
        attention_bias=True,
        mlp_bias=True,
    ),
    "attention biased": dict(
        hidden_size=64,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=128,
        tie_word_embeddings=False,
        attention_bias=True,
        rms_norm_eps=1e-2,
    ),
}
STRATEGIES = [
    cq.WeightOnly(),
    cq.WeightOnly(cq.Scheme.textbook()),
    cq.Dynamic(),
    cq.Static(),
    cq.Static(cq.Scheme.textbook()),
    cq.Static(residual="int8"),
    cq.Dynamic(cq.Scheme(attention="float32")),
]


def saved(folder, kind=LlamaForCausalLM, **sizes):
    """A random Llama, saved to `folder`, and what cq loads from there."""
    torch.manual_seed(12)
    reference = kind(
        LlamaConfig(**dict(vocab_size=61, num_hidden_layers=3, max_position_embeddings=600) | sizes)
    ).eval()
    for name, parameter in reference.named_parameters():
        torch.nn.init.normal_(parameter, float("norm" in name), 0.25)
    reference.save_pretrained(folder)
    return reference, cq.load(folder)


@pytest.fixture(scope="module")
def grouped(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("grouped"), **SHAPES["grouped"])


def ragged(lengths=LENGTHS):
    rng = np.random.default_rng(6)
    return [rng.integers(0, 61, n) for n in lengths]


def close(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == np.float32 and a.shape == b.shape
        assert np.abs(a - b).max() < TOLERANCE


def outputs(reference, tokens):
    """Hidden states after the last norm, and logits."""
    with torch.no_grad():
        results = [reference(torch.tensor(ids)[None], output_hidden_states=True) for ids in tokens]
    return [r.hidden_states[-1][0].numpy() for r in results], [r.logits[0].numpy() for r in results]


@pytest.mark.parametrize("sizes", SHAPES.values(), ids=SHAPES)
def test_hidden_states_and_logits_are_those_of_transformers(tmp_path, sizes):
    reference, model = saved(tmp_path, **sizes)
    hidden, logits = outputs(reference, ragged())
    close(model.forward(ragged()), hidden)
    close(model.logits(ragged()), logits)
    assert model.config.tied == sizes["tie_word_embeddings"]
    assert (model.head.source is model.embedding.source) == model.config.tied


def test_long_sequences(grouped):
    """Beyond what rotary tables and attention blocks hold at first."""
    reference, model = grouped
    tokens = ragged((300, 3, 600))
    close(model.logits(tokens), outputs(reference, tokens)[1])


def test_a_body_without_a_head(tmp_path):
    reference, model = saved(tmp_path, LlamaModel, **SHAPES["tied"])
    with torch.no_grad():
        close(
            model.forward(ragged()),
            [reference(torch.tensor(ids)[None]).last_hidden_state[0].numpy() for ids in ragged()],
        )
    assert model.head is None
    with pytest.raises(cq.UnsupportedError, match="no head that reads every token"):
        model.logits(ragged())


def test_float32_does_not_depend_on_the_batch_either(grouped):
    model, tokens = grouped[1], ragged()
    for ids, packed in zip(tokens, model.logits(tokens), strict=True):
        assert np.array_equal(model.logits([ids])[0], packed)


@pytest.mark.parametrize(
    "strategy", STRATEGIES, ids=lambda s: f"{s.name}-{s.scheme.bias}-{s.scheme.attention}-{getattr(s, 'residual', '')}"
)
def test_int8_depends_neither_on_the_batch_nor_on_later_tokens(grouped, strategy):
    tokens = ragged()
    model = cq.quantize(grouped[1], strategy, tokens if strategy.name == "static" else None)
    for ids, packed, hidden in zip(tokens, model.logits(tokens), model.forward(tokens), strict=True):
        assert np.array_equal(model.logits([ids])[0], packed)
        assert np.array_equal(model.forward([ids])[0], hidden)
        assert np.array_equal(model.logits([ids[:5]])[0], packed[:5])


def test_dynamic_per_tensor_depends_on_the_call_and_on_nothing_else(grouped):
    """One range for all tokens of a call is what the textbook scheme means; so here a neighbour shows."""
    model, tokens = cq.quantize(grouped[1], cq.Dynamic(cq.Scheme.textbook())), ragged()
    first, again = model.logits(tokens), model.logits(tokens)
    assert all(map(np.array_equal, first, again))
    assert not np.array_equal(model.logits(tokens[:1])[0], first[0])


def test_int8_attention_refuses_what_int32_cannot_sum(grouped):
    config = grouped[1].config.to_dict() | dict(
        hidden_size=4, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=2, intermediate_size=2, max_positions=40_000
    )
    model = random_like(cq.Config(**config))
    for quantized in (cq.quantize(model, cq.Static(), ragged()), cq.quantize(model, cq.Dynamic())):
        with pytest.raises(cq.UnsupportedError, match="33,025"):
            quantized.forward([[1] * 5, [1] * 33_026])


def test_pooled_decoders_cut_texts(byte_tokenizer, grouped):
    """With max_length 5 only the first five bytes count; generation and logits see them all."""
    base = grouped[1].config.to_dict() | dict(vocab_size=256, pooling="last", max_length=5)
    model = random_like(cq.Config(**base), byte_tokenizer)
    assert np.array_equal(model.embed(["abcdefgh"]), model.embed(["abcde"]))
    assert len(model.tokenize("abcdefgh")) == 5
    free = random_like(cq.Config(**base | dict(pooling=None)), byte_tokenizer)
    assert len(free.tokenize("abcdefgh")) == 8


def random_like(config, tokenizer=None):
    rng = np.random.default_rng(1)
    weights = {name: rng.standard_normal(shape, np.float32) / 4 for name, shape in config.shapes().items()}
    return cq.Transformer(config, weights, tokenizer)


def test_texts_are_never_longer_than_the_positions(byte_tokenizer, grouped):
    config = cq.Config(
        **grouped[1].config.to_dict() | dict(vocab_size=256, pooling="mean", max_positions=6, max_length=512)
    )
    model = random_like(config, byte_tokenizer)
    assert np.array_equal(model.embed(["abcdefgh"]), model.embed(["abcdef"]))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda w: w.pop("embed.word"), "embed.word"),
        (lambda w: w.pop("layers.1.ffn.up.weight"), "layers.1.ffn.up.weight"),
        (lambda w: w.update({"final_norm.weight": np.ones(3, np.float32)}), "final_norm.weight"),
        (lambda w: w.update({"embed.word": np.ones((61, 40))}), "float64"),
        (lambda w: w.update({"layers.3.ffn.up.weight": np.ones((37, 40), np.float32)}), "layers.3"),
        (lambda w: w.update({"head.bias": np.ones(5, np.float32)}), "head.bias"),
        (lambda w: w.update({"layers.0.ffn.up.bias": [0.0] * 37}), "layers.0.ffn.up.bias"),
    ],
)
def test_weights_that_do_not_fit_the_configuration_are_named(grouped, change, message):
    weights = {name: np.ones(shape, np.float32) for name, shape in grouped[1].config.shapes().items()}
    cq.Transformer(grouped[1].config, weights)
    change(weights)
    with pytest.raises(cq.CqError, match=message):
        cq.Transformer(grouped[1].config, weights)


def test_rotary_tables_grow_while_other_threads_grow_them():
    """A thread must never get a shorter table than it asked for: the kernel reads as far as it was told."""

    class Crowded(Rotary):
        def __setattr__(self, name, value):
            """Whatever is stored, another thread replaces at once by its own short tables."""
            super().__setattr__(name, tuple(table[:2] for table in value) if isinstance(value, tuple) else value)

    for length in (300, 5000, 300):
        assert [table.shape for table in Crowded(8, 10000.0).tables(length)] == [(length, 4)] * 2


@pytest.mark.parametrize("dim, theta", [(20, 1e4), (64, 1e5), (128, 5e5)])
def test_rotary_tables_are_those_of_transformers(dim, theta):
    config = LlamaConfig(
        hidden_size=dim,
        num_attention_heads=1,
        head_dim=dim,
        max_position_embeddings=8192,
        rope_parameters=dict(rope_type="default", rope_theta=theta),
    )
    cosine, sine = LlamaRotaryEmbedding(config)(torch.zeros(1), torch.arange(8192)[None])
    for ours, theirs in zip(Rotary(dim, theta).tables(8192), (cosine, sine)):
        np.testing.assert_allclose(ours, theirs[0, :, : dim // 2].numpy(), atol=2e-7)
