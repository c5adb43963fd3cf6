"""Random models of JinaBERT, for which transformers has no class, as folders of files."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

_USUAL = dict(
    model_type="bert",
    architectures=["JinaBertForMaskedLM"],
    position_embedding_type="alibi",
    vocab_size=61,
    max_position_embeddings=190,
    type_vocab_size=2,
    layer_norm_eps=1e-12,
    emb_pooler="mean",
    hidden_act="gelu",
    pad_token_id=0,
)
SIZES = {
    "four heads": (40, 2, 4, 36, "geglu"),
    "three heads": (42, 3, 3, 35, "geglu"),
    "twelve heads": (60, 1, 12, 17, "reglu"),
}


def made(folder: Path, name: str) -> tuple[dict, dict]:
    """A random model in the folder: its configuration and tensors."""
    hidden, layers, heads, inner, kind = SIZES[name]
    config = _USUAL | dict(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=inner,
        feed_forward_type=kind,
    )
    shapes = {"embeddings.word_embeddings.weight": (61, hidden), "embeddings.token_type_embeddings.weight": (2, hidden)}
    norms = ["embeddings.LayerNorm"]
    for i in range(layers):
        at = f"encoder.layer.{i}."
        for part in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
            shapes |= {f"{at}{part}.weight": (hidden, hidden), f"{at}{part}.bias": (hidden,)}
        shapes |= {at + "mlp.gated_layers.weight": (2 * inner, hidden), at + "mlp.wo.weight": (hidden, inner)}
        shapes[at + "mlp.wo.bias"] = (hidden,)
        norms += [at + "attention.output.LayerNorm", at + "mlp.layernorm"]
    torch.manual_seed(3)
    tensors = {name: 0.2 * torch.randn(shape) for name, shape in shapes.items()}
    tensors |= {f"{norm}.weight": 1 + 0.2 * torch.randn(hidden) for norm in norms}
    tensors |= {f"{norm}.bias": 0.2 * torch.randn(hidden) for norm in norms}
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return config, tensors
