"""Each family of decoders and encoders against transformers, on small random models; what is new in each under all
strategies, in checkpoints and refused where it is not implemented."""

import json

import numpy as np
import pytest
import torch
from families import STRATEGIES, TOLERANCE, close, outputs, ragged, saved, survives
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    CamembertConfig,
    CamembertModel,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    DistilBertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaForSequenceClassification,
    RobertaModel,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
    XLMRobertaModel,
)

import cq
from cq.formats.huggingface import parse_config, read_folder, write_folder
from cq.formats.names import canonical
from cq.model.rope import frequencies

_DECODER = dict(
    vocab_size=61,
    hidden_size=40,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=36,
    max_position_embeddings=200,
    tie_word_embeddings=False,
)
_LLAMA3 = dict(
    rope_type="llama3",
    rope_theta=1e4,
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=64,
)
_YARN = dict(rope_type="yarn", rope_theta=1e4, factor=4.0, original_max_position_embeddings=50)
_LONGROPE = dict(
    rope_type="longrope",
    rope_theta=1e4,
    short_factor=[1.0, 1.1, 1.2, 1.5, 2.0],
    long_factor=[1.0, 2.0, 4.0, 8.0, 16.0],
    original_max_position_embeddings=20,
)
DECODERS = {
    "mistral": (MistralForCausalLM, MistralConfig(**_DECODER, head_dim=16, sliding_window=None)),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**_DECODER | dict(tie_word_embeddings=True))),
    "linear": (
        LlamaForCausalLM,
        LlamaConfig(**_DECODER, rope_parameters=dict(rope_type="linear", factor=3.0, rope_theta=5e3)),
    ),
    "llama3": (LlamaForCausalLM, LlamaConfig(**_DECODER, rope_parameters=_LLAMA3)),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config(**_DECODER, head_dim=20)),
    "qwen3 biased": (Qwen3ForCausalLM, Qwen3Config(**_DECODER, head_dim=8, attention_bias=True)),
    "gpt2": (GPT2LMHeadModel, GPT2Config(vocab_size=61, n_embd=40, n_layer=2, n_head=4, n_positions=190)),
    "gpt2 untied": (
        GPT2LMHeadModel,
        GPT2Config(
            vocab_size=61,
            n_embd=24,
            n_layer=2,
            n_head=3,
            n_positions=190,
            n_inner=50,
            activation_function="relu",
            tie_word_embeddings=False,
        ),
    ),
    "yarn": (Qwen2ForCausalLM, Qwen2Config(**_DECODER, rope_parameters=_YARN)),
    "longrope": (LlamaForCausalLM, LlamaConfig(**_DECODER, rope_parameters=_LONGROPE)),
    "dynamic": (
        LlamaForCausalLM,
        LlamaConfig(**_DECODER, rope_parameters=dict(rope_type="dynamic", factor=2.0, rope_theta=1e4)),
    ),
}
_ENCODER = dict(vocab_size=61, hidden_size=40, num_hidden_layers=2, num_attention_heads=4, intermediate_size=36)
_ROBERTA = dict(**_ENCODER, type_vocab_size=1, layer_norm_eps=1e-5)
ENCODERS = {
    "roberta": (RobertaModel, RobertaConfig(**_ROBERTA, max_position_embeddings=192)),
    "xlm-roberta": (XLMRobertaModel, XLMRobertaConfig(**_ROBERTA, max_position_embeddings=200, pad_token_id=2)),
    "camembert": (CamembertModel, CamembertConfig(**_ROBERTA, max_position_embeddings=192)),
    "distilbert": (
        DistilBertModel,
        DistilBertConfig(
            vocab_size=61, dim=40, n_layers=2, n_heads=4, hidden_dim=36, max_position_embeddings=190, activation="relu"
        ),
    ),
}
_NAMES = dict(num_labels=3, id2label={0: "bad", 1: "fair", 2: "good"})
CLASSIFIERS = {
    "bert": (BertForSequenceClassification, BertConfig(**_ENCODER, max_position_embeddings=190)),
    "roberta": (RobertaForSequenceClassification, RobertaConfig(**_ROBERTA, max_position_embeddings=192, **_NAMES)),
    "xlm-roberta": (
        XLMRobertaForSequenceClassification,
        XLMRobertaConfig(**_ROBERTA, max_position_embeddings=192, num_labels=1),
    ),
    "distilbert": (
        DistilBertForSequenceClassification,
        DistilBertConfig(
            vocab_size=61, dim=40, n_layers=2, n_heads=4, hidden_dim=36, max_position_embeddings=190, **_NAMES
        ),
    ),
}
FEW = ["weight-only", "dynamic", "static", "qat"]  # the others' schemes know nothing of families


