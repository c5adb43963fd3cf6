"""DeBERTa-v2 and v3 against transformers, on small random models of odd sizes: hidden states, every head, every
strategy, and what is refused."""

import json

import numpy as np
import pytest
import torch
from families import STRATEGIES, close, outputs, ragged, saved, survives
from safetensors.numpy import load_file, save_file
from transformers import (
    DebertaV2Config,
    DebertaV2ForMaskedLM,
    DebertaV2ForQuestionAnswering,
    DebertaV2ForSequenceClassification,
    DebertaV2ForTokenClassification,
    DebertaV2Model,
    DebertaV2Tokenizer,
)

import cq
from cq.formats.huggingface import read_folder, write_folder

_SMALL = dict(
    vocab_size=61,
    hidden_size=40,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=36,
    max_position_embeddings=190,
    relative_attention=True,
)
_ODD = _SMALL | dict(hidden_size=42, num_attention_heads=3, intermediate_size=35, hidden_act="relu")
_V3 = dict(
    position_buckets=16,
    position_biased_input=False,
    share_att_key=True,
    norm_rel_ebd="layer_norm",
    pos_att_type="p2c|c2p",
)
MODELS = {
    "v3": DebertaV2Config(**_SMALL, **_V3),
    "v3 odd": DebertaV2Config(**_ODD, **_V3 | dict(position_buckets=9, max_relative_positions=40)),
    "layers of its own": DebertaV2Config(**_SMALL, pos_att_type=["c2p", "p2c"], position_buckets=250),
    "keys of every distance": DebertaV2Config(
        **_ODD, pos_att_type=["c2p"], max_relative_positions=50, type_vocab_size=2
    ),
    "v2 with a convolution": DebertaV2Config(
        **_ODD | dict(hidden_act="gelu"), **_V3, conv_kernel_size=3, conv_act="gelu"
    ),
    "a convolution alone": DebertaV2Config(
        **_SMALL | dict(num_hidden_layers=1, relative_attention=False), conv_kernel_size=5, conv_act="relu"
    ),
    "queries alone": DebertaV2Config(
        **_SMALL | dict(num_hidden_layers=1, num_attention_heads=5),
        **_V3 | dict(share_att_key=False, pos_att_type=["p2c"]),
    ),
    "no positions but the table": DebertaV2Config(**_SMALL | dict(relative_attention=False), pos_att_type=["c2p"]),
    "positions that nothing meets": DebertaV2Config(**_SMALL, pos_att_type=None, norm_rel_ebd="layer_norm"),
}
POSITIONED = ["v3", "v3 odd", "layers of its own", "keys of every distance", "queries alone"]
_CODED = {
    "quant_method": "compressed-tensors",
    "quantization_status": "compressed",
    "format": "int-quantized",
    "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 8, "strategy": "channel"}}},
}
_SAID = dict(num_labels=3, id2label={0: "contradiction", 1: "entailment", 2: "neutral"})


def changed(config: DebertaV2Config, **changes) -> DebertaV2Config:
    return DebertaV2Config(**config.to_dict() | changes)


@pytest.mark.parametrize("name", MODELS)
def test_hidden_states_are_those_of_transformers(tmp_path, name):
    """One by one, and beside longer and shorter ones, where transformers pads."""
    reference, model = saved(tmp_path, DebertaV2Model, MODELS[name])
    ours, theirs = model.forward(ragged()), outputs(reference, ragged(), "last_hidden_state")
    close(ours, theirs)
    size = np.sqrt(np.mean([np.square(x).mean() for x in theirs]))
    assert max(np.abs(a - b).max() for a, b in zip(ours, theirs)) < 1e-4 * size
    ids, mask = np.zeros((2, 4, 190), np.int64)
    for row, given in enumerate(ragged()):
        ids[row, : len(given)], mask[row, : len(given)] = given, 1
    with torch.no_grad():
        padded = reference(torch.tensor(ids), torch.tensor(mask))["last_hidden_state"].numpy()
    close(ours, [rows[: len(given)] for rows, given in zip(padded, ragged())])


