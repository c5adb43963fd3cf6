"""Names of weights by family, as Hugging Face and llama.cpp write them beside this library's own. Holds tables only."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Family:
    """How Hugging Face or llama.cpp names a family. A table's keys are modules, whose leaves are weight and bias, or
    tensors."""

    prefix: str  # stands before every name in checkpoints that carry a head
    layer: str  # what stands before a layer's number
    outside: dict[str, str]  # name outside the layers → canonical
    inside: dict[str, str]  # name within a layer → canonical, within a layer
    ignored: tuple[str, ...]  # beginnings of names, after prefix or layer, that no hidden state depends on
    # canonical modules that always have a bias; None: the checkpoint's configuration says
    biases: tuple[str, ...] | None
    classifier: dict[str, str] | None = None  # names of a sequence classifier's head → canonical
    words: dict[str, str] | None = None  # the same of a masked language model's
    labels: str = "classifier"  # module of the head that gives every token's labels
    fused: str | None = None  # canonical module that holds queries, keys and values
    turned: bool = False  # matrices in layers are (in, out)
    # rows of queries and keys: what turns together side by side, not half a head apart
    paired: bool = False


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
    fused="attention.qkv",
    turned=True,
)
FAMILIES = {
    "bert": _BERT,
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "distilbert": _DISTILBERT,
    "llama": _LLAMA,
    "mistral": replace(_LLAMA, biases=()),
    "qwen2": replace(_LLAMA, biases=("attention.query", "attention.key", "attention.value")),
    "qwen3": _LLAMA,
    "gpt2": _GPT2,
}
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
    fused="attention.qkv",
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
GGUF = {  # llama.cpp's names, by general.architecture
    "llama": _GGUF_LLAMA,
    "mistral3": _GGUF_LLAMA,
    "qwen2": _GGUF_QWEN2,
    "qwen3": replace(
        _GGUF_QWEN2,
        inside=_GGUF_QWEN2.inside | {"attn_q_norm": "attention.query_norm", "attn_k_norm": "attention.key_norm"},
    ),
    "gpt2": _GGUF_GPT2,
    "bert": _GGUF_BERT,
}
