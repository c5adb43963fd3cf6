"""Names of weights of the encoders that are not named like BERT's, as Hugging Face writes them. Holds tables only."""

from .family import Family

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
    biases=("embed.norm", "attention", "attention_norm", "ffn", "ffn_norm", "classifier"),
    classifier={"classifier.dense": "classifier.dense", "classifier.out_proj": "classifier.scores"},
)
ENCODERS = {"mpnet": _MPNET}