@pytest.mark.parametrize("name", POSITIONED)
def test_relative_positions_matter(tmp_path, name):
    _, model = saved(tmp_path, DebertaV2Model, MODELS[name])
    weights = model.weights()
    for part in ("keys", "queries"):
        if model.config.position_bias[part]:
            at = f"layers.0.attention.relative_{part}"
            other = cq.Transformer(model.config, weights | {at: np.zeros_like(weights[at])})
            assert np.abs(other.forward(ragged())[2] - model.forward(ragged())[2]).max() > 0.01


@pytest.mark.parametrize("name", ["v3 odd", "keys of every distance"])
@pytest.mark.parametrize("activation", ["gelu", "tanh", "relu"])
def test_scores_of_labels_are_those_of_transformers(tmp_path, name, activation):
    config = changed(MODELS[name], pooler_hidden_act=activation, **_SAID)
    reference, model = saved(tmp_path, DebertaV2ForSequenceClassification, config)
    assert model.config.labels == ("contradiction", "entailment", "neutral")
    close(list(model.classify(ragged())), outputs(reference, ragged(), "logits"))
    quantized = cq.quantize(model, cq.Static(), ragged((7, 12, 30, 25, 3, 18)) * 2)
    assert quantized.classify(ragged()).shape == (4, 3)


def test_scores_of_tokens_are_those_of_transformers(tmp_path):
    for kind, name, said in (
        (DebertaV2ForTokenClassification, "v3", _SAID),
        (DebertaV2ForQuestionAnswering, "v3 odd", {}),
        (DebertaV2ForMaskedLM, "queries alone", {}),
        (DebertaV2ForMaskedLM, "keys of every distance", dict(tie_word_embeddings=False)),
        (DebertaV2ForMaskedLM, "v3 odd", dict(legacy=False)),
    ):
        reference, model = saved(tmp_path, kind, changed(MODELS[name], **said))
        assert model.config.masked_lm == (kind is DebertaV2ForMaskedLM)
        if kind is DebertaV2ForQuestionAnswering:
            starts, ends = (outputs(reference, ragged(), part) for part in ("start_logits", "end_logits"))
            close(model.logits(ragged()), [np.stack(pair, 1) for pair in zip(starts, ends)])
        else:
            close(model.logits(ragged()), outputs(reference, ragged(), "logits"))


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", ["v3 odd", "keys of every distance", "v2 with a convolution"])
def test_every_strategy(tmp_path, name, strategy):
    _, model = saved(tmp_path, DebertaV2Model, MODELS[name])
    survives(model, STRATEGIES[strategy], tmp_path)


def test_coverage_says_that_positions_meet_in_float32(tmp_path):
    _, model = saved(tmp_path, DebertaV2Model, MODELS["v3"])
    rows = {row.name: row for row in cq.quantize(model, cq.Dynamic()).coverage(30)}
    assert rows["layers.1.attention.scores"].runs_in == "dynamic"
    met = rows["layers.1.attention.positions"]
    # keys and queries: 30 tokens' 4 heads of 10 features, with distance 0 and on either side 8 single ones and 3 ranges
    assert met.runs_in == "float32" and met.reason and met.multiply_adds == 2 * 30 * 40 * (1 + 2 * (8 + 3))
    assert rows["layers.1.attention.relative_keys"].reason == "meets queries or keys in float32"


def test_coverage_says_that_a_convolution_is_float32(tmp_path):
    _, model = saved(tmp_path, DebertaV2Model, MODELS["v2 with a convolution"])
    (row,) = [row for row in cq.quantize(model, cq.Dynamic()).coverage(30) if row.name == "convolution"]
    assert row.runs_in == "float32" and row.reason and row.shape == (3 * 42, 42)
    assert row.multiply_adds == 30 * 3 * 42 * 42 and row.nbytes == 4 * (3 * 42 * 42 + 42)


def test_a_result_does_not_depend_on_the_batch(tmp_path):
    _, model = saved(tmp_path, DebertaV2Model, MODELS["v2 with a convolution"])
    for chosen in (model, cq.quantize(model, cq.Dynamic())):
        alone = [chosen.forward([ids])[0] for ids in ragged()]
        assert all(map(np.array_equal, chosen.forward(ragged()), alone))


