"""JinaBERT against its published description (Günther et al. 2023, arXiv:2310.19923), written in torch: a BERT with
ALiBi on both sides (Press et al. 2022) and a gated feed-forward part. transformers has no class for it."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from families import STRATEGIES, close, ragged, survives
from jina import SIZES, made

import cq
from cq.formats.huggingface import read_folder, write_folder


def slopes(heads: int) -> list[float]:
    """The paper's: powers of 2^(-8 / n) for n heads, a power of two; else those of the next smaller one, and every
    other of the next larger."""
    if math.log2(heads).is_integer():
        return [2 ** (-8 * (i + 1) / heads) for i in range(heads)]
    smaller = 2 ** math.floor(math.log2(heads))
    return slopes(smaller) + slopes(2 * smaller)[0::2][: heads - smaller]


def reference(config: dict, w: dict, ids: np.ndarray) -> np.ndarray:
    n, heads = len(ids), config["num_attention_heads"]
    linear = lambda name, x: F.linear(x, w[name + ".weight"], w.get(name + ".bias"))
    norm = lambda name, x: F.layer_norm(x, x.shape[-1:], w[name + ".weight"], w[name + ".bias"], 1e-12)
    far = (torch.arange(n) - torch.arange(n)[:, None]).abs()
    bias = -torch.tensor(slopes(heads))[:, None, None] * far
    x = w["embeddings.word_embeddings.weight"][torch.tensor(ids)] + w["embeddings.token_type_embeddings.weight"][0]
    x = norm("embeddings.LayerNorm", x)
    for i in range(config["num_hidden_layers"]):
        at = f"encoder.layer.{i}."
        q, k, v = (
            linear(f"{at}attention.self.{part}", x).view(n, heads, -1).transpose(0, 1)
            for part in ("query", "key", "value")
        )
        weights = (q @ k.transpose(1, 2) / math.sqrt(q.shape[-1]) + bias).softmax(-1)
        mixed = (weights @ v).transpose(0, 1).reshape(n, -1)
        x = norm(at + "attention.output.LayerNorm", x + linear(at + "attention.output.dense", mixed))
        gate, up = linear(at + "mlp.gated_layers", x).chunk(2, -1)
        act = F.gelu if config["feed_forward_type"] == "geglu" else F.relu
        x = norm(at + "mlp.layernorm", x + linear(at + "mlp.wo", act(gate) * up))
    return x.numpy()


@pytest.mark.parametrize("name", SIZES)
def test_hidden_states_are_those_of_the_description(tmp_path, name):
    config, tensors = made(tmp_path, name)
    model = cq.load(tmp_path)
    assert model.config.family == "jina-bert" and model.config.position_bias == {"kind": "alibi"}
    close(model.forward(ragged()), [reference(config, tensors, ids) for ids in ragged()])
    settings, weights, _ = read_folder(tmp_path)
    write_folder(tmp_path / "again", tmp_path, weights, settings.family)
    assert np.array_equal(cq.load(tmp_path / "again").forward(ragged((9,)))[0], model.forward(ragged((9,)))[0])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy(tmp_path, strategy):
    made(tmp_path / "model", "three heads")
    survives(cq.load(tmp_path / "model"), STRATEGIES[strategy], tmp_path)


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(feed_forward_type="original"), "feed_forward_type 'original' is not implemented"),
        (dict(emb_pooler="cls"), "emb_pooler 'cls' is not implemented"),
        (dict(position_embedding_type="relative_key"), "position_embedding_type 'relative_key' is not implemented"),
    ],
)
def test_other_kinds_are_refused(tmp_path, change, words):
    config, _ = made(tmp_path, "four heads")
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(cq.UnsupportedError, match=words):
        cq.load(tmp_path)
