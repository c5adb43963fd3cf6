"""GGUF files of small random models, written as llama.cpp's converter would, against transformers."""

import dataclasses
import sys

import gguf
import numpy as np
import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    RobertaConfig,
    RobertaModel,
)

import cq
from cq.errors import CqError, FormatError, UnsupportedError

_SIZES = dict(
    vocab_size=61,
    num_hidden_layers=2,
    max_position_embeddings=90,
    hidden_size=64,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=96,
    tie_word_embeddings=False,
)
_TIED = _SIZES | dict(
    hidden_size=96, num_attention_heads=3, num_key_value_heads=1, intermediate_size=32, tie_word_embeddings=True
)
_LINEAR = dict(rope_type="linear", factor=3.0, rope_theta=5e3)
_LLAMA3 = dict(
    rope_type="llama3",
    rope_theta=1e4,
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=40,
)
_YARN = dict(
    rope_type="yarn", rope_theta=1e4, factor=4.0, original_max_position_embeddings=20, beta_fast=16.0, beta_slow=0.5
)
_GPT2 = dict(vocab_size=61, n_layer=2, n_positions=90, n_embd=64, n_head=4)
MODELS = {  # model and configuration of transformers, general.architecture where it is not the model's type
    "llama": (LlamaForCausalLM, LlamaConfig(**_SIZES, head_dim=32, rope_theta=5e4, rms_norm_eps=1e-3), None),
    "llama tied": (LlamaForCausalLM, LlamaConfig(**_TIED), None),
    "llama biased": (LlamaForCausalLM, LlamaConfig(**_SIZES, attention_bias=True, mlp_bias=True), None),
    "llama3": (LlamaForCausalLM, LlamaConfig(**_SIZES, rope_parameters=_LLAMA3), None),
    "linear": (LlamaForCausalLM, LlamaConfig(**_SIZES, rope_parameters=_LINEAR), None),
    "mistral": (MistralForCausalLM, MistralConfig(**_SIZES, head_dim=8, sliding_window=None), "llama"),
    "mistral3": (
        MistralForCausalLM,
        MistralConfig(**_SIZES, head_dim=32, sliding_window=None, rope_parameters=_YARN),
        "mistral3",
    ),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**_SIZES), None),
    "qwen2 yarn": (Qwen2ForCausalLM, Qwen2Config(**_TIED, rope_parameters=_YARN), None),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config(**_SIZES, head_dim=32, rope_theta=1e6), None),
    "granite": (
        GraniteForCausalLM,
        GraniteConfig(
            **_SIZES, embedding_multiplier=12.0, logits_scaling=0.5, residual_multiplier=0.3, attention_multiplier=0.2
        ),
        None,
    ),
    "olmo2": (Olmo2ForCausalLM, Olmo2Config(**_SIZES), None),
    "gemma2": (
        Gemma2ForCausalLM,
        Gemma2Config(
            **_TIED,
            head_dim=32,
            query_pre_attn_scalar=32,
            sliding_window=20,
            attn_logit_softcapping=3.0,
            pad_token_id=0,
        ),
        None,
    ),
    "gpt2": (GPT2LMHeadModel, GPT2Config(**_GPT2), None),
    "gpt2 untied": (
        GPT2LMHeadModel,
        GPT2Config(**_GPT2, n_inner=96, tie_word_embeddings=False, layer_norm_epsilon=1e-3),
        None,
    ),
}
_ENCODER = dict(vocab_size=61, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96)
ENCODERS = {
    "bert": BertModel(BertConfig(**_ENCODER, max_position_embeddings=90), add_pooling_layer=False),
    "distilbert": DistilBertModel(
        DistilBertConfig(vocab_size=61, dim=64, n_layers=2, n_heads=4, hidden_dim=96, max_position_embeddings=90)
    ),
    "roberta": RobertaModel(
        RobertaConfig(**_ENCODER, type_vocab_size=1, max_position_embeddings=92, layer_norm_eps=1e-5),
        add_pooling_layer=False,
    ),
}


def random(name: str):
    """(a model of transformers, general.architecture)"""
    kind, config, architecture = MODELS[name]
    return randomized(kind(config)), architecture


