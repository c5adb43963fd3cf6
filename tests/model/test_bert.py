"""BERT-type encoders against transformers, on small random models of awkward sizes; pooling and packing."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

import cq
from cq.model import batch
from cq.model.deferred import read

TOLERANCE = 1e-4  # of hidden states, which are of the order of 1
LENGTHS = (7, 1, 33, 2, 16, 17)
SHAPES = {  # hidden, heads, intermediate: nothing a multiple of 16, then of 4, then all of both, then one wide head
    "odd": dict(hidden_size=40, num_attention_heads=2, intermediate_size=37),
    "uneven": dict(
        hidden_size=27, num_attention_heads=3, intermediate_size=50, hidden_act="gelu_new", type_vocab_size=1
    ),
    "even": dict(hidden_size=64, num_attention_heads=4, intermediate_size=128, hidden_act="relu", layer_norm_eps=1e-5),
    "wide": dict(hidden_size=72, num_attention_heads=1, intermediate_size=19, hidden_act="silu", num_hidden_layers=1),
}


def saved(folder, **sizes):
    """A random BertModel, saved to `folder`, and what cq loads from there."""
    torch.manual_seed(11)
    reference = BertModel(
        BertConfig(**dict(vocab_size=53, num_hidden_layers=3, max_position_embeddings=33) | sizes)
    ).eval()
    for name, parameter in reference.named_parameters():
        torch.nn.init.normal_(parameter, float(name.endswith("LayerNorm.weight")), 0.25)
    reference.save_pretrained(folder)
    return reference, cq.load(folder)


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("odd"), **SHAPES["odd"])


def ragged(lengths=LENGTHS, vocab=53):
    rng = np.random.default_rng(5)
    return [rng.integers(0, vocab, n) for n in lengths]


def hidden_of(reference, tokens) -> list[np.ndarray]:
    with torch.no_grad():
        return [reference(torch.tensor(ids)[None]).last_hidden_state[0].numpy() for ids in tokens]


@pytest.mark.parametrize("sizes", SHAPES.values(), ids=SHAPES)
def test_hidden_states_are_those_of_transformers(tmp_path, sizes):
    reference, model = saved(tmp_path, **sizes)
    for ours, theirs in zip(model.forward(ragged()), hidden_of(reference, ragged()), strict=True):
        assert ours.dtype == np.float32 and ours.shape == theirs.shape
        assert np.abs(ours - theirs).max() < TOLERANCE


def test_padding_in_transformers_changes_nothing_that_cq_leaves_out(odd):
    """One padded batch there, one packed batch here."""
    reference, model = odd
    tokens = ragged((5, 12, 9))
    ids, mask = np.zeros((3, 12), np.int64), np.zeros((3, 12), np.int64)
    for row, sequence in enumerate(tokens):
        ids[row, : len(sequence)], mask[row, : len(sequence)] = sequence, 1
    with torch.no_grad():
        padded = reference(torch.tensor(ids), attention_mask=torch.tensor(mask)).last_hidden_state.numpy()
    for row, ours in enumerate(model.forward(tokens)):
        assert np.abs(ours - padded[row, : len(ours)]).max() < TOLERANCE


def test_a_rectangle_is_a_list_of_its_rows(odd):
    tokens = np.random.default_rng(0).integers(0, 53, (4, 9))
    for a, b in zip(odd[1].forward(tokens), odd[1].forward(list(tokens)), strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize("kind", [np.int32, np.uint8, np.int64, np.uint64, list, tuple])
def test_ids_come_in_any_integer_form(odd, kind):
    tokens = ragged()
    given = [kind(ids.tolist()) if kind in (list, tuple) else ids.astype(kind) for ids in tokens]
    for a, b in zip(odd[1].forward(given), odd[1].forward(tokens), strict=True):
        assert np.array_equal(a, b)


def test_float32_does_not_depend_on_the_batch_either(odd):
    model, tokens = odd[1], ragged()
    for ids, packed in zip(tokens, model.forward(tokens), strict=True):
        assert np.array_equal(model.forward([ids])[0], packed)


@pytest.mark.parametrize(
    "strategy",
    [
        cq.WeightOnly(),
        cq.WeightOnly(cq.Scheme.textbook()),
        cq.Dynamic(),
        cq.Static(),
        cq.Static(cq.Scheme.textbook()),
        cq.Static(residual="int8"),
        cq.Dynamic(cq.Scheme(attention="float32")),
    ],
    ids=lambda s: f"{s.name}-{s.scheme.bias}-{s.scheme.attention}-{getattr(s, 'residual', '')}",
)
def test_int8_does_not_depend_on_the_batch_at_all(odd, strategy):
    tokens = ragged()
    model = cq.quantize(odd[1], strategy, tokens if strategy.name == "static" else None)
    for ids, packed in zip(tokens, model.forward(tokens), strict=True):
        assert np.array_equal(model.forward([ids])[0], packed)
    assert np.array_equal(model.embed(tokens, batch_size=1), model.embed(tokens, batch_size=4))


@pytest.mark.parametrize("limit", [1, 33, 40])
def test_large_calls_go_through_in_parts(odd, monkeypatch, limit):
    model, tokens = cq.quantize(odd[1], cq.Dynamic()), ragged()
    whole = model.forward(tokens)
    monkeypatch.setattr(batch, "MAX_TOKENS", limit)
    for a, b in zip(model.forward(tokens), whole, strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("pooling", ["mean", "cls", "max", "mean_sqrt_len", "last"])
def test_pooling(odd, pooling, normalize):
    model, tokens = odd[1], ragged()
    hidden = model.forward(tokens)
    expected = np.stack(
        [
            {
                "mean": h.mean(0),
                "cls": h[0],
                "max": h.max(0),
                "mean_sqrt_len": h.sum(0) / np.sqrt(len(h)),
                "last": h[-1],
            }[pooling]
            for h in hidden
        ]
    )
    if normalize:
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    pooled = with_config(model, pooling=pooling, normalize=normalize)
    assert pooled.embed(tokens).dtype == np.float32
    np.testing.assert_allclose(pooled.embed(tokens), expected, rtol=1e-4, atol=1e-5)


def with_config(model, **changes):
    """The same weights under another configuration."""
    weights = {
        f"{name}.{leaf}": getattr(part, leaf)
        for name, part in [*model.linears(), *model.norms()]
        for leaf in ("weight", "bias")
        if getattr(part, leaf) is not None
    }
    weights |= {
        "embed.word": read(model.embedding.source),
        "embed.position": model.embedding.position,
        "embed.type": model.embedding.type,
    }
    return cq.Transformer(replace(model.config, **changes), weights, model.tokenizer)


def test_no_texts_give_no_rows(odd):
    assert odd[1].embed([]).shape == (0, 40) and odd[1].forward([]) == []


def test_what_an_encoder_cannot_do(odd):
    with pytest.raises(cq.UnsupportedError, match="no head that reads every token"):
        odd[1].logits(ragged())
    with pytest.raises(cq.UnsupportedError, match="pooling"):
        with_config(odd[1], pooling=None).embed(ragged())
    with pytest.raises(cq.CqError, match="without a tokenizer"):
        odd[1].embed(["a text"])


@pytest.mark.parametrize(
    "tokens, message",
    [
        ("some text", "a text"),
        (["some text"], r"tokens\[0\]"),
        (3, "int"),
        (None, "NoneType"),
        ([[]], "empty"),
        ([3, 4], r"tokens\[0\]"),
        (np.arange(4), "shape"),
        (np.zeros((2, 0), int), "empty"),
        ([[1.0, 2.0]], "float64"),
        ([[True]], "bool"),
        ([[-1]], "-1"),
        ([[1, 53]], "53 at position 1"),
        ([[1], [2**40]], r"tokens\[1\]"),
        ([[2**64]], "object"),
        ([[1, [2]]], "not a 1-D"),
        ([np.zeros(34, int)], "34 tokens"),
        ([[np.nan]], "float64"),
        ({"ids": [1]}, "a mapping must have 'input_ids'"),
        ([["a"]], "U1"),
        ([None], "object"),
    ],
)
def test_bad_tokens_are_named(odd, tokens, message):
    with pytest.raises(cq.CqError, match=message):
        odd[1].forward(tokens)


@pytest.mark.parametrize("batch_size", [0, -1, 2.0, True, None, "4"])
def test_bad_batch_sizes(odd, batch_size):
    with pytest.raises(cq.CqError, match="batch_size"):
        odd[1].embed(ragged(), batch_size=batch_size)


def test_inputs_stay_and_outputs_are_new(odd):
    model, tokens = odd[1], ragged()
    before = [ids.copy() for ids in tokens]
    first = model.forward(tokens)
    first[0][:] = 7
    assert all(map(np.array_equal, tokens, before)) and not np.shares_memory(first[1], first[2])
    assert not np.array_equal(model.forward(tokens)[0], first[0])
