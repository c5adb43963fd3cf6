"""Every key that transformers, sentence-transformers or a GGUF file may have is honoured, irrelevant or refused; the
page says the same as the tables; what is refused is named."""

import json
from pathlib import Path

import gguf
import pytest
from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import LayerNorm, Pooling
from transformers import CONFIG_MAPPING, AutoConfig, GenerationConfig, PreTrainedTokenizerFast

from cq.errors import FormatError, UnsupportedError
from cq.formats.defaults import DEFAULTS
from cq.formats.huggingface import read_folder
from cq.formats.key_tables import TABLES, TITLES
from cq.formats.keys import page, rule_of
from cq.formats.name_tables import FAMILIES

# what real files have beside the classes' own, of several years
_FOUND = {
    "config.json": (
        "quantization_config rope_scaling rope_theta torch_dtype _name_or_path finetuning_task "
        "compression_config position_embedding_type sentence_transformers "
        "sbert_ce_default_activation_function num_labels "
        "gradient_checkpointing tokenizer_class task_specific_params n_ctx prefix pruned_heads auto_map "
        "attn_implementation original_max_position_embeddings sliding_window_pattern rope_local_base_freq rotary_pct "
        "rotary_emb_base partial_rotary_factor cache_implementation embd_pdrop resid_pdrop max_window_layers "
        "is_causal per_layer_config dense_act_fn is_gated_act"
    ),
    "quantization_config": (
        "quant_method format config_groups ignore quantization_status kv_cache_scheme sparsity_config transform_config "
        "global_compression_ratio version run_compressed"
    ),
    "config_groups": "targets weights input_activations output_activations format",
    "weights and input_activations": (
        "num_bits type symmetric strategy group_size block_structure dynamic actorder observer observer_kwargs "
        "scale_dtype zp_dtype"
    ),
    "tokenizer_config.json": (
        "tokenizer_class do_lower_case strip_accents tokenize_chinese_chars add_bos_token add_eos_token "
        "add_prefix_space model_max_length padding_side truncation_side model_input_names "
        "added_tokens_decoder chat_template clean_up_tokenization_spaces legacy sp_model_kwargs "
        "use_default_system_prompt never_split do_basic_tokenize errors name_or_path special_tokens_map_file "
        "processor_class auto_map split_special_tokens max_length stride truncation_strategy "
        "pad_to_multiple_of pad_token_type_id spaces_between_special_tokens trim_offsets keep_accents remove_space "
        "extra_ids"
    ),
    "sentence_bert_config.json": ("max_seq_length do_lower_case model_args tokenizer_args config_args"),
    "config_sentence_transformers.json": (
        "__version__ prompts default_prompt_name similarity_fn_name truncate_dim model_type activation_fn"
    ),
    "modules.json": ("idx name path type kwargs"),
    "Pooling/config.json": (
        "word_embedding_dimension pooling_mode_cls_token pooling_mode_mean_tokens pooling_mode_max_tokens "
        "pooling_mode_mean_sqrt_len_tokens pooling_mode_weightedmean_tokens pooling_mode_lasttoken"
    ),
    "tokenizer.json": ("version truncation padding added_tokens normalizer pre_tokenizer post_processor decoder model"),
}
_THEIRS = [family for family in FAMILIES if family in CONFIG_MAPPING]  # test_configs.py has the others'
_KEYS = {
    "config.json": {key for family in _THEIRS for key in AutoConfig.for_model(family).to_dict()},
    "generation_config.json": set(vars(GenerationConfig())),
    "tokenizer_config.json": {*PreTrainedTokenizerFast.SPECIAL_TOKENS_ATTRIBUTES, "additional_special_tokens"},
    "special_tokens_map.json": {*PreTrainedTokenizerFast.SPECIAL_TOKENS_ATTRIBUTES, "additional_special_tokens"},
    "sentence_bert_config.json": set(Transformer.config_keys),
    "Pooling/config.json": set(Pooling.config_keys),
    "Dense/config.json": set(Dense.config_keys),
    "LayerNorm/config.json": set(LayerNorm.config_keys),
    "Normalize/config.json": set(Normalize.config_keys),
    "quantization_config": set(QuantizationConfig.model_fields),
    "config_groups": set(QuantizationScheme.model_fields),
    "weights and input_activations": set(QuantizationArgs.model_fields),
}


