"""Names of weights by family, as Hugging Face and llama.cpp write them beside this library's own. Holds tables only."""

from dataclasses import replace

from .family import QKV, Family
from .name_tables_decoders import DECODERS
from .name_tables_encoders import ENCODERS

FAMILIES = ENCODERS | DECODERS
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