@pytest.mark.parametrize("name", DECODERS)
def test_logits_are_those_of_transformers(tmp_path, name):
    reference, model = saved(tmp_path, *DECODERS[name])
    close(model.logits(ragged()), outputs(reference, ragged(), "logits"))


@pytest.mark.parametrize("name", [*DECODERS, *ENCODERS])
def test_weights_go_back_to_the_names_they_came_with(tmp_path, name):
    kind, config = (DECODERS | ENCODERS)[name]
    saved(tmp_path, kind, config)
    settings, weights, _ = read_folder(tmp_path)
    write_folder(tmp_path / "again", tmp_path, weights, settings.family)
    again = kind.from_pretrained(tmp_path / "again").state_dict()
    theirs = kind.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in theirs.items() if "pooler" not in name)


@pytest.mark.parametrize("name", ENCODERS)
def test_hidden_states_are_those_of_transformers(tmp_path, name):
    reference, model = saved(tmp_path, *ENCODERS[name])
    close(model.forward(ragged()), outputs(reference, ragged(), "last_hidden_state"))
    with pytest.raises(cq.CqError, match=f"at most {model.config.max_positions}"):
        model.forward(ragged((model.config.max_positions + 1,)))


def test_an_encoder_under_a_head_arrives_without_it(tmp_path):
    reference, model = saved(tmp_path, RobertaForMaskedLM, ENCODERS["roberta"][1])
    close(model.forward(ragged()), outputs(reference.roberta, ragged(), "last_hidden_state"))


@pytest.mark.parametrize("strategy", FEW)
@pytest.mark.parametrize("name", ["yarn", "qwen3", "gpt2", "roberta", "distilbert"])
def test_every_family_under_every_strategy(tmp_path, name, strategy):
    _, model = saved(tmp_path, *(DECODERS | ENCODERS)[name])
    run = cq.Transformer.logits if name in DECODERS else cq.Transformer.forward
    survives(model, STRATEGIES[strategy], tmp_path, run)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_scores_of_labels_are_those_of_transformers(tmp_path, name):
    reference, model = saved(tmp_path, *CLASSIFIERS[name])
    scores, wanted = model.classify(ragged()), np.stack(outputs(reference, ragged(), "logits"))
    assert scores.dtype == np.float32 and scores.shape == wanted.shape
    assert np.abs(scores - wanted).max() < TOLERANCE
    assert model.config.labels == tuple(reference.config.id2label[i] for i in range(reference.config.num_labels))
    assert np.abs(model.classify(ragged(), batch_size=1) - scores).max() < 1e-5
    assert model.classify([]).shape == (0, scores.shape[1])
    settings, weights, _ = read_folder(tmp_path)
    write_folder(tmp_path / "again", tmp_path, weights, settings.family)
    again = type(reference).from_pretrained(tmp_path / "again").state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in reference.state_dict().items())


@pytest.mark.parametrize("strategy", FEW)
@pytest.mark.parametrize("name", ["bert", "distilbert"])
def test_classifiers_under_every_strategy(tmp_path, name, strategy):
    _, model = saved(tmp_path, *CLASSIFIERS[name])
    survives(model, STRATEGIES[strategy], tmp_path, cq.Transformer.classify)


def test_training_leaves_the_head_of_a_classifier(tmp_path):
    _, model = saved(tmp_path, *CLASSIFIERS["bert"])
    trained = cq.quantize(model, cq.QAT(target=cq.WeightOnly(), steps=2, batch_size=2), ragged((5, 6, 7)))
    whole = cq.quantize(model, cq.WeightOnly())
    assert np.array_equal(trained.classifier.dense.weight.unpack(), whole.classifier.dense.weight.unpack())


def test_a_model_without_the_head_does_not_classify(tmp_path):
    _, model = saved(tmp_path, *ENCODERS["distilbert"])
    with pytest.raises(cq.UnsupportedError, match="no sequence classifier's head"):
        model.classify(ragged())


@pytest.mark.parametrize("labels", [{"1": "a"}, {"0": 3}, {}, ["a"], {"0": "a", "2": "b"}])
def test_labels_that_are_not_numbered_are_named(labels):
    config = CLASSIFIERS["bert"][1].to_dict() | dict(id2label=labels, architectures=["BertForSequenceClassification"])
    with pytest.raises(cq.FormatError, match="id2label"):
        parse_config(config, "x")


@pytest.mark.parametrize("padding", [191, -1, "1"])
def test_padding_that_leaves_no_positions_is_named(padding):
    with pytest.raises(cq.FormatError, match="pad_token_id"):
        parse_config(ENCODERS["roberta"][1].to_dict() | dict(pad_token_id=padding), "x")


