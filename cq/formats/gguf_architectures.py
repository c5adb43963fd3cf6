"""What llama.cpp's code alone says of each architecture of GGUF files. Holds a table only."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Windows:
    """Which layers see a window alone, and what is theirs. period: of so many layers one, the last, sees everything,
    where sliding_window_pattern does not say; 0: none does. first: it is the first, not the last. width: where
    sliding_window does not say; None: no layer has a window then. sides: the width counts tokens on both sides.
    theta: of rotary positions, where rope.freq_base_swa does not say; None: that of other layers. unscaled: positions
    are not stretched."""

    period: int
    first: bool = False
    width: int | None = None
    sides: bool = False
    theta: float | None = None
    unscaled: bool = True


@dataclass(frozen=True)
class Architecture:
    """fixed: entries of Config; epsilon and theta: where the file does not say. windows: None: no layer may have one.
    windowed: the family, where layers have windows, if that is another. partial: rope.dimension_count may be less than
    a head. scaled: embeddings are multiplied by the square root of their width. by_width: the number of layers of the
    model whose scores are scaled by hidden size / heads in place of the head's size. unrotated: each so many'th layer
    has no rotary positions; 0: all have. buckets: scores have a bias by buckets of distances, as T5's have."""

    fixed: dict[str, Any]
    windows: Windows | None = None
    windowed: str | None = None
    partial: bool = False
    scaled: bool = False
    by_width: int | None = None
    unrotated: int = 0
    buckets: bool = False


_DECODER = {"norm_first": True, "causal": True, "lm_head": True}
_LLAMA = _DECODER | {"norm": "rms", "norm_eps": 1e-6, "activation": "silu", "gated": True, "rope_theta": 10000.0}
_OLMO = {"norm_first": False, "norm_outputs": True, "qk_norm": True, "qk_norm_joint": True}
_GEMMA = _LLAMA | {"norm_outputs": True, "activation": "gelu_tanh"}
_GEMMA2 = _GEMMA | {"family": "gemma2", "attention_cap": 50.0, "logits_cap": 30.0}
_GEMMA3 = _GEMMA | {"family": "gemma3_text", "qk_norm": True}
_NEOX = {"family": "gpt_neox", "norm": "layer", "norm_eps": 1e-5, "activation": "gelu", "rope_theta": 10000.0}
_ENCODER = {"norm": "layer", "norm_eps": 1e-12, "activation": "gelu", "causal": False}
_ROTARY = _ENCODER | {"gated": True, "rope_theta": 10000.0}
_ALIBI = {"family": "jina-bert", "gated": True, "position_table": False, "position_bias": {"kind": "alibi"}}
_MODERN = {"family": "modernbert", "norm_eps": 1e-5, "norm_first": True, "embedding_norm": True}
_T5 = Architecture(
    {
        "family": "t5",
        "norm": "rms",
        "norm_eps": 1e-6,
        "norm_first": True,
        "activation": "relu",
        "causal": False,
        "attention_scale": 1.0,
        "position_table": False,
    },
    buckets=True,
)
ARCHITECTURES = {  # by general.architecture
    "llama": Architecture(_LLAMA | {"family": "llama"}),
    "mistral3": Architecture(_LLAMA | {"family": "mistral"}),
    "qwen2": Architecture(_LLAMA | {"family": "qwen2"}),
    "qwen3": Architecture(_LLAMA | {"family": "qwen3", "qk_norm": True}),
    "granite": Architecture(_LLAMA | {"family": "granite"}),
    "phi3": Architecture(_LLAMA | {"family": "phi3"}, Windows(0, unscaled=False), partial=True),
    "smollm3": Architecture(_LLAMA | {"family": "smollm3"}, unrotated=4),
    "olmo2": Architecture(_LLAMA | _OLMO | {"family": "olmo2"}, Windows(4), windowed="olmo3"),
    "gemma2": Architecture(_GEMMA2, Windows(2, width=4096, unscaled=False), scaled=True, by_width=46),
    "gemma3": Architecture(_GEMMA3, Windows(6, theta=1e4), scaled=True, by_width=62),
    "gemma-embedding": Architecture(
        _GEMMA3 | {"causal": False, "lm_head": False}, Windows(6, theta=1e4, sides=True), scaled=True
    ),
    "gptneox": Architecture(_DECODER | _NEOX, partial=True),
    "gpt2": Architecture(_DECODER | {"family": "gpt2", "norm": "layer", "norm_eps": 1e-5, "activation": "gelu_tanh"}),
    "bert": Architecture(_ENCODER | {"family": "bert"}),
    "nomic-bert": Architecture(_ROTARY | {"family": "nomic_bert", "activation": "silu"}),
    "jina-bert-v2": Architecture(_ENCODER | _ALIBI),
    "modern-bert": Architecture(_ROTARY | _MODERN, Windows(3, first=True, theta=1e4, sides=True)),
    "t5": _T5,
    "t5encoder": _T5,
}
