"""Losses and their gradients against torch's, and pooling as the model pools."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cq import Transformer
from cq.train import losses, passes

LENGTHS = (4, 1, 6)


def leaves(width: int, seed: int = 0) -> tuple[list[np.ndarray], list[torch.Tensor]]:
    rng = np.random.default_rng(seed)
    arrays = [rng.normal(size=(n, width)) for n in LENGTHS]
    return arrays, [torch.tensor(array, requires_grad=True) for array in arrays]


def check(ours, theirs, leaves):
    (loss, gradients), theirs = ours, theirs
    theirs.backward()
    assert loss == pytest.approx(theirs.item(), rel=1e-9)
    for gradient, leaf in zip(gradients, leaves, strict=True):
        np.testing.assert_allclose(gradient, leaf.grad, rtol=1e-9, atol=1e-12)


def test_next_token():
    arrays, tensors = leaves(9)
    ids = [np.random.default_rng(1).integers(0, 9, n) for n in LENGTHS]
    flat = torch.cat([rows[:-1] for rows in tensors])
    check(
        (losses.next_token(arrays, ids), arrays),
        F.cross_entropy(flat, torch.tensor(np.concatenate([s[1:] for s in ids]))),
        tensors,
    )


def test_next_token_of_single_tokens_is_nothing():
    logits = np.ones((1, 5))
    assert losses.next_token([logits], [np.array([3])]) == 0 and not logits.any()


def test_logit_distillation():
    (arrays, tensors), (targets, _) = leaves(9), leaves(9, 1)
    theirs = F.kl_div(
        torch.cat(tensors).log_softmax(1),
        torch.tensor(np.concatenate(targets)).log_softmax(1),
        reduction="batchmean",
        log_target=True,
    )
    check((losses.logit_distillation(arrays, targets), arrays), theirs, tensors)
    assert losses.logit_distillation([rows.copy() for rows in targets], targets) == pytest.approx(0, abs=1e-12)


def test_hidden_distillation():
    (arrays, tensors), (targets, _) = leaves(9), leaves(9, 1)
    wanted = torch.tensor(np.concatenate(targets))
    check(
        losses.hidden_distillation(arrays, targets),
        ((torch.cat(tensors) - wanted) ** 2).sum() / (wanted**2).sum(),
        tensors,
    )


@pytest.mark.parametrize("pooling", ["mean", "cls", "max", "mean_sqrt_len", "last"])
def test_embeddings(small, pooling):
    config, weights = small("bert", pooling=pooling)
    (arrays, tensors), (targets, _) = leaves(12), leaves(12, 1)
    pooled = losses.pool(arrays, config)
    kind = {
        "mean": lambda h: h.mean(0),
        "cls": lambda h: h[0],
        "max": lambda h: h.amax(0),
        "last": lambda h: h[-1],
        "mean_sqrt_len": lambda h: h.sum(0) / len(h) ** 0.5,
    }[pooling]
    theirs = torch.stack([kind(h) for h in tensors])
    wanted = losses.pool(targets, config)
    loss, gradient = losses.embedding_distillation(pooled, wanted)
    check(
        (loss, losses.pool_back(gradient, arrays, config)),
        (1 - F.cosine_similarity(theirs, torch.tensor(wanted))).mean(),
        tensors,
    )
    model = Transformer(config, weights)
    hidden = model.forward([np.arange(5), np.arange(3)])
    pooled = losses.pool(hidden, config)
    pooled /= np.linalg.norm(pooled, axis=1, keepdims=True)
    np.testing.assert_allclose(pooled, model.embed([np.arange(5), np.arange(3)]), atol=1e-6)


def test_pair_similarity():
    rng = np.random.default_rng(0)
    x, scores = rng.normal(size=(8, 5)), rng.uniform(-1, 1, 4)
    leaf = torch.tensor(x, requires_grad=True)
    theirs = ((F.cosine_similarity(leaf[::2], leaf[1::2]) - torch.tensor(scores)) ** 2).mean()
    loss, gradient = losses.pair_similarity(x, scores)
    check((loss, [gradient]), theirs, [leaf])


def test_embeddings_of_zeros_have_no_direction():
    loss, gradient = losses.embedding_distillation(np.zeros((2, 4), np.float32), np.ones((2, 4), np.float32))
    assert loss == 1 and np.isfinite(gradient).all()


@pytest.mark.parametrize("width", [8, 96, 4097])
def test_rows_worked_on_in_parts_give_the_same_bits(monkeypatch, width):
    rng = np.random.default_rng(0)
    logits, targets = (rng.normal(size=(1100, width)).astype(np.float32) for _ in range(2))
    found = []
    for elements in (1, 1 << 30):
        monkeypatch.setattr(passes, "_PART", elements)
        gradient = logits.copy()
        found.append((losses.logit_distillation([gradient], [targets]), gradient.tobytes()))
    assert found[0] == found[1]
    assert passes.whole_spans(width) * width % 4096 == 0