@pytest.mark.parametrize("name", ["linear", "llama3", "yarn", "longrope"])
def test_scaled_frequencies_are_those_of_transformers(name):
    kind, config = DECODERS[name]
    rotary, ours = kind(config).model.rotary_emb, parse_config(config.to_dict(), "x")[0]
    frequency, factor = frequencies(ours.head_dim, ours.rope_theta, ours.rope_scaling)
    np.testing.assert_allclose(frequency, rotary.inv_freq.numpy(), rtol=3e-7)
    assert factor == pytest.approx(rotary.attention_scaling)


def test_yarn_reaches_factor_times_the_length_before(tmp_path):
    """Qwen's files say the length before in max_position_embeddings and stretch it by rope_scaling alone."""
    sizes = _DECODER | dict(max_position_embeddings=50)
    reference, model = saved(tmp_path, Qwen2ForCausalLM, Qwen2Config(**sizes, rope_parameters=_YARN))
    assert (model.config.max_positions, model.config.max_length) == (200, 200)
    close(model.logits(ragged((200, 3))), outputs(reference, ragged((200, 3)), "logits"))


def test_longrope_turns_otherwise_from_a_length_on(tmp_path):
    """Each sequence by its own length, whatever shares its call; generation ends where positions would turn."""
    _, model = saved(tmp_path, *DECODERS["longrope"])
    short, long, whole = np.arange(3, 15), np.arange(3, 40), np.arange(20)
    for tokens in ([short, long], [long, short, long, whole], [whole, short]):
        for found, one in zip(model.logits(tokens), tokens):
            assert np.array_equal(found, model.logits([one])[0])
    assert len(model.generate(short, 50)) <= 8 and len(model.generate(long, 10)) <= 10
    steps = model.generate(long, 10, temperature=0)
    scores = model.logits([np.concatenate([long, steps])])[0]
    assert scores[len(long) - 1 : -1].argmax(1).tolist() == steps.tolist()
    with pytest.raises(cq.CqError, match="turns positions otherwise from 20 tokens on"):
        model.generate([short, long])
    cq.save(model, tmp_path / "model.safetensors")
    assert np.array_equal(cq.load(tmp_path / "model.safetensors").logits([long])[0], model.logits([long])[0])
    with pytest.raises(cq.UnsupportedError, match="longrope"):
        cq.quantize(model, cq.QAT(steps=1), calibration=[short, long])


@pytest.mark.parametrize("family", ["mistral", "qwen3", "llama"])
def test_what_config_json_leaves_out_counts_as_in_the_familys_class(tmp_path, family):
    """Mistral has 8 heads for keys, Qwen3 heads of 128, where nothing says so."""
    kind = {"mistral": MistralForCausalLM, "qwen3": Qwen3ForCausalLM, "llama": LlamaForCausalLM}[family]
    left = {"num_key_value_heads", "head_dim", "rms_norm_eps", "tie_word_embeddings"}
    values = {key: value for key, value in _DECODER.items() if key not in left} | {
        "num_attention_heads": 16,
        "hidden_size": 64,
    }
    config = kind.config_class(**values | ({"num_key_value_heads": 16} if family == "qwen3" else {}))
    reference, _ = saved(tmp_path, kind, config)
    file = tmp_path / "config.json"
    written = {key: value for key, value in json.loads(file.read_text()).items() if key not in left}
    if family == "qwen3":
        written["num_key_value_heads"] = 16
    file.write_text(json.dumps(written))
    close(cq.load(tmp_path).logits(ragged((9,))), outputs(reference, ragged((9,)), "logits"))


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(factor=None), "factor must be a positive number"),
        (dict(factor=-1), "factor"),
        (dict(low_freq_factor=9.0), "low_freq"),
        (dict(rope_theta="x"), "rope_theta"),
        (dict(original_max_position_embeddings=0), "original_max_position_embeddings"),
    ],
)
def test_rotary_scaling_out_of_range_is_named(change, words):
    config = dict(model_type="llama", **_DECODER, rope_parameters=_LLAMA3 | change)
    with pytest.raises(cq.FormatError, match=words):
        parse_config(config, "x")


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(scale_attn_weights=False), "scale_attn_weights"),
        (dict(scale_attn_by_inverse_layer_idx=True), "inverse_layer_idx"),
    ],
)
def test_other_scores_of_gpt2_are_refused(change, words):
    with pytest.raises(cq.UnsupportedError, match=words):
        parse_config(DECODERS["gpt2"][1].to_dict() | change, "x")


def test_fused_weights_of_another_width_are_named():
    with pytest.raises(cq.FormatError, match="layers.0.attention.qkv.weight.*one after another"):
        canonical({"h.0.attn.c_attn.weight": np.ones((8, 23), np.float32)}, "gpt2", "x")
