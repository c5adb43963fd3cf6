"""GGUF files of small random Llamas, written by the gguf package as llama.cpp's converter would, against transformers."""
import json
import sys

import gguf
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM

import cq
from cq.errors import CqError, UnsupportedError

SIZES = {
    "grouped": dict(hidden_size=64, num_attention_heads=4, num_key_value_heads=2, head_dim=32, intermediate_size=96,
                    tie_word_embeddings=False, rope_theta=5e4, rms_norm_eps=1e-3),
    "tied": dict(hidden_size=96, num_attention_heads=3, num_key_value_heads=1, intermediate_size=32, tie_word_embeddings=True),
    "biased": dict(hidden_size=64, num_attention_heads=2, num_key_value_heads=2, intermediate_size=64, attention_bias=True,
                   mlp_bias=True, tie_word_embeddings=True),
}
NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output", "self_attn.q_proj": "attn_q",
         "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
         "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate",
         "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "model.layers": "blk"}
KINDS = {"F32": gguf.GGMLQuantizationType.F32, "F16": gguf.GGMLQuantizationType.F16, "Q8_0": gguf.GGMLQuantizationType.Q8_0}
TEXTS = ["the cat sat on the mat", " it's 2024:  he'll pay $1,999.50\n\n", "naïve café — 日本語 🙂\t x", "",
         "<|end|>the<|end|>"]


def interleaved(array: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's order of rows: 0, d/2, 1, d/2 + 1, … within each head."""
    dim = len(array) // heads
    order = [head * dim + i // 2 + (i % 2) * (dim // 2) for head in range(heads) for i in range(dim)]
    return array[order]


def written(path, reference: LlamaForCausalLM, kind: str = "F32", more=lambda writer: None):
    """The GGUF file of a model, matrices in `kind`; the model is given the weights that the file has."""
    c, writer = reference.config, gguf.GGUFWriter(path, "llama")
    writer.add_block_count(c.num_hidden_layers)
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_key_length(c.head_dim)
    writer.add_value_length(c.head_dim)
    writer.add_rope_dimension_count(c.head_dim)
    writer.add_rope_freq_base(c.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    more(writer)
    for name, parameter in reference.named_parameters():
        with torch.no_grad():
            codes = gguf.quantize(parameter.numpy().copy(), KINDS[kind if parameter.ndim == 2 else "F32"])
            parameter.copy_(torch.from_numpy(gguf.dequantize(codes, KINDS[kind if parameter.ndim == 2 else "F32"])))
        for key, heads in (("q_proj", c.num_attention_heads), ("k_proj", c.num_key_value_heads)):
            codes = interleaved(codes, heads) if key in name else codes
        for theirs, ours in NAMES.items():
            name = name.replace(theirs, ours)
        writer.add_tensor(name, codes, raw_dtype=KINDS[kind] if parameter.ndim == 2 else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def llama(**sizes) -> LlamaForCausalLM:
    torch.manual_seed(5)
    model = LlamaForCausalLM(LlamaConfig(**dict(vocab_size=61, num_hidden_layers=3, max_position_embeddings=90) | sizes)).eval()
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, float("norm" in name), 0.15)
    return model


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_logits_are_those_of_transformers(tmp_path, sizes, kind):
    reference = llama(**sizes)
    model = cq.load(written(tmp_path / "a.gguf", reference, kind))
    for n in (1, 17, 90):
        ids = np.random.default_rng(n).integers(0, 61, n)
        with torch.no_grad():
            theirs = reference(torch.tensor(ids)[None]).logits[0].numpy()
        assert np.abs(model.logits([ids])[0] - theirs).max() < 1e-4
    assert model.config.tied == sizes["tie_word_embeddings"] and model.tokenizer is None


def test_weights_are_those_of_the_hugging_face_folder(tmp_path):
    reference = llama(**SIZES["grouped"])
    reference.save_pretrained(tmp_path / "folder")
    ours, theirs = cq.load(written(tmp_path / "a.gguf", reference)), cq.load(tmp_path / "folder")
    for (name, a), (_, b) in zip(ours.linears(), theirs.linears(), strict=True):
        assert np.array_equal(a.weight, b.weight), name


@pytest.mark.parametrize("key, value", [
    ("rope.scaling.type", "yarn"), ("expert_count", 8), ("attention.causal", False), ("attention.sliding_window", 4),
    ("attention.value_length", 16), ("rope.dimension_count", 8)])
def test_what_is_not_implemented_is_refused(tmp_path, key, value):
    def more(writer):
        writer.kv_data[0].pop("llama." + key, None)
        {str: writer.add_string, int: writer.add_uint32, bool: writer.add_bool}[type(value)]("llama." + key, value)
    with pytest.raises(UnsupportedError, match=f"llama.{key} .*not implemented"):
        cq.load(written(tmp_path / "a.gguf", llama(**SIZES["tied"]), more=more))


def test_scaled_frequencies_are_refused(tmp_path):
    def more(writer):
        writer.add_tensor("rope_freqs.weight", np.ones(16, np.float32))
    with pytest.raises(UnsupportedError, match="rope_freqs.weight"):
        cq.load(written(tmp_path / "a.gguf", llama(**SIZES["tied"]), more=more))


def test_another_architecture(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UnsupportedError, match="general.architecture 'mamba' is not implemented; these are: llama"):
        cq.load(tmp_path / "a.gguf")


def test_without_the_package_the_way_out_is_named(tmp_path, monkeypatch):
    path = written(tmp_path / "a.gguf", llama(**SIZES["tied"]))
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UnsupportedError, match=r"pip install 'cquant\[gguf\]'"):
        cq.load(path)


def test_a_configuration_of_its_own(tmp_path):
    path = written(tmp_path / "a.gguf", llama(**SIZES["tied"]))
    with pytest.raises(CqError, match="^config: .*leave this argument out"):
        cq.load(path, {"model_type": "llama"})


# --- tokenizers --------------------------------------------------------------------------------------------------------------

CUTS = {
    "gpt-2": pre_tokenizers.ByteLevel(False),
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(False)]),
}


