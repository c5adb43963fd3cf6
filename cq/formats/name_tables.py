"""Names of weights by family, as Hugging Face and llama.cpp write them beside this library's own. Holds tables only."""

from dataclasses import replace

from .family import Family
from .name_tables_decoders import DECODERS, QKV
from .name_tables_encoders import ENCODERS

_BERT = Family(
    prefix="bert.",
    layer="encoder.layer.",
    outside={
        "embeddings.word_embeddings.weight": "embed.word",
        "embeddings.position_embeddings.weight": "embed.position",
        "embeddings.token_type_embeddings.weight": "embed.type",
        "embeddings.LayerNorm": "embed.norm",
    },
    inside={
        "attention.self.query": "attention.query",
        "attention.self.key": "attention.key",
        "attention.self.value": "attention.value",
        "attention.output.dense": "attention.output",
        "attention.output.LayerNorm": "attention_norm",
        "intermediate.dense": "ffn.up",
        "output.dense": "ffn.down",
        "output.LayerNorm": "ffn_norm",
    },
    ignored=("embeddings.position_ids", "embeddings.token_type_ids", "pooler.", "cls.", "classifier.", "qa_outputs."),
    biases=("embed.norm", "attention", "attention_norm", "ffn", "ffn_norm", "classifier"),
    classifier={"pooler.dense": "classifier.dense", "classifier": "classifier.scores"},
    words={
        "cls.predictions.transform.dense": "transform.dense",
        "cls.predictions.transform.LayerNorm": "transform.norm",
        "cls.predictions.decoder": "head",
        "cls.predictions.bias": "head.bias",
    },
)
_ROBERTA = replace(
    _BERT,
    prefix="roberta.",
    ignored=(
        "embeddings.position_ids",
        "embeddings.token_type_ids",
        "pooler.",
        "lm_head.",
        "classifier.",
        "qa_outputs.",
    ),
    classifier={"classifier.dense": "classifier.dense", "classifier.out_proj": "classifier.scores"},
    words={
        "lm_head.dense": "transform.dense",
        "lm_head.layer_norm": "transform.norm",
        "lm_head.decoder": "head",
        "lm_head.bias": "head.bias",
    },
)
_ELECTRA = replace(
    _BERT,
    prefix="electra.",
    words=None,
    outside=_BERT.outside | {"embeddings_project": "embed.project"},
    ignored=(
        "embeddings.position_ids",
        "embeddings.token_type_ids",
        "discriminator_predictions.",
        "generator_predictions.",
        "generator_lm_head.",
        "classifier.",
        "qa_outputs.",
    ),
    biases=("embed.norm", "embed.project", "attention", "attention_norm", "ffn", "ffn_norm", "classifier"),
    classifier=_ROBERTA.classifier,
)
_DISTILBERT = Family(
    prefix="distilbert.",
    layer="transformer.layer.",
    outside={
        "embeddings.word_embeddings.weight": "embed.word",
        "embeddings.position_embeddings.weight": "embed.position",
        "embeddings.LayerNorm": "embed.norm",
    },
    inside={
        "attention.q_lin": "attention.query",
        "attention.k_lin": "attention.key",
        "attention.v_lin": "attention.value",
        "attention.out_lin": "attention.output",
        "sa_layer_norm": "attention_norm",
        "ffn.lin1": "ffn.up",
        "ffn.lin2": "ffn.down",
        "output_layer_norm": "ffn_norm",
    },
    ignored=("embeddings.position_ids", "vocab_", "pre_classifier.", "classifier.", "qa_outputs."),
    biases=_BERT.biases,
    classifier={"pre_classifier": "classifier.dense", "classifier": "classifier.scores"},
    words={"vocab_transform": "transform.dense", "vocab_layer_norm": "transform.norm", "vocab_projector": "head"},
)
FAMILIES = (
    {
        "bert": _BERT,
        "roberta": _ROBERTA,
        "xlm-roberta": _ROBERTA,
        "camembert": _ROBERTA,
        "distilbert": _DISTILBERT,
        "electra": _ELECTRA,
    }
    | ENCODERS
    | DECODERS
)
_GGUF_LLAMA = Family(
    prefix="",
    layer="blk.",
    outside={"token_embd.weight": "embed.word", "output_norm": "final_norm", "output": "head"},
    inside={
        "attn_q": "attention.query",
        "attn_k": "attention.key",
        "attn_v": "attention.value",
        "attn_output": "attention.output",
        "attn_norm": "attention_norm",
        "ffn_norm": "ffn_norm",
        "ffn_gate": "ffn.gate",
        "ffn_up": "ffn.up",
        "ffn_down": "ffn.down",
    },
    ignored=("attn_rot_embd.", "rope_freqs."),  # the latter is not a weight but part of the configuration
    biases=None,
    paired=True,
)
_GGUF_QWEN2 = replace(_GGUF_LLAMA, ignored=(), paired=False)
_GGUF_GPT2 = replace(
    _GGUF_QWEN2,
    outside=_GGUF_LLAMA.outside | {"position_embd.weight": "embed.position"},
    inside={
        "attn_norm": "attention_norm",
        "attn_qkv": "attention.qkv",
        "attn_output": "attention.output",
        "ffn_norm": "ffn_norm",
        "ffn_up": "ffn.up",
        "ffn_down": "ffn.down",
    },
    fused=QKV,
)
_GGUF_BERT = replace(
    _GGUF_QWEN2,
    outside={
        "token_embd.weight": "embed.word",
        "position_embd.weight": "embed.position",
        "token_types.weight": "embed.type",
        "token_embd_norm": "embed.norm",
    },
    inside={
        "attn_q": "attention.query",
        "attn_k": "attention.key",
        "attn_v": "attention.value",
        "attn_output": "attention.output",
        "attn_output_norm": "attention_norm",
        "ffn_up": "ffn.up",
        "ffn_down": "ffn.down",
        "layer_output_norm": "ffn_norm",
    },
)
_GGUF_OLMO2 = replace(
    _GGUF_QWEN2,
    inside={name: part for name, part in _GGUF_QWEN2.inside.items() if name not in ("attn_norm", "ffn_norm")}
    | {
        "attn_q_norm": "attention.query_norm",
        "attn_k_norm": "attention.key_norm",
        "post_attention_norm": "attention.output_norm",
        "post_ffw_norm": "ffn.output_norm",
    },
)
_GGUF_GEMMA2 = replace(
    _GGUF_QWEN2,
    inside=_GGUF_QWEN2.inside | {"post_attention_norm": "attention.output_norm", "post_ffw_norm": "ffn.output_norm"},
)
GGUF = {  # llama.cpp's names, by general.architecture
    "llama": _GGUF_LLAMA,
    "mistral3": _GGUF_LLAMA,
    "qwen2": _GGUF_QWEN2,
    "qwen3": replace(
        _GGUF_QWEN2,
        inside=_GGUF_QWEN2.inside | {"attn_q_norm": "attention.query_norm", "attn_k_norm": "attention.key_norm"},
    ),
    "gpt2": _GGUF_GPT2,
    "granite": _GGUF_LLAMA,
    "olmo2": _GGUF_OLMO2,
    "gemma2": _GGUF_GEMMA2,
    "bert": _GGUF_BERT,
}
