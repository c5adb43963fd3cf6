"""Names of weights of encoders, as Hugging Face writes them beside this library's own. Holds tables only."""

from dataclasses import replace

from .family import QKV, Family

_BERT_BIASES = ("embed.norm", "attention", "attention_norm", "ffn", "ffn_norm", "classifier")
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
    biases=_BERT_BIASES,
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
    biases=(*_BERT_BIASES, "embed.project"),
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
    biases=_BERT_BIASES,
    classifier={"pre_classifier": "classifier.dense", "classifier": "classifier.scores"},
    words={"vocab_transform": "transform.dense", "vocab_layer_norm": "transform.norm", "vocab_projector": "head"},
)
_MPNET = Family(
    prefix="mpnet.",
    layer="encoder.layer.",
    outside={
        "embeddings.word_embeddings.weight": "embed.word",
        "embeddings.position_embeddings.weight": "embed.position",
        "embeddings.LayerNorm": "embed.norm",
        "encoder.relative_attention_bias.weight": "embed.buckets",
    },
    inside={
        "attention.attn.q": "attention.query",
        "attention.attn.k": "attention.key",
        "attention.attn.v": "attention.value",
        "attention.attn.o": "attention.output",
        "attention.LayerNorm": "attention_norm",
        "intermediate.dense": "ffn.up",
        "output.dense": "ffn.down",
        "output.LayerNorm": "ffn_norm",
    },
    ignored=("embeddings.position_ids", "pooler.", "lm_head.", "classifier.", "qa_outputs."),
    biases=_BERT_BIASES,
    classifier=_ROBERTA.classifier,
)
_ALBERT = Family(
    prefix="albert.",
    layer="encoder.albert_layer_groups.",
    outside=_BERT.outside | {"encoder.embedding_hidden_mapping_in": "embed.project"},
    inside={
        "albert_layers.0.attention.query": "attention.query",
        "albert_layers.0.attention.key": "attention.key",
        "albert_layers.0.attention.value": "attention.value",
        "albert_layers.0.attention.dense": "attention.output",
        "albert_layers.0.attention.LayerNorm": "attention_norm",
        "albert_layers.0.ffn": "ffn.up",
        "albert_layers.0.ffn_output": "ffn.down",
        "albert_layers.0.full_layer_layer_norm": "ffn_norm",
    },
    ignored=(
        "embeddings.position_ids",
        "embeddings.token_type_ids",
        "pooler.",
        "predictions.",
        "sop_classifier.",
        "classifier.",
        "qa_outputs.",
    ),
    biases=(*_BERT_BIASES, "embed.project"),
    classifier={"pooler": "classifier.dense", "classifier": "classifier.scores"},
    shared=True,
)
_NOMIC = Family(
    prefix="nomic_bert.",
    other_prefixes=("bert.",),
    layer="encoder.layers.",
    outside={
        "embeddings.word_embeddings.weight": "embed.word",
        "embeddings.token_type_embeddings.weight": "embed.type",
        "emb_ln": "embed.norm",
    },
    inside={
        "attn.Wqkv": "attention.qkv",
        "attn.out_proj": "attention.output",
        "norm1": "attention_norm",
        "mlp.fc11": "ffn.up",
        "mlp.fc12": "ffn.gate",
        "mlp.fc2": "ffn.down",
        "norm2": "ffn_norm",
    },
    ignored=("pooler.", "cls.", "classifier.", "attn.rotary_emb."),
    biases=("embed.norm", "attention_norm", "ffn_norm", "classifier"),
    classifier=_BERT.classifier,
    fused=QKV,
)
_GTE = Family(
    prefix="new.",
    layer="encoder.layer.",
    outside={
        "embeddings.word_embeddings.weight": "embed.word",
        "embeddings.token_type_embeddings.weight": "embed.type",
        "embeddings.LayerNorm": "embed.norm",
    },
    inside={
        "attention.qkv_proj": "attention.qkv",
        "attention.o_proj": "attention.output",
        "attn_ln": "attention_norm",
        "mlp.up_gate_proj": "ffn.both",
        "mlp.down_proj": "ffn.down",
        "mlp_ln": "ffn_norm",
    },
    ignored=("embeddings.position_ids", "embeddings.rotary_emb.", "pooler.", "lm_head.", "classifier."),
    biases=("embed.norm", "attention", "attention_norm", "ffn.down", "ffn_norm", "classifier"),
    classifier=_BERT.classifier,
    fused=QKV | {"ffn.both": ("ffn.up", "ffn.gate")},
)
_JINA = replace(
    _BERT,
    outside={name: ours for name, ours in _BERT.outside.items() if ours != "embed.position"},
    inside={name: ours for name, ours in _BERT.inside.items() if ours.startswith("attention")}
    | {"mlp.gated_layers": "ffn.both", "mlp.wo": "ffn.down", "mlp.layernorm": "ffn_norm"},
    ignored=("embeddings.position_ids", "embeddings.token_type_ids", "pooler.", "cls.", "classifier.", "encoder.alibi"),
    biases=_GTE.biases,
    words=None,
    fused={"ffn.both": ("ffn.gate", "ffn.up")},
)
_T5 = Family(
    prefix="",
    layer="encoder.block.",
    outside={
        "shared.weight": "embed.word",
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": "embed.buckets",
        "encoder.final_layer_norm": "final_norm",
    },
    inside={
        "layer.0.SelfAttention.q": "attention.query",
        "layer.0.SelfAttention.k": "attention.key",
        "layer.0.SelfAttention.v": "attention.value",
        "layer.0.SelfAttention.o": "attention.output",
        "layer.0.layer_norm": "attention_norm",
        "layer.1.DenseReluDense.wi": "ffn.up",
        "layer.1.DenseReluDense.wo": "ffn.down",
        "layer.1.layer_norm": "ffn_norm",
    },
    ignored=("encoder.embed_tokens.", "decoder.", "lm_head.", "classification_head."),
    biases=(),
    labels=None,
)
_MODERNBERT = Family(
    prefix="model.",
    layer="layers.",
    outside={
        "embeddings.tok_embeddings.weight": "embed.word",
        "embeddings.norm": "embed.norm",
        "final_norm": "final_norm",
    },
    inside={
        "attn_norm": "attention_norm",
        "attn.Wqkv": "attention.qkv",
        "attn.Wo": "attention.output",
        "mlp_norm": "ffn_norm",
        "mlp.Wi": "ffn.both",
        "mlp.Wo": "ffn.down",
    },
    ignored=("head.", "decoder.", "classifier."),
    biases=(),
    labels=None,
    fused=QKV | {"ffn.both": ("ffn.gate", "ffn.up")},
)
_DEBERTA = replace(
    _BERT,
    prefix="deberta.",
    outside=_BERT.outside
    | {"encoder.rel_embeddings.weight": "embed.relative", "encoder.LayerNorm": "embed.relative_norm"}
    | {"encoder.conv.conv": "convolution", "encoder.conv.LayerNorm": "convolution.norm"},
    inside={
        "attention.self.query_proj": "attention.query",
        "attention.self.key_proj": "attention.key",
        "attention.self.value_proj": "attention.value",
        "attention.self.pos_key_proj": "attention.position_key",
        "attention.self.pos_query_proj": "attention.position_query",
        "attention.output.dense": "attention.output",
        "attention.output.LayerNorm": "attention_norm",
        "intermediate.dense": "ffn.up",
        "output.dense": "ffn.down",
        "output.LayerNorm": "ffn_norm",
    },
    ignored=(*_BERT.ignored, "lm_predictions.", "mask_predictions."),
    bare=("pooler.", "lm_predictions."),
    biases=(*_BERT_BIASES, "convolution"),
)
_GATED = {"layer.1.DenseReluDense.wi_0": "ffn.gate", "layer.1.DenseReluDense.wi_1": "ffn.up"}
ENCODERS = {
    "bert": _BERT,
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "distilbert": _DISTILBERT,
    "electra": _ELECTRA,
    "mpnet": _MPNET,
    "albert": _ALBERT,
    "nomic_bert": _NOMIC,
    "gte": replace(_GTE, prefix="gte.", other_prefixes=("new.",)),
    "new": _GTE,
    "jina-bert": _JINA,
    "modernbert": _MODERNBERT,
    "deberta-v2": _DEBERTA,
    "deberta-v2-new": replace(
        _DEBERTA,
        words={
            "lm_predictions.lm_head.dense": "transform.dense",
            "lm_predictions.lm_head.LayerNorm": "transform.norm",
            "lm_predictions.lm_head.bias": "head.bias",
        },
    ),
    "t5": _T5,
    "t5-gated": replace(_T5, inside={name: ours for name, ours in _T5.inside.items() if ours != "ffn.up"} | _GATED),
}