def trained(cut) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = cut, decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<|end|>", "<|begin|>"], show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(["the cat sat on the mat that he 1999 2024 2000 it's he'll " * 9], trainer)
    return tokenizer


def vocabulary(tokenizer: Tokenizer, pre: str, **entries):
    """Writes a tokenizer's vocabulary as llama.cpp's converter does."""
    merges = json.loads(tokenizer.to_str())["model"]["merges"]

    def more(writer):
        size = tokenizer.get_vocab_size()
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre)
        writer.add_token_list([tokenizer.id_to_token(i) for i in range(size)])
        writer.add_token_types([3 if i < 2 else 1 for i in range(size)])
        writer.add_token_merges([" ".join(pair) for pair in merges])
        writer.add_eos_token_id(0)
        writer.add_bos_token_id(1)
        writer.add_chat_template("{{ messages }}")
        for key, value in entries.items():
            writer.add_bool("tokenizer.ggml." + key, value)
    return more


@pytest.mark.parametrize("pre", CUTS)
def test_ids_are_those_of_the_tokenizer_that_was_converted(tmp_path, pre):
    theirs = trained(CUTS[pre])
    path = written(tmp_path / "a.gguf", llama(**SIZES["tied"], vocab_size=310), more=vocabulary(theirs, pre))
    ours = cq.load(path).tokenizer
    for text in TEXTS:
        assert ours.encode(text).ids == theirs.encode(text).ids
        assert ours.decode(ours.encode(text).ids, skip_special_tokens=False) == text
    assert ours.token_to_id("<|end|>") == 0 and ours.decode([0]) == ""


def test_llama3_numbers_come_in_threes(tmp_path):
    theirs = trained(CUTS["gpt-2"])
    path = written(tmp_path / "a.gguf", llama(**SIZES["tied"], vocab_size=310), more=vocabulary(theirs, "llama-bpe"))
    ours = cq.load(path).tokenizer
    cut = [word for word, _ in ours.pre_tokenizer.pre_tokenize_str("it'S 12345 cats!\n\nno")]
    assert cut == ["it", "'S", "Ġ", "123", "45", "Ġcats", "!ĊĊ", "no"]
    assert ours.encode("the").ids[0] == 1  # this kind begins every text with bos unless the file says otherwise


def test_ends_are_added_where_the_file_asks(tmp_path):
    more = vocabulary(trained(CUTS["gpt-2"]), "gpt-2", add_bos_token=True, add_eos_token=True)
    model = cq.load(written(tmp_path / "a.gguf", llama(**SIZES["tied"], vocab_size=310), more=more))
    ids = list(model.tokenize("the cat"))
    assert (ids[0], ids[-1]) == (1, 0)
    assert ids[1:-1] == model.tokenizer.encode("the cat", add_special_tokens=False).ids


def test_ends_and_template_are_kept(tmp_path):
    more = vocabulary(trained(CUTS["gpt-2"]), "gpt-2")
    model = cq.load(written(tmp_path / "a.gguf", llama(**SIZES["tied"], vocab_size=310), more=more))
    cq.save(cq.quantize(model, cq.Dynamic()), tmp_path / "a.safetensors")
    for config in (model.config, cq.load(tmp_path / "a.safetensors").config):
        assert (config.bos_token_id, config.eos_token_ids, config.chat_template) == (1, (0,), "{{ messages }}")


def test_another_tokenizer_needs_a_tokenizer_json(tmp_path):
    def more(writer):
        writer.add_tokenizer_model("llama")
    path = written(tmp_path / "a.gguf", llama(**SIZES["tied"]), more=more)
    with pytest.raises(UnsupportedError, match="tokenizer 'llama'.*put the model's tokenizer.json beside the file"):
        cq.load(path)
    trained(CUTS["gpt-2"]).save(str(tmp_path / "tokenizer.json"))
    assert cq.load(path).tokenizer.encode("the cat").ids == trained(CUTS["gpt-2"]).encode("the cat").ids
