"""Exported models compute what cq computes: families, settings, strategies, schemes."""

import numpy as np
import pytest
from exports import STRATEGIES, check, error, quantized

import cq
from cq.model.batch import Sequence
from cq.model.pooling import pool


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_strategies(random_model, exported, sequences, family, name):
    plain, _ = random_model(family)
    tokens = sequences(plain)
    check(exported, plain, quantized(plain, name, tokens), tokens)


def test_token_types(random_model, exported, sequences):
    model, _ = random_model("bert")
    tokens = sequences(model)
    types = [np.arange(len(ids)) % 2 for ids in tokens]
    graph = exported(model)
    assert "token_type_ids" in graph.inputs
    found = graph(tokens, types=types)["last_hidden_state"]
    rows = [{"input_ids": ids, "token_type_ids": kinds} for ids, kinds in zip(tokens, types)]
    assert error([row[: len(ids)] for row, ids in zip(found, tokens)], model.forward(rows)) < 1e-5


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
@pytest.mark.parametrize("mode", ["mean", "cls", "max", "mean_sqrt_len", "last", "weightedmean", ("cls", "max")])
def test_pooling(random_model, exported, sequences, mode, left):
    """With padding on either side; positions that RoBERTa counts by the mask."""
    model, _ = random_model("bert", pooling=mode, position_offset=2)
    tokens = sequences(model)
    found = exported(model)(tokens, left)["sentence_embedding"]
    np.testing.assert_allclose(found, model.embed(tokens), atol=1e-5)


def test_modules_after_pooling(random_model, exported, sequences):
    tail = (
        {"kind": "dense", "features": 24, "activation": "tanh"},
        {"kind": "norm"},
        {"kind": "dense", "features": 20, "activation": "gelu"},
        {"kind": "normalize"},
        {"kind": "dense", "features": 16, "activation": "sigmoid"},
    )
    model, _ = random_model("bert", tail=tail, truncate_dim=11)
    tokens = sequences(model)
    found = exported(model)(tokens)["sentence_embedding"]
    assert found.shape == (3, 11)
    np.testing.assert_allclose(found, model.embed(tokens), atol=1e-5)


@pytest.mark.parametrize("mode", ["mean", "cls", "max", "mean_sqrt_len", "last", "weightedmean"])
def test_a_prompt_that_is_not_pooled(random_model, exported, sequences, mode):
    """A sequence of no other tokens is pooled whole."""
    model, _ = random_model("bert", pooling=mode, include_prompt=False, position_offset=2)
    tokens, graph = sequences(model, (7, 3, 12)), exported(model)
    for left in (False, True):
        found = graph(tokens, left, prompt=3)["sentence_embedding"]
        np.testing.assert_allclose(
            found, model.pooled([pool(rows, (mode,), 3) for rows in model.forward(tokens)]), atol=1e-5
        )


LABELS = dict(labels=("a", "b", "c"), pooling=None, normalize=False)
CLASSIFIERS = {
    "tanh": ("bert", dict(classifier="tanh", **LABELS)),
    "relu": ("bert", dict(classifier="relu", **LABELS)),
    "gelu": ("bert", dict(classifier="gelu", **LABELS)),
    "decoder": ("llama", dict(classifier="linear", lm_head=False, tied=False, **LABELS)),
    "decoder with a token for padding": (
        "llama",
        dict(classifier="linear", lm_head=False, tied=False, pad_token_id=3, **LABELS),
    ),
}


@pytest.mark.parametrize("strategy", ["float32", "dynamic", "static plain"])
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers(random_model, exported, sequences, name, strategy):
    family, changes = CLASSIFIERS[name]
    plain, _ = random_model(family, **changes)
    tokens = sequences(plain)
    model = quantized(plain, strategy, tokens)
    (batch,) = model.batches(tokens)
    own = model._classes(batch)
    found = exported(model)(tokens)["logits"]
    assert error([found], [own]) < (1e-5 if model is plain else error([own], [plain._classes(batch)]))


PLAIN_HEAD = dict(pooling=None, normalize=False)
HEADS = {
    "masked": dict(lm_head=True, tied=True, head_transform="gelu", **PLAIN_HEAD),
    "masked, head of its own": dict(lm_head=True, **PLAIN_HEAD),
    "labels of tokens": dict(token_head="labels", labels=("a", "b", "c"), **PLAIN_HEAD),
    "spans": dict(token_head="spans", **PLAIN_HEAD),
}


@pytest.mark.parametrize("strategy", ["float32", "dynamic", "static plain"])
@pytest.mark.parametrize("name", HEADS)
def test_heads(random_model, exported, sequences, name, strategy):
    model, _ = random_model("bert", **HEADS[name])
    tokens = sequences(model)
    check(exported, model, quantized(model, strategy, tokens), tokens)


VECTORS = dict(
    features=24,
    normalize=True,
    query_length=9,
    document_length=20,
    expansion=dict(strategy="fixed", attend=False, token=None, length=9),
    mean=False,
    skiplist=[],
    skips_queries=False,
)


@pytest.mark.parametrize("strategy", ["float32", "dynamic", "static plain"])
@pytest.mark.parametrize("offset", [0, 2])
def test_late_interaction(random_model, exported, sequences, strategy, offset):
    """A vector for every token; those that fill a query up read tokens, and the mask leaves them out."""
    changes = dict(token_head="vectors", multi_vector=VECTORS, position_offset=offset, **PLAIN_HEAD)
    plain, _ = random_model("bert", **changes)
    tokens = sequences(plain, (9, 9))
    model = quantized(plain, strategy, tokens)
    own = model.logits([Sequence(ids.astype(np.int32), unseen=3) for ids in tokens])
    own = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in own]
    found = exported(model)(tokens, seen=6)["token_embeddings"]
    assert found.shape == (2, 9, 24)
    assert error(list(found), own) < (1e-5 if model is plain else 0.02)


def test_batches_do_not_matter(random_model, exported, sequences):
    """What a sequence gives alone it gives beside a longer one, padded on either side."""
    model, _ = random_model("llama", lm_head=False, tied=False)
    tokens, graph = sequences(model), exported(model)
    for left in (False, True):
        for row, ids in zip(graph.rows(tokens, left=left), tokens):
            np.testing.assert_allclose(row, graph.rows([ids])[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["dynamic", "static", "static symmetric", "static stretched", "static textbook", "mix"]
)
def test_wide_heads(tiny_encoder, exported, sequences, name):
    """Queries, keys and values of wide heads are one product."""
    plain = cq.load(tiny_encoder)
    tokens = sequences(plain)
    check(exported, plain, quantized(plain, name, tokens), tokens)