def _gguf_keys(group) -> set[str]:
    found = set()
    for value in vars(group).values():
        found |= _gguf_keys(value) if isinstance(value, type) else {value} if isinstance(value, str) else set()
    return {key.replace("{arch}", "ARCH") for key in found if "." in key and not key.startswith("gguf.")}


_KEYS["GGUF"] = _gguf_keys(gguf.Keys)
_EVERY = [(file, key) for file in TABLES for key in sorted(_KEYS.get(file, set()) | set(_FOUND.get(file, "").split()))]


@pytest.mark.parametrize("file, key", _EVERY, ids="/".join)
def test_every_key_is_one_of_three(file, key):
    rule = rule_of(file, key)
    assert rule is not None and rule.verdict in ("honoured", "irrelevant", "refused")


def test_no_key_is_two_of_three():
    for file, table in TABLES.items():
        keys = [key for rows in table.values() for key in rows]
        assert len(keys) == len(set(keys)), file
    assert set(TITLES) == set(TABLES)


def test_the_page_is_made_of_the_tables():
    assert (Path(__file__).parents[2] / "docs" / "checkpoint-files.md").read_text(encoding="utf-8") == page()


def change(file, **entries) -> None:
    values = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(values | entries))


@pytest.mark.parametrize("file", ["config.json", "generation_config.json", "tokenizer_config.json"])
def test_what_is_refused_is_named(llama, file):
    for key, row in TABLES[file]["refused"].items():
        allowed = row[1:] if isinstance(row, tuple) else ()
        before = (llama / file).read_text() if (llama / file).exists() else "{}"
        for value in (None, *allowed):
            change(llama / file, **{key: value})
            read_folder(llama)
        change(llama / file, **{key: 7.5})
        with pytest.raises(UnsupportedError, match=f"{file}: {key} 7.5 is not implemented"):
            read_folder(llama)
        (llama / file).write_text(before)


@pytest.mark.parametrize(
    "file, values, words",
    [
        ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, "transformer_task 'fill-mask'"),
        ("sentence_roberta_config.json", {"processing_kwargs": {"text": {}}}, "processing_kwargs .*"),
        ("config_sentence_transformers.json", {"model_type": "SparseEncoder"}, "model_type 'SparseEncoder'"),
    ],
)
def test_what_is_refused_of_sentence_transformers_is_named(bert, file, values, words):
    (bert / file).write_text(json.dumps(values))
    with pytest.raises(UnsupportedError, match=f"{file}: {words} is not implemented"):
        read_folder(bert)


@pytest.mark.parametrize(
    "file, values, words",
    [
        ("config_sentence_transformers.json", {"prompts": ["a"]}, "prompts must map"),
        ("config_sentence_transformers.json", {"prompts": {"a": 1}}, "prompts must map"),
        ("config_sentence_transformers.json", {"default_prompt_name": "q"}, "default_prompt_name 'q' is none"),
        ("config_sentence_transformers.json", {"truncate_dim": 0}, "truncate_dim must be a positive"),
        ("tokenizer_config.json", {"truncation_side": "top"}, "truncation_side must be"),
        ("tokenizer_config.json", {"model_input_names": "input_ids"}, "model_input_names must be"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": {"content": "a"}}}, "must map ids to tokens"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"3": 4}}, "4 is no token"),
        ("tokenizer_config.json", {"pad_token": 4}, "4 is no token"),
        ("tokenizer_config.json", {"extra_special_tokens": "a"}, "must be a list of tokens"),
        ("tokenizer_config.json", {"tokenizer_class": 4}, "tokenizer_class must be"),
    ],
)
def test_damage_is_named(bert, file, values, words):
    (bert / file).write_text(json.dumps(values))
    with pytest.raises(FormatError, match=f"{file}.*{words}"):
        read_folder(bert)


@pytest.mark.parametrize("family", _THEIRS)
def test_defaults_are_those_of_the_familys_class(family):
    """`sliding_window` of Qwen, which is null until it is used, and what is worked out of others are left to
    read_config."""
    theirs, ours = AutoConfig.for_model(family), DEFAULTS[family]
    if family.startswith("qwen"):
        theirs, ours = type(theirs)(use_sliding_window=True), ours | {"use_sliding_window": True}
    for key, value in ours.items():
        assert getattr(theirs, key) == value, key
