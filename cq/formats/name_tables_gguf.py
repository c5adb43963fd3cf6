"""Names of weights of GGUF files, by general.architecture, as llama.cpp writes them beside this library's own. Must
not know files."""

from dataclasses import replace

from .family import QKV, Family

_QUERY = {"attn_q": "attention.query", "attn_k": "attention.key", "attn_v": "attention.value"}
_ATTENTION = _QUERY | {"attn_qkv": "attention.qkv", "attn_output": "attention.output"}
_FFN = {"ffn_up": "ffn.up", "ffn_down": "ffn.down"}
_QK_NORM = {"attn_q_norm": "attention.query_norm", "attn_k_norm": "attention.key_norm"}
_OUTPUT_NORMS = {"post_attention_norm": "attention.output_norm", "post_ffw_norm": "ffn.output_norm"}
_FIRST_NORMS = {"attn_norm": "attention_norm", "ffn_norm": "ffn_norm"}
_LAST_NORMS = {"attn_output_norm": "attention_norm", "layer_output_norm": "ffn_norm"}
_GATED = _ATTENTION | _FIRST_NORMS | _FFN | {"ffn_gate": "ffn.gate"}
_QWEN2 = Family(
    prefix="",
    layer="blk.",
    outside={"token_embd.weight": "embed.word", "output_norm": "final_norm", "output": "head"},
    inside=_GATED,
    ignored=(),
    biases=None,
    fused=QKV,
)
_LLAMA = replace(
    _QWEN2,
    ignored=("attn_rot_embd.", "rope_freqs."),  # the latter is not a weight but part of the configuration
    paired=True,
)
_PHI3 = replace(
    _QWEN2,
    inside=_ATTENTION | _FIRST_NORMS | {"ffn_up": "ffn.both", "ffn_down": "ffn.down"},
    ignored=("rope_factors_",),  # part of the configuration
    fused=QKV | {"ffn.both": ("ffn.gate", "ffn.up")},
)
_GPT = replace(
    _QWEN2, outside=_QWEN2.outside | {"position_embd.weight": "embed.position"}, inside=_ATTENTION | _FIRST_NORMS | _FFN
)
_BERT = replace(
    _QWEN2,
    outside={
        "token_embd.weight": "embed.word",
        "position_embd.weight": "embed.position",
        "token_types.weight": "embed.type",
        "token_embd_norm": "embed.norm",
    },
    inside=_ATTENTION | _LAST_NORMS | _FFN,
)
_ROTARY = replace(
    _BERT,
    outside={name: ours for name, ours in _BERT.outside.items() if ours != "embed.position"},
    inside=_BERT.inside | {"ffn_gate": "ffn.gate"},
)
_GEMMA2 = replace(_QWEN2, inside=_GATED | _OUTPUT_NORMS)
_GEMMA3 = replace(_QWEN2, inside=_GATED | _OUTPUT_NORMS | _QK_NORM)
_T5 = replace(
    _QWEN2,
    layer="enc.blk.",
    outside={
        "token_embd.weight": "embed.word",
        "enc.blk.0.attn_rel_b.weight": "embed.buckets",
        "enc.output_norm": "final_norm",
    },
    inside=_QUERY | {"attn_o": "attention.output"} | _FIRST_NORMS | _FFN | {"ffn_gate": "ffn.gate"},
    ignored=("dec.", "output."),
)
GGUF = {
    "llama": _LLAMA,
    "mistral3": _LLAMA,
    "qwen2": _QWEN2,
    "qwen3": replace(_QWEN2, inside=_GATED | _QK_NORM),
    "granite": _LLAMA,
    "phi3": _PHI3,
    "smollm3": _LLAMA,
    "olmo2": replace(_QWEN2, inside=_ATTENTION | _OUTPUT_NORMS | _QK_NORM | _FFN | {"ffn_gate": "ffn.gate"}),
    "gemma2": _GEMMA2,
    "gemma3": _GEMMA3,
    "gemma-embedding": replace(
        _GEMMA3, outside=_QWEN2.outside | {"dense_2": "tail.0", "dense_3": "tail.1"}, ignored=("output.",)
    ),
    "gptneox": _GPT,
    "gpt2": _GPT,
    "bert": _BERT,
    "nomic-bert": _ROTARY,
    "jina-bert-v2": replace(
        _ROTARY, inside=_BERT.inside | {"ffn_up": "ffn.both"}, fused=QKV | {"ffn.both": ("ffn.gate", "ffn.up")}
    ),
    "jina-bert-v2 apart": _ROTARY,  # of converters until 2025, which wrote the gate by itself
    "modern-bert": replace(
        _PHI3,
        outside={"token_embd.weight": "embed.word", "token_embd_norm": "embed.norm", "output_norm": "final_norm"},
        ignored=("cls.",),  # heads, which no hidden state depends on
    ),
    "t5": _T5,
    "t5encoder": _T5,
}


def table_of(architecture: str, tensors: dict) -> str:
    """The name of the architecture's table; of one whose files are of two kinds, of that which these tensors' are."""
    apart = f"{architecture} apart"
    return apart if apart in GGUF and "blk.0.ffn_gate.weight" in tensors else architecture
