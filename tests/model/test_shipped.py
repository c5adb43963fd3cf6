"""The model in the wheel: its size, that it has learnt, and what quantization-aware training made of it."""

import json

import numpy as np

import cq
from cq.report import metrics, samples

FOLDER = samples.shipped_model()


def evaluated(model: cq.Transformer) -> float:
    """Bits per token, which is a byte, of the evaluation slice."""
    tokens = samples.read(FOLDER / "evaluation.txt", model).tokens
    return metrics.bits_per_token(
        np.concatenate([metrics.token_nll(*each) for each in zip(model.logits(tokens), tokens)])
    )


def stated(name: str) -> float:
    return json.loads((FOLDER / "training.json").read_text())[f"{name}_bits_per_token"]


def test_it_has_learnt_and_is_small():
    model = cq.load(FOLDER)
    parameters = sum(int(np.prod(shape)) for shape in model.config.shapes().values())
    assert 1.5e6 <= parameters <= 2e6 and (FOLDER / "model.safetensors").stat().st_size <= 4e6
    bits = evaluated(model)
    assert bits <= 2.4 and abs(bits - stated("evaluation")) < 0.001


def test_trained_behind_int8_it_predicts_better_than_calibrated():
    """By 0.0025 bits and more, calibrated on 24 windows as on all 217."""
    model, trained = cq.load(FOLDER), cq.load(FOLDER / "qat.safetensors")
    static = cq.quantize(model, cq.Static(), samples.read(FOLDER / "calibration.txt", model).limit(24).tokens)
    assert trained.strategy == cq.Static() and trained.config == model.config
    bits = evaluated(trained)
    assert abs(bits - stated("qat_evaluation")) < 0.001 and bits < evaluated(cq.quantize(model, cq.Dynamic()))
    assert bits < evaluated(static)
