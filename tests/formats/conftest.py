"""Small random models as transformers saves them, for tests that read them back."""

import shutil

import gguf
import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM


@pytest.fixture(scope="session")
def bert_config() -> BertConfig:
    return BertConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=20,
        type_vocab_size=3,
    )


@pytest.fixture(scope="session")
def llama_sizes() -> dict:
    """Arguments of LlamaConfig; heads of 8 although 24 / 4 is 6."""
    return dict(
        vocab_size=40,
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=20,
        max_position_embeddings=30,
        rope_theta=5e4,
        tie_word_embeddings=False,
    )


@pytest.fixture(scope="session")
def save():
    """save(model, folder) → the model, all its weights random: fresh norms and biases would be ones and zeros."""

    def randomize_and_save(model: torch.nn.Module, folder) -> torch.nn.Module:
        torch.manual_seed(3)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter)
        model.save_pretrained(folder)
        return model

    return randomize_and_save


@pytest.fixture(scope="session")
def bert_saved(tmp_path_factory, save, bert_config):
    """(folder, the model in it). Not to be changed."""
    folder = tmp_path_factory.mktemp("bert")
    return folder, save(BertModel(bert_config), folder)


@pytest.fixture(scope="session")
def llama_saved(tmp_path_factory, save, llama_sizes):
    """(folder, the model in it). Not to be changed."""
    folder = tmp_path_factory.mktemp("llama")
    return folder, save(LlamaForCausalLM(LlamaConfig(**llama_sizes)), folder)


@pytest.fixture
def bert(bert_saved, tmp_path):
    """A copy of the folder that a test may change."""
    return shutil.copytree(bert_saved[0], tmp_path / "model")


@pytest.fixture
def llama(llama_saved, tmp_path):
    """A copy of the folder that a test may change."""
    return shutil.copytree(llama_saved[0], tmp_path / "model")


@pytest.fixture(scope="session")
def write_gguf():
    """write_gguf(path, model, architecture, kind, more) → path: the GGUF file that llama.cpp's converter would make of
    a model of transformers, matrices in `kind`; the model is given the weights that the file has. architecture: where
    it is not the model's type. more(writer): adds to it."""

    def written(path, reference, architecture: str | None = None, kind: str = "F32", more=lambda writer: None):
        c, architecture = reference.config, architecture or reference.config.model_type
        kind, writer = gguf.GGMLQuantizationType[kind], gguf.GGUFWriter(path, architecture)
        _add_sizes(writer, c)
        if hasattr(c, "rope_parameters"):
            _add_rotary(writer, reference)
        _add_numbers(writer, c)
        more(writer)
        arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
        names = gguf.get_tensor_name_map(arch, c.num_hidden_layers)
        for name, parameter in reference.named_parameters():
            turned = ".c_" in name and parameter.ndim == 2  # GPT-2's are (in, out)
            weight = np.ascontiguousarray(parameter.detach().numpy().T if turned else parameter.detach().numpy())
            code = kind if parameter.ndim == 2 else gguf.GGMLQuantizationType.F32
            if c.model_type == "roberta" and "position_embeddings" in name:
                parameter = parameter[c.pad_token_id + 1 :]
                weight = weight[c.pad_token_id + 1 :]
            codes = gguf.quantize(weight, code)
            weight = torch.from_numpy(gguf.dequantize(codes, code).copy())
            parameter.data.copy_(weight.T if turned else weight)
            for key, heads in (("q_proj", c.num_attention_heads), ("k_proj", getattr(c, "num_key_value_heads", None))):
                if key in name and architecture in ("llama", "mistral3", "granite"):
                    codes = _interleaved(codes, heads)
            if c.model_type == "gemma2" and name.endswith("norm.weight"):
                codes = codes + np.float32(1)
            writer.add_tensor(names.get_name(name, (".weight", ".bias")), codes, raw_dtype=code)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return written


def _add_sizes(writer: gguf.GGUFWriter, c) -> None:
    writer.add_block_count(c.num_hidden_layers)
    writer.add_context_length(c.max_position_embeddings - (c.pad_token_id + 1 if c.model_type == "roberta" else 0))
    writer.add_embedding_length(c.hidden_size)
    writer.add_head_count(c.num_attention_heads)
    if c.model_type == "gpt2":
        writer.add_feed_forward_length(c.n_inner or 4 * c.n_embd)
        writer.add_layer_norm_eps(c.layer_norm_epsilon)
    elif c.model_type in ("bert", "distilbert", "roberta"):
        writer.add_feed_forward_length(c.hidden_dim if c.model_type == "distilbert" else c.intermediate_size)
        writer.add_layer_norm_eps(getattr(c, "layer_norm_eps", 1e-12))
        writer.add_causal_attention(False)
    else:
        writer.add_feed_forward_length(c.intermediate_size)
        writer.add_head_count_kv(c.num_key_value_heads)
        writer.add_layer_norm_rms_eps(c.rms_norm_eps)


def _add_numbers(writer: gguf.GGUFWriter, c) -> None:
    if c.model_type == "granite":
        writer.add_attention_scale(c.attention_multiplier)
        writer.add_embedding_scale(c.embedding_multiplier)
        writer.add_residual_scale(c.residual_multiplier)
        writer.add_logit_scale(c.logits_scaling)
    if c.model_type == "gemma2":
        writer.add_attn_logit_softcapping(c.attn_logit_softcapping)
        writer.add_final_logit_softcapping(c.final_logit_softcapping)
        writer.add_sliding_window(c.sliding_window)


def _add_rotary(writer: gguf.GGUFWriter, reference) -> None:
    c, rope, frequency = reference.config, reference.config.rope_parameters, reference.model.rotary_emb.inv_freq.numpy()
    dim = 2 * len(frequency)
    writer.add_key_length(dim)
    writer.add_value_length(dim)
    if c.model_type in ("llama", "mistral"):
        writer.add_rope_dimension_count(dim)
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "llama3":
        plain = rope["rope_theta"] ** -(np.arange(0, dim, 2) / dim)
        writer.add_tensor("rope_freqs.weight", (plain / frequency).astype(np.float32))
    elif rope["rope_type"] != "default":
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
        for key, add in (
            ("original_max_position_embeddings", writer.add_rope_scaling_orig_ctx_len),
            ("beta_fast", writer.add_rope_scaling_yarn_beta_fast),
            ("beta_slow", writer.add_rope_scaling_yarn_beta_slow),
        ):
            if rope.get(key) is not None:
                add(rope[key])


def _interleaved(array: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's order of rows: 0, d/2, 1, d/2 + 1, … within each head."""
    dim = len(array) // heads
    order = [head * dim + i // 2 + (i % 2) * (dim // 2) for head in range(heads) for i in range(dim)]
    return array[order]
