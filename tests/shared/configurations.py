"""Two small configurations of awkward sizes, an encoder's and a decoder's. Tests write only what differs in theirs:
`Config(**LLAMA | dict(num_layers=1))`."""

BERT = dict(
    family="bert",
    vocab_size=53,
    hidden_size=40,
    num_layers=2,
    num_heads=2,
    num_kv_heads=2,
    head_dim=20,
    intermediate_size=37,
    max_positions=33,
    type_vocab_size=2,
    pooling="mean",
    normalize=True,
)
LLAMA = dict(
    family="llama",
    vocab_size=61,
    hidden_size=36,
    num_layers=2,
    num_heads=6,
    num_kv_heads=2,
    head_dim=8,
    intermediate_size=37,
    max_positions=64,
    norm="rms",
    norm_eps=1e-5,
    norm_first=True,
    activation="silu",
    gated=True,
    rope_theta=1e4,
    causal=True,
    lm_head=True,
    tied=True,
)