def randomized(model: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(5)
    for key, parameter in model.eval().named_parameters():
        norm = key.endswith("weight") and ("norm" in key.lower() or ".ln_" in key)
        torch.nn.init.normal_(parameter, float(norm), 0.15)
    return model


@pytest.mark.parametrize(
    "name, kind",
    [
        *((name, "F32") for name in MODELS),
        *((name, kind) for kind in ("F16", "Q8_0") for name in ("llama", "qwen3", "gpt2")),
    ],
)
def test_logits_are_those_of_transformers(tmp_path, write_gguf, name, kind):
    reference, architecture = random(name)
    model = cq.load(write_gguf(tmp_path / "a.gguf", reference, architecture, kind))
    for n in (1, 17, 90):
        ids = np.random.default_rng(n).integers(0, 61, n)
        with torch.no_grad():
            theirs = reference(torch.tensor(ids)[None]).logits[0].numpy()
        assert np.abs(model.logits([ids])[0] - theirs).max() < 1e-4 and np.abs(theirs).max() > 0.5
    assert model.config.tied == reference.config.tie_word_embeddings and model.tokenizer is None


@pytest.mark.parametrize("name", ENCODERS)
def test_hidden_states_are_those_of_transformers(tmp_path, write_gguf, name):
    reference = randomized(ENCODERS[name])
    model = cq.load(write_gguf(tmp_path / "a.gguf", reference, "bert"))
    for n in (1, 17, 90):
        ids = np.random.default_rng(n).integers(2, 61, n)
        with torch.no_grad():
            theirs = reference(torch.tensor(ids)[None])[0][0].numpy()
        assert np.abs(model.forward([ids])[0] - theirs).max() < 1e-4
        mean = theirs.mean(0, dtype=np.float64)
        np.testing.assert_allclose(model.embed([ids])[0], mean / np.linalg.norm(mean), atol=1e-5)
    assert cq.quantize(model, cq.Dynamic()).embed([ids]).shape == (1, 64)


@pytest.mark.parametrize("number, pooling", [(0, None), (1, "mean"), (2, "cls"), (3, "last")])
def test_pooling_is_what_the_file_says(tmp_path, write_gguf, number, pooling):
    more = entries({"pooling_type": number}, "bert")
    config = cq.load(write_gguf(tmp_path / "a.gguf", randomized(ENCODERS["bert"]), more=more)).config
    assert (config.pooling, config.normalize) == (pooling, pooling is not None)


@pytest.mark.parametrize("key, value", [("pooling_type", 4), ("attention.causal", True)])
def test_other_encoders_are_refused(tmp_path, write_gguf, key, value):
    with pytest.raises(UnsupportedError, match=f"bert.{key} {value} is not implemented"):
        cq.load(write_gguf(tmp_path / "a.gguf", randomized(ENCODERS["bert"]), more=entries({key: value}, "bert")))


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "gpt2"])
def test_weights_are_those_of_the_hugging_face_folder(tmp_path, write_gguf, name):
    reference, architecture = random(name)
    reference.save_pretrained(tmp_path / "folder")
    ours, theirs = cq.load(write_gguf(tmp_path / "a.gguf", reference, architecture)), cq.load(tmp_path / "folder")
    for (name, a), (_, b) in zip(ours.linears(), theirs.linears(), strict=True):
        assert np.array_equal(a.weight, b.weight), name
    # float32, or not at all
    said = {key: getattr(ours.config, key) for key in ("norm_eps", "bos_token_id", "eos_token_ids")}
    assert ours.config == dataclasses.replace(theirs.config, **said)


@pytest.mark.parametrize("name", ["llama3", "qwen2", "gpt2"])
def test_a_quantized_model_is_kept_and_loaded(tmp_path, write_gguf, name):
    reference, architecture = random(name)
    model = cq.quantize(cq.load(write_gguf(tmp_path / "a.gguf", reference, architecture)), cq.Dynamic())
    cq.save(model, tmp_path / "a.safetensors")
    again, ids = cq.load(tmp_path / "a.safetensors"), [np.arange(60)]
    assert np.array_equal(again.logits(ids)[0], model.logits(ids)[0])
    assert again.config == model.config


def entries(change: dict, architecture: str = "llama"):
    """Adds entries of the architecture, or puts them in the place of those there."""

    def more(writer):
        for key, value in change.items():
            writer.kv_data[0].pop(f"{architecture}.{key}", None)
            add = {str: writer.add_string, int: writer.add_uint32, bool: writer.add_bool, float: writer.add_float32}[
                type(value)
            ]
            add(f"{architecture}.{key}", value)

    return more