def test_a_reranker_is_that_of_transformers(tmp_path):
    """Tokenizer included; the types that it gives a pair's second text reach no table."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"▁{letter}" for letter in "abcdefgh")]
    theirs = DebertaV2Tokenizer(vocab=[(word, -float(i)) for i, word in enumerate(words)], unk_id=1)
    config = changed(MODELS["v3"], vocab_size=len(words), id2label={0: "relevant"})
    reference, _ = saved(tmp_path, DebertaV2ForSequenceClassification, config)
    theirs.save_pretrained(tmp_path)
    query, documents, wanted = "a b c", ["d e", "h  a", "g f\ne a"], []
    for document in documents:
        with torch.no_grad():
            wanted.append(reference(**theirs(query, document, return_tensors="pt")).logits.sigmoid().item())
    model = cq.load(tmp_path)
    np.testing.assert_allclose(model.classify([(query, text) for text in documents])[:, 0], wanted, atol=1e-5)
    assert [row["corpus_id"] for row in model.rank(query, documents)] == np.argsort(wanted)[::-1].tolist()


def test_a_sentencepiece_file_alone_is_not_read(tmp_path):
    saved(tmp_path, DebertaV2Model, MODELS["v3"])
    (tmp_path / "spm.model").write_bytes(b"pieces")
    with pytest.raises(cq.CqError, match=r"spm\.model, is not read; AutoTokenizer\.from_pretrained"):
        cq.load(tmp_path).embed(["a text"])


# --- files ------------------------------------------------------------------------------------------------------------


def test_what_transformers_does_not_read_is_left_out(tmp_path):
    """A table of positions beside position_biased_input false, layers for positions beside share_att_key true, a norm
    beside norm_rel_ebd none, a convolution without conv_kernel_size, the heads of pretraining."""
    saved(tmp_path, DebertaV2Model, changed(MODELS["v3"], norm_rel_ebd="none"))
    file = tmp_path / "model.safetensors"
    wanted, tensors = cq.load(tmp_path).forward(ragged()), load_file(file)
    at = "encoder.layer.0.attention.self."
    more = {
        "embeddings.position_embeddings.weight": (190, 40),
        "encoder.LayerNorm.weight": (40,),
        "encoder.LayerNorm.bias": (40,),
        f"{at}pos_key_proj.weight": (40, 40),
        f"{at}pos_key_proj.bias": (40,),
        "encoder.conv.conv.weight": (40, 40, 3),
        "lm_predictions.lm_head.dense.weight": (40, 40),
        "mask_predictions.dense.weight": (40, 40),
    }
    save_file(tensors | {name: np.ones(shape, np.float32) for name, shape in more.items()}, file)
    assert all(map(np.array_equal, cq.load(tmp_path).forward(ragged()), wanted))
    assert all(map(np.array_equal, cq.load(file).forward(ragged()), wanted))


def test_arrays_with_a_configuration_of_cq(tmp_path):
    """Where config.json is not there to say so, layers for positions and the norm are those that have weights."""
    _, model = saved(tmp_path, DebertaV2Model, MODELS["queries alone"])
    again = cq.load(tmp_path / "model.safetensors", config=model.config)
    assert all(map(np.array_equal, again.forward(ragged()), model.forward(ragged())))


@pytest.mark.parametrize(
    "name, change, words",
    [
        ("encoder.rel_embeddings.weight", None, "missing weight embed.relative"),
        ("encoder.rel_embeddings.weight", lambda x: x[1:], "embed.relative is float32 of shape"),
        ("encoder.rel_embeddings.weight", lambda x: x * np.inf, "embed.relative is .* every weight must be finite"),
        ("encoder.LayerNorm.bias", None, "missing weight embed.relative_norm.bias"),
        ("encoder.layer.1.attention.self.key_proj.bias", None, "missing weight layers.1.attention.key.bias"),
        ("encoder.layer.1.attention.self.query_proj.weight", lambda x: x[1:], "layers.1.attention.query.weight is"),
    ],
)
def test_damage_is_found(tmp_path, name, change, words):
    saved(tmp_path, DebertaV2Model, MODELS["v3"])
    tensors = load_file(tmp_path / "model.safetensors")
    given = tensors.pop(name)
    if change is not None:
        tensors[name] = np.ascontiguousarray(change(given))
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(cq.FormatError, match=words):
        cq.load(tmp_path)


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(conv_kernel_size=3), "conv_act 'tanh' is not implemented"),
        (dict(conv_kernel_size=3, conv_act="gelu", conv_groups=2), "conv_groups 2 is not implemented, only 1"),
        (dict(conv_kernel_size=2, conv_act="gelu"), "convolution: need an odd number of tokens as kernel, got 2"),
        (dict(conv_kernel_size=3, conv_act="gelu"), "missing weight convolution.weight"),
        (dict(embedding_size=24), "embedding_size 24 is not implemented, only 40"),
        (dict(attention_head_size=8), "attention_head_size 8 is not implemented, only 10"),
        (dict(pos_att_type=["c2p", "p2p"]), "pos_att_type .*p2p.* is not implemented, only c2p and p2c"),
        (dict(norm_rel_ebd="batch_norm"), "norm_rel_ebd 'batch_norm' is not implemented"),
        (dict(pooler_hidden_act="silu"), "pooler_hidden_act 'silu' is not implemented"),
        (dict(pooler_hidden_size=24), "pooler_hidden_size 24 is not implemented"),
        (dict(legacy=False, tie_word_embeddings=False), "tie_word_embeddings false is not implemented where legacy"),
        (dict(quantization_config=_CODED), "quantization_config is not implemented of deberta-v2 models"),
        (dict(position_buckets="16"), "position_bias: need positive integers"),
        (dict(position_buckets=1), "position_bias: buckets must be 0, or at least 2"),
        (dict(max_relative_positions=4), "distance more than half of them"),
        (dict(share_att_key="yes"), "share_att_key must be true or false"),
    ],
)
def test_other_kinds_are_refused(tmp_path, change, words):
    saved(tmp_path, DebertaV2ForSequenceClassification, MODELS["v3"])
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(cq.CqError, match=words):
        cq.load(tmp_path)


def results(model):
    if model.config.classifier is not None:
        return [model.classify(ragged())]
    return model.logits(ragged()) if model.config.head_size else model.forward(ragged())


@pytest.mark.parametrize(
    "kind, part, said",
    [
        (DebertaV2Model, "last_hidden_state", {}),
        (DebertaV2ForMaskedLM, "logits", {}),
        (DebertaV2ForMaskedLM, "logits", dict(legacy=False)),
        (DebertaV2ForTokenClassification, "logits", {}),
        (DebertaV2ForSequenceClassification, "logits", {}),
        (DebertaV2ForQuestionAnswering, "start_logits", {}),
    ],
)
@pytest.mark.parametrize("name", ["v3", "v2 with a convolution", "queries alone", "positions that nothing meets"])
def test_a_folder_that_is_written_gives_the_same_bits(tmp_path, name, kind, part, said):
    """transformers reads all of it, and adds in another order."""
    reference, model = saved(tmp_path, kind, changed(MODELS[name], **said))
    settings, weights, _ = read_folder(tmp_path)
    write_folder(tmp_path / "again", tmp_path, weights, settings.family)
    again = cq.load(tmp_path / "again")
    assert again.config == model.config and all(map(np.array_equal, results(again), results(model)))
    theirs, found = kind.from_pretrained(tmp_path / "again", output_loading_info=True)
    assert not found["unexpected_keys"]
    close(outputs(theirs.eval(), ragged(), part), outputs(reference, ragged(), part))


def test_a_changed_model_is_written(tmp_path):
    """Though no table and layers give keys and queries that were changed one by one."""
    _, model = saved(tmp_path, DebertaV2Model, MODELS["v3"])
    rng = np.random.default_rng(3)
    weights = {
        name: rng.standard_normal(array.shape).astype(np.float32) * np.float32(0.2)
        for name, array in model.weights().items()
    }
    write_folder(tmp_path, tmp_path, weights, "deberta-v2")
    changed, again = cq.Transformer(model.config, weights), cq.load(tmp_path)
    assert all(map(np.array_equal, again.forward(ragged()), changed.forward(ragged())))
    assert np.abs(again.forward(ragged())[3] - model.forward(ragged())[3]).max() > 0.1


def test_more_positions_than_features_are_not_written(tmp_path):
    saved(tmp_path, DebertaV2Model, MODELS["keys of every distance"])
    settings, weights, _ = read_folder(tmp_path)
    with pytest.raises(cq.UnsupportedError, match="keys of 100 relative positions go back into no table of 42 feat"):
        write_folder(tmp_path / "again", tmp_path, weights, settings.family)
