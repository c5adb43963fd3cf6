"""Small decoders of families that no package carries a file of, trained here on the bytes of a text, each of whose
samples begins with a token that has one hidden feature many times as large as any other's. Times nothing."""

import tempfile
from pathlib import Path

import numpy as np

import cq
from cq.strategies import Training

from .smollm import REPORTED, TEXT, TRAINED

FIRST, FEATURE, SIZE, REACH = 256, 3, 40.0, 8.0  # the token, its feature, how large it is and what it is multiplied by
LENGTH, CALIBRATED_ON = 128, 64
STEPS, BATCH, RATE = 300, 16, 2e-3
SHAPE = {"vocab_size": 257, "hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 6}


def configurations() -> dict:
    """Name of the family → transformers' configuration of a small model of it."""
    from transformers import Gemma2Config, GPTNeoXConfig

    ids = {"bos_token_id": FIRST, "eos_token_id": None, "pad_token_id": None}
    shape = SHAPE | {"max_position_embeddings": 256}
    return {
        "GPT-NeoX": GPTNeoXConfig(**shape, **ids, intermediate_size=768),
        "Gemma 2": Gemma2Config(
            **shape, **ids, intermediate_size=512, num_key_value_heads=3, head_dim=32, sliding_window=64
        ),
    }


def windows() -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """Samples to train on, to calibrate on (some of the former), and to report on."""
    data = np.frombuffer(TEXT.read_bytes(), np.uint8).astype(np.int32)
    rows = [np.append(np.int32(FIRST), data[at : at + LENGTH]) for at in range(0, len(data) - LENGTH, LENGTH)]
    before, after = rows[: int(TRAINED * len(rows))], rows[int(REPORTED * len(rows)) :]
    return before, before[:: len(before) // CALIBRATED_ON], after


def untrained(config) -> cq.Transformer:
    """Random weights as transformers begins with, and the outlier token in them."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        model = cq.load(Path(folder))
        weights = {name: np.array(value) for name, value in model.weights().items()}
    weights["embed.word"][:, FEATURE] = 0
    weights["embed.word"][FIRST, FEATURE] = SIZE
    for name, weight in weights.items():
        if name in ("layers.0.ffn.gate.weight", "layers.0.ffn.up.weight"):
            weight[:, FEATURE] = REACH * (1 + np.random.default_rng(1).random(len(weight)))
        if name.endswith(("attention.output.weight", "ffn.down.weight")):  # so that the feature stays the token's
            weight[FEATURE] = 0
    return cq.Transformer(model.config, weights)


def trained(model: cq.Transformer, samples: list[np.ndarray]) -> cq.Transformer:
    training = Training(steps=STEPS, batch_size=BATCH, learning_rate=RATE, warmup=20, loss="next_token")
    return cq.train(model, samples, training)
