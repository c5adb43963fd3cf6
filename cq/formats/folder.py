"""A configuration and a tokenizer as the small files of a Hugging Face folder, the inverse of what families.py,
generation.py, sentence.py and tokenizer_files.py read. Must not know weights."""

import json
from typing import Any

from tokenizers import Tokenizer

from ..errors import UnsupportedError
from ..model.config import Config
from .config_json import NAMES
from .deberta import READERS as DEBERTAS
from .deberta import as_deberta
from .defaults import DEFAULTS
from .sentence import POOLINGS

_CLASSES = {  # what the names of a family's classes in transformers begin with
    "bert": "Bert",
    "roberta": "Roberta",
    "xlm-roberta": "XLMRoberta",
    "camembert": "Camembert",
    "distilbert": "DistilBert",
    "llama": "Llama",
    "mistral": "Mistral",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "electra": "Electra",
    "mpnet": "MPNet",
    "deberta-v2": "DebertaV2",
    "deberta-v2-new": "DebertaV2",
    "t5": "T5Encoder",
    "t5-gated": "T5Encoder",
    "granite": "Granite",
    "smollm3": "SmolLM3",
    "olmo2": "Olmo2",
    "olmo3": "Olmo3",
}
_TYPES = {"deberta-v2-new": "deberta-v2", "t5-gated": "t5"}  # of families that have another name here
_ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "silu": "silu", "relu": "relu"}
_ROPE = {  # Config.rope_scaling's name → config.json's
    "kind": "rope_type",
    "original_positions": "original_max_position_embeddings",
    "short_factors": "short_factor",
    "long_factors": "long_factor",
}
_POOLINGS = {ours: theirs for theirs, ours in POOLINGS.items()}
_PAIRS = {
    "identity": "torch.nn.modules.linear.Identity",
    "sigmoid": "torch.nn.modules.activation.Sigmoid",
    "tanh": "torch.nn.modules.activation.Tanh",
}


def folder_files(config: Config, tokenizer: Tokenizer | None, biases: frozenset[str]) -> dict[str, bytes]:
    """Path in the folder → content, without weights. biases: the modules within a layer that have one, such as
    "attention.query". Raises UnsupportedError for families and for modules after pooling that are not written."""
    files: dict[str, Any] = {"config.json": config_json(config, biases)}
    if tokenizer is not None or config.special_tokens is not None:
        files["tokenizer_config.json"] = _tokenizer_config(config, tokenizer)
    if config.causal and config.lm_head:
        ids = {name: value for name, value in _ids(config).items() if value is not None}
        files["generation_config.json"] = (config.generation or {}) | ids
    found = {name: (json.dumps(values, indent=2) + "\n").encode() for name, values in files.items()}
    if tokenizer is not None:
        found["tokenizer.json"] = tokenizer.to_str().encode()
    return found | _sentence_files(config)


def config_json(config: Config, biases: frozenset[str]) -> dict[str, Any]:
    """The entries of config.json."""
    family = config.family
    if family not in _CLASSES:
        raise UnsupportedError(f"config.json of {family} models is not written; it is of: {', '.join(_CLASSES)}")
    entries = {
        "architectures": [_CLASSES[family] + _kind(config)],
        "model_type": _TYPES.get(family, family),
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.intermediate_size,
        "hidden_act": _ACTIVATIONS[config.activation],
        "max_position_embeddings": config.position_offset + config.max_positions,
        "pad_token_id": config.position_offset - 1 if config.position_offset else config.pad_token_id,
        "torch_dtype": "float32",
    }
    entries |= _decoder(config, biases) if config.causal else _encoder(config)
    if config.labels:
        entries["id2label"] = {str(i): label for i, label in enumerate(config.labels)}
    if config.classifier is not None:
        entries["sentence_transformers"] = {"activation_fn": _PAIRS[config.pair_activation]}
        if config.text_activation == "sigmoid":
            entries["problem_type"] = "multi_label_classification"
    if config.lm_head:
        entries["tie_word_embeddings"] = config.tied
    own = NAMES.get(family, {})
    return {own.get(name, name): value for name, value in entries.items()}


def _kind(config: Config) -> str:
    """What the class's name ends in."""
    if config.classifier is not None:
        return "ForSequenceClassification"
    if config.token_head in ("labels", "spans"):
        return {"labels": "ForTokenClassification", "spans": "ForQuestionAnswering"}[config.token_head]
    if config.masked_lm:
        return "ForMaskedLM"
    return "ForCausalLM" if config.lm_head else "Model"


def _encoder(config: Config) -> dict[str, Any]:
    if config.family == "distilbert":
        return {}
    if config.family in ("t5", "t5-gated"):
        return _t5(config)
    found = {"type_vocab_size": config.type_vocab_size, "layer_norm_eps": config.norm_eps}
    if config.family == "electra":
        found["embedding_size"] = config.embedding_width or config.hidden_size
    if config.family == "mpnet":
        del found["type_vocab_size"]
    return found | (as_deberta(config) if config.family in DEBERTAS else {})


