"""The younger encoders against transformers, on small random models of odd sizes; each under all strategies and
schemes, and in checkpoints."""

import numpy as np
import pytest
from families import STRATEGIES, close, outputs, ragged, saved, survives
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    AlbertModel,
    ElectraConfig,
    ElectraForSequenceClassification,
    ElectraModel,
    GteConfig,
    GteForSequenceClassification,
    GteModel,
    ModernBertConfig,
    ModernBertModel,
    MPNetConfig,
    MPNetForSequenceClassification,
    MPNetModel,
    NomicBertConfig,
    NomicBertForSequenceClassification,
    NomicBertModel,
    T5Config,
    T5EncoderModel,
)

import cq
from cq.formats.huggingface import read_folder, write_folder
from cq.formats.tensors import read_tensors
from cq.model.rope import frequencies

_SMALL = dict(vocab_size=61, hidden_size=40, num_hidden_layers=2, num_attention_heads=4, intermediate_size=36)
_ODD = _SMALL | dict(hidden_size=42, num_attention_heads=3, intermediate_size=35, hidden_act="relu")
_ONE = _SMALL | dict(vocab_size=67, num_hidden_layers=1, num_attention_heads=5, intermediate_size=50)
_SIX, _LONG = dict(num_hidden_layers=6), dict(max_position_embeddings=190)
_T5 = dict(vocab_size=61, d_model=40, d_kv=10, d_ff=36, num_layers=2, num_heads=4)
_MODERN = dict(
    vocab_size=61,
    hidden_size=40,
    num_attention_heads=4,
    intermediate_size=36,
    max_position_embeddings=190,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
    cls_token_id=1,
    sep_token_id=2,
)
_GATED = dict(feed_forward_proj="gated-gelu")
ENCODERS = {
    "mpnet": (MPNetModel, MPNetConfig(**_SMALL, max_position_embeddings=192)),
    "mpnet odd": (MPNetModel, MPNetConfig(**_ODD, max_position_embeddings=192)),
    "mpnet one": (MPNetModel, MPNetConfig(**_ONE, max_position_embeddings=202, hidden_act="gelu_new")),
    "electra": (ElectraModel, ElectraConfig(**_SMALL, embedding_size=24, max_position_embeddings=190)),
    "electra odd": (ElectraModel, ElectraConfig(**_ODD, embedding_size=17, max_position_embeddings=190)),
    "electra square": (ElectraModel, ElectraConfig(**_ONE, embedding_size=40, max_position_embeddings=190)),
    "albert": (AlbertModel, AlbertConfig(**_SMALL | _SIX, embedding_size=16, max_position_embeddings=190)),
    "albert odd": (AlbertModel, AlbertConfig(**_ODD | _SIX, embedding_size=21, num_hidden_groups=4, **_LONG)),
    "albert square": (AlbertModel, AlbertConfig(**_ONE | dict(hidden_act="relu"), embedding_size=40, **_LONG)),
    "nomic": (NomicBertModel, NomicBertConfig(**_SMALL, **_LONG)),
    "nomic odd": (NomicBertModel, NomicBertConfig(**_ODD | dict(hidden_act="gelu"), **_LONG)),
    "nomic scaled": (
        NomicBertModel,
        NomicBertConfig(**_ONE, rope_parameters=dict(rope_type="linear", rope_theta=500.0, factor=2.0), **_LONG),
    ),
    "gte": (GteModel, GteConfig(**_SMALL, **_LONG)),
    "gte odd": (GteModel, GteConfig(**_ODD, type_vocab_size=0, **_LONG)),
    "gte one": (GteModel, GteConfig(**_ONE, type_vocab_size=2, **_LONG)),
    "t5": (T5EncoderModel, T5Config(**_T5)),
    "t5 odd": (T5EncoderModel, T5Config(**_T5 | dict(d_model=27, d_kv=7, d_ff=31, num_heads=3), **_GATED)),
    "t5 few buckets": (
        T5EncoderModel,
        T5Config(
            **_T5 | dict(d_kv=8, num_layers=3), relative_attention_num_buckets=8, relative_attention_max_distance=20
        ),
    ),
    "modernbert": (ModernBertModel, ModernBertConfig(**_MODERN, num_hidden_layers=5, local_attention=16)),
    "modernbert odd": (
        ModernBertModel,
        ModernBertConfig(
            **_MODERN | dict(hidden_size=42, num_attention_heads=3, intermediate_size=35),
            num_hidden_layers=4,
            local_attention=9,
            layer_types=["sliding_attention", "full_attention", "full_attention", "sliding_attention"],
            attention_bias=True,
            mlp_bias=True,
            norm_bias=True,
        ),
    ),
    "modernbert thetas": (
        ModernBertModel,
        ModernBertConfig(**_MODERN, num_hidden_layers=3, rope_theta=5.0, global_rope_theta=9e3, local_rope_theta=2e2),
    ),
    "modernbert near": (
        ModernBertModel,
        ModernBertConfig(**_MODERN, num_hidden_layers=2, layer_types=["sliding_attention"] * 2, local_attention=128),
    ),
}
CLASSIFIERS = {
    "nomic": (NomicBertForSequenceClassification, NomicBertConfig(**_SMALL, **_LONG)),
    "gte": (GteForSequenceClassification, GteConfig(**_ODD, num_labels=1, **_LONG)),
    "electra": (ElectraForSequenceClassification, ElectraConfig(**_ODD, embedding_size=17, num_labels=1, **_LONG)),
    "albert": (AlbertForSequenceClassification, AlbertConfig(**_ODD, embedding_size=17, **_LONG)),
    "mpnet": (MPNetForSequenceClassification, MPNetConfig(**_ODD, max_position_embeddings=192, num_labels=3)),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_hidden_states_are_those_of_transformers(tmp_path, name):
    reference, model = saved(tmp_path, *ENCODERS[name])
    ours, theirs = model.forward(ragged()), outputs(reference, ragged(), "last_hidden_state")
    close(ours, theirs)
    size = np.sqrt(np.mean([np.square(x).mean() for x in theirs]))
    assert max(np.abs(a - b).max() for a, b in zip(ours, theirs)) < 1e-4 * size
    settings, weights, _ = read_folder(tmp_path)
    write_folder(tmp_path / "again", tmp_path, weights, settings.family)
    close(cq.load(tmp_path / "again").forward(ragged((9,))), outputs(reference, ragged((9,)), "last_hidden_state"))


def test_ntk_stretches_by_a_larger_base():
    """As Alibaba-NLP's class does it; transformers has no such scaling. Theta is multiplied by the factor, and all
    angles are smaller."""
    dim, theta, factor = 10, 5e5, 2.0
    turns, by = frequencies(dim, theta, {"kind": "ntk", "factor": factor})
    wanted = (theta * factor) ** -(np.arange(0, dim, 2) / dim) / factor ** (2 / dim)
    np.testing.assert_allclose(turns, wanted, rtol=1e-6)
    assert by == 1.0


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_scores_of_labels_are_those_of_transformers(tmp_path, name):
    reference, model = saved(tmp_path, *CLASSIFIERS[name])
    close(list(model.classify(ragged())), outputs(reference, ragged(), "logits"))


@pytest.mark.parametrize("strategy", [None, cq.WeightOnly(), cq.Dynamic()])
def test_shared_layers_are_in_memory_and_in_files_once(tmp_path, strategy):
    """Six layers of one group; what training or static scales make different is kept for each layer."""
    _, model = saved(tmp_path / "six", *ENCODERS["albert"])
    one = saved(
        tmp_path / "one", AlbertModel, AlbertConfig(**_SMALL | dict(num_hidden_layers=1), embedding_size=16, **_LONG)
    )[1]
    six, one = (m if strategy is None else cq.quantize(m, strategy) for m in (model, one))
    for found in (six, one):
        cq.save(found, tmp_path / f"{len(found.blocks)}.safetensors")
    again = cq.load(tmp_path / "6.safetensors")
    for found in (six, again):
        found.forward(ragged((9, 3)))
        assert (
            len({id(block.attention) for block in found.blocks}) == len({id(block.ffn) for block in found.blocks}) == 1
        )
        assert found.nbytes < one.nbytes + 5 * 8 * 40 * 4
    tensors = tmp_path / "6.safetensors", tmp_path / "1.safetensors"
    assert len(set(read_tensors(tensors[0])[0])) == len(set(read_tensors(tensors[1])[0])) + 5 * 4  # norms
    assert all(map(np.array_equal, six.forward(ragged()), again.forward(ragged())))


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(
    "name", ["mpnet odd", "electra odd", "albert odd", "nomic odd", "gte odd", "t5 few buckets", "modernbert odd"]
)
def test_every_family_under_every_strategy(tmp_path, name, strategy):
    _, model = saved(tmp_path, *ENCODERS[name])
    survives(model, STRATEGIES[strategy], tmp_path)
