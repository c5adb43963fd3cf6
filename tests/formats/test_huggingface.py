"""Folders as transformers writes them: weights arrive under canonical names, the configuration as config.json says."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertForMultipleChoice,
    BertForNextSentencePrediction,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
)

from cq.errors import FormatError, UnsupportedError
from cq.formats.huggingface import read_folder
from cq.model import Config


def linear(name: str, module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {f"{name}.{leaf}": tensor for leaf, tensor in module.named_parameters(recurse=False)}


def bert_weights(model: BertModel) -> dict[str, torch.Tensor]:
    e = model.embeddings
    wanted = {
        "embed.word": e.word_embeddings.weight,
        "embed.position": e.position_embeddings.weight,
        "embed.type": e.token_type_embeddings.weight,
    } | linear("embed.norm", e.LayerNorm)
    for i, layer in enumerate(model.encoder.layer):
        at, a = f"layers.{i}.", layer.attention
        wanted |= linear(at + "attention.query", a.self.query) | linear(at + "attention.key", a.self.key)
        wanted |= linear(at + "attention.value", a.self.value) | linear(at + "attention.output", a.output.dense)
        wanted |= linear(at + "attention_norm", a.output.LayerNorm) | linear(at + "ffn.up", layer.intermediate.dense)
        wanted |= linear(at + "ffn.down", layer.output.dense) | linear(at + "ffn_norm", layer.output.LayerNorm)
    return wanted


def llama_weights(model: LlamaModel) -> dict[str, torch.Tensor]:
    wanted = {"embed.word": model.embed_tokens.weight} | linear("final_norm", model.norm)
    for i, layer in enumerate(model.layers):
        at, a = f"layers.{i}.", layer.self_attn
        wanted |= linear(at + "attention.query", a.q_proj) | linear(at + "attention.key", a.k_proj)
        wanted |= linear(at + "attention.value", a.v_proj) | linear(at + "attention.output", a.o_proj)
        wanted |= linear(at + "attention_norm", layer.input_layernorm)
        wanted |= linear(at + "ffn_norm", layer.post_attention_layernorm) | linear(at + "ffn.gate", layer.mlp.gate_proj)
        wanted |= linear(at + "ffn.up", layer.mlp.up_proj) | linear(at + "ffn.down", layer.mlp.down_proj)
    return wanted


def assert_same(weights: dict[str, np.ndarray], wanted: dict[str, torch.Tensor]) -> None:
    assert set(weights) == set(wanted)
    for name, tensor in wanted.items():
        assert weights[name].dtype == np.float32
        np.testing.assert_array_equal(weights[name], tensor.detach().float().numpy())


def change(file, **entries) -> None:
    """Sets entries of a JSON file; None removes one."""
    values = json.loads(file.read_text()) | entries
    file.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


UNSAID = dict(  # what neither folder says
    position_offset=0,
    rope_scaling=None,
    qk_norm=False,
    normalize=False,
    labels=(),
    classifier=None,
    chat_template=None,
    special_tokens=None,
    generation=None,
    token_types=True,
    truncation_side="right",
    pair_activation="identity",
    include_prompt=True,
    prompts=None,
    default_prompt=None,
    strip=False,
    truncate_dim=None,
    tail=(),
    text_activation="identity",
    token_head=None,
    head_transform=None,
    multi_vector=None,
    answers=(),
)


def test_bert_arrives(bert_saved):
    folder, model = bert_saved
    config, weights, tokenizer = read_folder(folder)
    assert_same(weights, bert_weights(model))
    assert tokenizer is None
    wanted = dict(
        family="bert",
        vocab_size=40,
        hidden_size=16,
        num_layers=3,
        num_heads=2,
        num_kv_heads=2,
        head_dim=8,
        intermediate_size=24,
        max_positions=20,
        type_vocab_size=3,
        norm="layer",
        norm_eps=1e-12,
        norm_first=False,
        activation="gelu",
        gated=False,
        rope_theta=None,
        causal=False,
        lm_head=False,
        tied=False,
        pooling="mean",
        max_length=20,
        bos_token_id=None,
        eos_token_ids=(),
        pad_token_id=0,
    )
    assert config == Config(**wanted, **UNSAID)


@pytest.mark.parametrize("kind", [BertForNextSentencePrediction, BertForMultipleChoice])
def test_bert_under_another_head_arrives_without_it(tmp_path, save, bert_config, kind):
    model = save(kind(bert_config), tmp_path)
    assert_same(read_folder(tmp_path)[1], bert_weights(model.bert))


def test_bert_of_tensorflows_time_arrives(bert, bert_saved):
    old = {
        "bert."
        + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in load_file(bert / "model.safetensors").items()
    }
    old |= {"bert.embeddings.position_ids": torch.arange(20)[None], "cls.predictions.bias": torch.zeros(40)}
    save_file(old, bert / "model.safetensors")
    assert_same(read_folder(str(bert))[1], bert_weights(bert_saved[1]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_arrive_as_float32(bert, bert_saved, dtype):
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(bert / "model.safetensors").items()}
    save_file(tensors, bert / "model.safetensors")
    assert_same(read_folder(bert)[1], {name: tensor.to(dtype) for name, tensor in bert_weights(bert_saved[1]).items()})


def test_llama_arrives(llama_saved):
    folder, model = llama_saved
    config, weights, _ = read_folder(folder)
    assert_same(weights, llama_weights(model.model) | {"head.weight": model.lm_head.weight})
    wanted = dict(
        family="llama",
        vocab_size=40,
        hidden_size=24,
        num_layers=3,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        intermediate_size=20,
        max_positions=30,
        type_vocab_size=0,
        norm="rms",
        norm_eps=1e-6,
        norm_first=True,
        activation="silu",
        gated=True,
        rope_theta=5e4,
        causal=True,
        lm_head=True,
        tied=False,
        pooling=None,
        max_length=30,
        bos_token_id=1,
        eos_token_ids=(2,),
        pad_token_id=None,
    )
    assert config == Config(**wanted, **UNSAID)


def test_llama_without_a_head_arrives(tmp_path, save, llama_sizes):
    model = save(LlamaModel(LlamaConfig(**llama_sizes)), tmp_path)
    config, weights, _ = read_folder(tmp_path)
    assert_same(weights, llama_weights(model))
    assert not config.lm_head and not config.tied


def test_llama_with_biases_arrives(tmp_path, save, llama_sizes):
    model = save(LlamaForCausalLM(LlamaConfig(**llama_sizes, attention_bias=True, mlp_bias=True)), tmp_path)
    weights = read_folder(tmp_path)[1]
    assert_same(weights, llama_weights(model.model) | {"head.weight": model.lm_head.weight})
    assert weights["layers.2.attention.key.bias"].shape == (16,)


def test_a_tied_head_is_left_out(tmp_path, save, llama_sizes):
    model = save(LlamaForCausalLM(LlamaConfig(**llama_sizes | {"tie_word_embeddings": True})), tmp_path)
    config, weights, _ = read_folder(tmp_path)
    assert config.lm_head and config.tied
    assert_same(weights, llama_weights(model.model))
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, file)
    assert_same(read_folder(tmp_path)[1], llama_weights(model.model))
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"] + 1}, file)
    with pytest.raises(FormatError, match="tie_word_embeddings"):
        read_folder(tmp_path)


def test_llama_as_written_before_transformers_5_arrives(llama, llama_saved):
    """3 heads of 8, each with its own key and value, of which config.json says little."""
    change(
        llama / "config.json",
        rope_parameters=None,
        rope_theta=1000000,
        head_dim=None,
        num_attention_heads=3,
        num_key_value_heads=None,
        architectures=None,
    )
    file = llama / "model.safetensors"
    tensors = {name: torch.zeros(24, 24) if "self_attn" in name else tensor for name, tensor in load_file(file).items()}
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(tensors, file)
    config = read_folder(llama)[0]
    assert (config.rope_theta, config.head_dim, config.num_kv_heads, config.lm_head) == (1e6, 8, 3, True)


@pytest.mark.parametrize(
    "entries, words",
    [
        ({"rope_scaling": {"type": "turned", "factor": 2.0}}, "rope_scaling: rope_type 'turned' is not .* default"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "rope_parameters"),
        ({"hidden_act": "quick_gelu"}, "hidden_act 'quick_gelu'"),
        ({"model_type": "xlnet"}, "family 'xlnet'"),
        ({"sliding_window": 128}, "sliding_window 128"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ],
)
def test_what_llama_does_not_support_is_named(llama, entries, words):
    change(llama / "config.json", **entries)
    with pytest.raises(UnsupportedError, match=words):
        read_folder(llama)


@pytest.mark.parametrize(
    "entries, words",
    [
        ({"position_embedding_type": "relative_key"}, "position_embedding_type 'relative_key'"),
        ({"hidden_act": "mish"}, "hidden_act 'mish'"),
        ({"is_decoder": True}, "is_decoder"),
        ({"add_cross_attention": True}, "add_cross_attention"),
    ],
)
def test_what_bert_does_not_support_is_named(bert, entries, words):
    change(bert / "config.json", **entries)
    with pytest.raises(UnsupportedError, match=words):
        read_folder(bert)


@pytest.mark.parametrize(
    "name, wanted", [("gelu_new", "gelu_tanh"), ("gelu_pytorch_tanh", "gelu_tanh"), ("relu", "relu"), ("swish", "silu")]
)
def test_activations_have_cqs_names(bert, name, wanted):
    change(bert / "config.json", hidden_act=name)
    assert read_folder(bert)[0].activation == wanted


@pytest.mark.parametrize("flag, words", [("attention_bias", "attention.query.bias"), ("mlp_bias", "ffn.up.bias")])
def test_biases_that_the_configuration_promises_must_be_there(llama, flag, words):
    change(llama / "config.json", **{flag: True})
    with pytest.raises(FormatError, match=f"missing weight layers.0.{words}"):
        read_folder(llama)


def test_biases_that_the_configuration_denies_must_not_be_there(llama):
    file = llama / "model.safetensors"
    save_file(load_file(file) | {"model.layers.0.self_attn.q_proj.bias": torch.zeros(32)}, file)
    with pytest.raises(UnsupportedError, match="layers.0.attention.query.bias' is not asked for"):
        read_folder(llama)


def test_the_tokenizer_neither_pads_nor_cuts(bert):
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "b": 2, "[PAD]": 3}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.enable_padding(length=50, pad_id=3, pad_token="[PAD]")
    tokenizer.enable_truncation(2)
    tokenizer.save(str(bert / "tokenizer.json"))
    assert read_folder(bert)[2].encode("a b a b X").ids == [1, 2, 1, 2, 0]


def test_weights_cannot_be_changed_by_accident(bert_saved):
    weights = read_folder(bert_saved[0])[1]
    with pytest.raises(ValueError, match="read-only"):
        weights["embed.word"].read()[0] = 1