def _t5(config: Config) -> dict[str, Any]:
    bias = config.position_bias or {}
    activation = "gelu" if config.gated and config.activation == "gelu_tanh" else _ACTIVATIONS[config.activation]
    return {
        "head_dim": config.head_dim,
        "layer_norm_epsilon": config.norm_eps,
        "feed_forward_proj": "gated-" * config.gated + activation,
        "relative_attention_num_buckets": bias.get("buckets"),
        "relative_attention_max_distance": bias.get("distance"),
    }


def _decoder(config: Config, biases: frozenset[str]) -> dict[str, Any]:
    own = {
        "sliding_window": config.window,
        "use_sliding_window": config.window is not None,
        "attention_bias": "attention.query" in biases,
        "mlp_bias": "ffn.up" in biases,
        "embedding_multiplier": config.embedding_scale,
        "residual_multiplier": config.residual_scale,
        "logits_scaling": 1 / config.logits_scale,
        "attention_multiplier": config.score_scale,
    }
    entries: dict[str, Any] = {name: value for name, value in own.items() if name in DEFAULTS[config.family]}
    if (config.window is not None and config.family != "mistral") or config.family == "olmo3":
        windows = [config.layer(i).window for i in range(config.num_layers)]
        entries["layer_types"] = ["full_attention" if one is None else "sliding_attention" for one in windows]
    if config.rotated:
        entries["no_rope_layers"] = list(map(int, config.rotated))
    heads = {"num_key_value_heads": config.num_kv_heads, "head_dim": config.head_dim}
    return heads | {"rms_norm_eps": config.norm_eps} | _rotary(config) | entries | _ids(config)


def _rotary(config: Config) -> dict[str, Any]:
    scaling = config.rope_scaling
    said = None if scaling is None else {_ROPE.get(name, name): scaling[name] for name in scaling}
    if config.local_rope_theta is None:
        return {"rope_theta": config.rope_theta, "rope_scaling": said}
    thetas = {"full_attention": config.rope_theta, "sliding_attention": config.local_rope_theta}
    kinds: dict[str, Any] = {kind: {"rope_type": "default", "rope_theta": theta} for kind, theta in thetas.items()}
    kinds["full_attention"] |= said or {}
    return {"rope_parameters": kinds}


def _ids(config: Config) -> dict[str, Any]:
    ends = list(config.eos_token_ids)
    return {
        "bos_token_id": config.bos_token_id,
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        "pad_token_id": config.pad_token_id,
    }


def _tokenizer_config(config: Config, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """A class that takes tokenizer.json as it is."""
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    values: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config.max_length,
        "model_input_names": inputs if config.token_types else inputs[::2],
        "truncation_side": config.truncation_side,
    }
    template = config.chat_template
    if template is not None:
        several = isinstance(template, dict) and [{"name": name, "template": template[name]} for name in template]
        values["chat_template"] = several or template
    return values | named_tokens(config, tokenizer)


def named_tokens(config: Config, tokenizer: Tokenizer | None) -> dict[str, str]:
    """Special tokens by name; where none are kept, those that ids say."""
    if config.special_tokens is not None or tokenizer is None:
        return config.special_tokens or {}
    if config.head_size:  # as a chat template sees them
        ids = {"bos_token": config.bos_token_id, "eos_token": next(iter(config.eos_token_ids), None)}
    else:
        ids = {"pad_token": config.pad_token_id}
    tokens = {name: tokenizer.id_to_token(i) for name, i in ids.items() if i is not None}
    return {name: token for name, token in tokens.items() if token}


def _sentence_files(config: Config) -> dict[str, bytes]:
    """Of models that pool otherwise than a plain encoder is pooled, those that sentence-transformers reads."""
    if config.tail:
        raise UnsupportedError("modules after pooling are not written, only Normalize")
    said = (config.normalize, config.strip, config.prompts, config.truncate_dim, not config.include_prompt)
    if config.pooling is None or (config.pooling == "mean" and not any(said)):
        return {}
    kinds = ["Transformer", "Pooling"] + ["Normalize"] * config.normalize
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    modes = [_POOLINGS[mode] for mode in config.modes]
    pooling = {
        "word_embedding_dimension": config.hidden_size,
        "pooling_mode": modes[0] if len(modes) == 1 else modes,
        "include_prompt": config.include_prompt,
    }
    texts: dict[str, Any] = {
        "prompts": config.prompts or {},
        "default_prompt_name": config.default_prompt,
        "truncate_dim": config.truncate_dim,
    }
    if not config.strip:
        texts["__version__"] = {"sentence_transformers": "5.4.0"}
    files = {"modules.json": modules, "1_Pooling/config.json": pooling, "config_sentence_transformers.json": texts}
    return {name: json.dumps(values, indent=2).encode() for name, values in files.items()}
