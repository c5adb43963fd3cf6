"""The model in the wheel: its size, and that it has learnt."""
import json

import numpy as np

import cq
from cq.report import metrics, samples


def test_it_has_learnt_and_is_small():
    folder = samples.shipped_model()
    model = cq.load(folder)
    parameters = sum(int(np.prod(shape)) for shape in model.config.shapes().values())
    assert 1.5e6 <= parameters <= 2e6 and (folder / "model.safetensors").stat().st_size <= 4e6
    data = samples.read(folder / "evaluation.txt", model)
    nll = np.concatenate([metrics.token_nll(*each) for each in zip(model.logits(data.tokens), data.tokens)])
    bits = metrics.bits_per_token(nll)  # a token is a byte
    stated = json.loads((folder / "training.json").read_text())["evaluation_bits_per_token"]
    assert bits <= 2.4 and abs(bits - stated) < 0.001