@pytest.mark.parametrize(
    "key, value",
    [
        ("rope.scaling.type", "longrope"),
        ("rope.scaling.attn_factor", 0.5),
        ("expert_count", 8),
        ("attention.causal", False),
        ("attention.temperature_scale", 0.1),
        ("attention.sliding_window", 4),
        ("attention.value_length", 16),
        ("rope.dimension_count", 8),
    ],
)
def test_what_is_not_implemented_is_refused(tmp_path, write_gguf, key, value):
    with pytest.raises(UnsupportedError, match=f"llama.{key} .*not implemented"):
        cq.load(write_gguf(tmp_path / "a.gguf", random("llama tied")[0], more=entries({key: value})))


@pytest.mark.parametrize(
    "change",
    [
        {"rope.scaling.type": "none", "rope.scaling.factor": 4.0},
        {"rope.scaling.type": "linear"},
        {"rope.scaling.factor": 0.0},
        {"rope.scale_linear": 1.0},
    ],
)
def test_no_scaling(tmp_path, write_gguf, change):
    assert (
        cq.load(write_gguf(tmp_path / "a.gguf", random("llama tied")[0], more=entries(change))).config.rope_scaling
        is None
    )


@pytest.mark.parametrize("change", [{"rope.scaling.factor": 4.0}, {"rope.scale_linear": 4.0}])
def test_a_factor_of_no_type_is_linear(tmp_path, write_gguf, change):
    config = cq.load(write_gguf(tmp_path / "a.gguf", random("llama tied")[0], more=entries(change))).config
    assert config.rope_scaling == {"kind": "linear", "factor": 4.0}


GROWN = 0.1 * np.log(4) + 1


@pytest.mark.parametrize(
    "change, attention",
    [
        ({}, GROWN),
        ({"yarn_log_multiplier": 1.0}, 1.0),
        ({"yarn_log_multiplier": 0.5}, GROWN / (0.05 * np.log(4) + 1)),
        ({"attn_factor": 0.5}, GROWN / 2),
        ({"yarn_attn_factor": float(GROWN)}, GROWN),
    ],
)
def test_attention_factor_of_yarn(tmp_path, write_gguf, change, attention):
    change = {"rope.scaling." + key: value for key, value in ({"type": "yarn", "factor": 4.0} | change).items()}
    config = cq.load(write_gguf(tmp_path / "a.gguf", random("llama tied")[0], more=entries(change))).config
    assert config.rope_scaling == pytest.approx(
        {
            "kind": "yarn",
            "factor": 4.0,
            "original_positions": 90,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "attention_factor": attention,
        }
    )


def test_an_attention_factor_that_readers_disagree_about_is_refused(tmp_path, write_gguf):
    change = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.yarn_attn_factor": 2.0}
    with pytest.raises(UnsupportedError, match="yarn_attn_factor 2.0 is not implemented, only 1.13863"):
        cq.load(write_gguf(tmp_path / "a.gguf", random("llama tied")[0], more=entries(change)))


@pytest.mark.parametrize(
    "factors, change, error, words",
    [
        (np.ones(15), {}, FormatError, r"rope_freqs.weight has shape \(15,\); wanted \(16,\)"),
        (np.zeros(16), {}, FormatError, "rope_freqs.weight must be positive numbers"),
        (np.full(16, np.nan), {}, FormatError, "rope_freqs.weight must be positive numbers"),
        (np.ones(16), {"rope.scaling.factor": 2.0}, UnsupportedError, "with rope_freqs.weight is not implemented"),
    ],
)
def test_factors_of_frequencies_that_make_no_sense(tmp_path, write_gguf, factors, change, error, words):
    def more(writer):
        entries(change)(writer)
        writer.add_tensor("rope_freqs.weight", factors.astype(np.float32))

    with pytest.raises(error, match=words):
        cq.load(write_gguf(tmp_path / "a.gguf", random("llama tied")[0], more=more))


def test_another_architecture(tmp_path):
    for name in ("mamba", "qwen3moe"):
        writer = gguf.GGUFWriter(tmp_path / "a.gguf", name)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        with pytest.raises(
            UnsupportedError, match=f"general.architecture '{name}' is not implemented; these are: llama, mistral3, "
        ):
            cq.load(tmp_path / "a.gguf")


def test_without_the_package_the_way_out_is_named(tmp_path, write_gguf, monkeypatch):
    path = write_gguf(tmp_path / "a.gguf", random("llama tied")[0])
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UnsupportedError, match=r"pip install 'cquant\[gguf\]'"):
        cq.load(path)


def test_a_configuration_of_its_own(tmp_path, write_gguf):
    path = write_gguf(tmp_path / "a.gguf", random("llama tied")[0])
    with pytest.raises(CqError, match="^config: .*leave this argument out"):
        cq.load(path, {"model_type": "llama"})
