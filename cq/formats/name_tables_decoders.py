"""Names of weights of decoders, as Hugging Face writes them beside this library's own. Holds tables only."""

from dataclasses import replace

from .family import QKV, Family

_LLAMA = Family(
    prefix="model.",
    layer="layers.",
    outside={"embed_tokens.weight": "embed.word", "norm": "final_norm", "lm_head": "head"},
    inside={
        "self_attn.q_proj": "attention.query",
        "self_attn.k_proj": "attention.key",
        "self_attn.v_proj": "attention.value",
        "self_attn.o_proj": "attention.output",
        "self_attn.q_norm": "attention.query_norm",
        "self_attn.k_norm": "attention.key_norm",
        "input_layernorm": "attention_norm",
        "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "ffn.gate",
        "mlp.up_proj": "ffn.up",
        "mlp.down_proj": "ffn.down",
    },
    ignored=("rotary_emb.inv_freq", "self_attn.rotary_emb.inv_freq", "score."),
    biases=None,
    classifier={"score": "classifier.scores"},
    labels="score",
)
_GPT2 = Family(
    prefix="transformer.",
    layer="h.",
    outside={"wte.weight": "embed.word", "wpe.weight": "embed.position", "ln_f": "final_norm", "lm_head": "head"},
    inside={
        "ln_1": "attention_norm",
        "attn.c_attn": "attention.qkv",
        "attn.c_proj": "attention.output",
        "ln_2": "ffn_norm",
        "mlp.c_fc": "ffn.up",
        "mlp.c_proj": "ffn.down",
    },
    ignored=("attn.bias", "attn.masked_bias", "score.", "classifier."),
    classifier={"score": "classifier.scores"},
    biases=("final_norm", "attention", "attention_norm", "ffn", "ffn_norm"),
    fused=QKV,
    turned=True,
)
_PHI3 = replace(
    _LLAMA,
    inside=_LLAMA.inside | {"self_attn.qkv_proj": "attention.qkv", "mlp.gate_up_proj": "ffn.gate_up"},
    biases=(),
    fused=QKV | {"ffn.gate_up": ("ffn.gate", "ffn.up")},
)
_OLMO2 = replace(
    _LLAMA,
    inside={name: part for name, part in _LLAMA.inside.items() if name != "input_layernorm"}
    | {"post_attention_layernorm": "attention.output_norm", "post_feedforward_layernorm": "ffn.output_norm"},
)
_GEMMA = replace(
    _LLAMA,
    inside=_LLAMA.inside
    | {
        "post_attention_layernorm": "attention.output_norm",
        "pre_feedforward_layernorm": "ffn_norm",
        "post_feedforward_layernorm": "ffn.output_norm",
    },
    raised=True,
)
_GPT_NEOX = Family(
    prefix="gpt_neox.",
    layer="layers.",
    outside={"embed_in.weight": "embed.word", "final_layer_norm": "final_norm", "lm_head": "head", "embed_out": "head"},
    inside={
        "input_layernorm": "attention_norm",
        "attention.query_key_value": "attention.qkv",
        "attention.dense": "attention.output",
        "post_attention_layernorm": "ffn_norm",
        "mlp.dense_h_to_4h": "ffn.up",
        "mlp.dense_4h_to_h": "ffn.down",
    },
    ignored=("attention.bias", "attention.masked_bias", "attention.rotary_emb.inv_freq", "score.", "classifier."),
    classifier={"score": "classifier.scores"},
    biases=("final_norm", "attention_norm", "ffn", "ffn_norm"),
    fused=QKV,
    by_head=True,
)
DECODERS = {
    "llama": _LLAMA,
    "mistral": replace(_LLAMA, biases=()),
    "qwen2": replace(_LLAMA, biases=("attention.query", "attention.key", "attention.value")),
    "qwen3": _LLAMA,
    "gpt2": _GPT2,
    "phi3": _PHI3,
    "granite": _LLAMA,
    "smollm3": _LLAMA,
    "olmo2": _OLMO2,
    "olmo3": _OLMO2,
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
    "gpt_neox": _GPT_NEOX,
}
