"""all-MiniLM-L6-v2 for the suites: its strategies, and token ids to run it on. Times nothing."""

from pathlib import Path

import numpy as np

import cq
from cq.report import metrics
from cq.report.samples import Samples, files, read

from . import minilm

CALIBRATION_SENTENCES = 200
BATCH, OF_EACH_FILE = 32, 96  # of the stream
REPORTED = {"STS 2014": minilm.EVALUATION, "STS 2013": minilm.DEVELOPMENT}


def calibration(model: cq.Transformer) -> list[np.ndarray]:
    """What static int8 is calibrated on, cq's and the peers' alike."""
    return Samples(read(minilm.CALIBRATION, model).tokens).limit(CALIBRATION_SENTENCES).tokens


INT8_STREAM = "static, int8 stream"


def strategies(model: cq.Transformer, samples: list[np.ndarray]) -> dict[str, cq.Transformer]:
    """Name → the float32 model, and what each strategy makes of it; static also with its residual stream in int8."""
    return {
        "float32": model,
        "weight-only": cq.quantize(model, cq.WeightOnly()),
        "dynamic": cq.quantize(model, cq.Dynamic()),
        "static": cq.quantize(model, cq.Static(), calibration=samples),
        INT8_STREAM: cq.quantize(model, cq.Static(residual="int8"), calibration=samples),
    }


def random(model: cq.Transformer, sequences: int, length: int) -> list[np.ndarray]:
    """Random ids, the same every time."""
    return list(np.random.default_rng(0).integers(1000, model.config.vocab_size, (sequences, length)).astype(np.int32))


def sentences(model: cq.Transformer, n: int) -> list[np.ndarray]:
    """n sentences, spread evenly over STS 2014."""
    return Samples(read(minilm.EVALUATION, model).tokens).limit(n).tokens


def stream(model: cq.Transformer) -> list[np.ndarray]:
    """The first sentences of every file of STS 2014, in the order of the files."""
    return [ids for path in files(Path(minilm.EVALUATION)) for ids in read(path, model).tokens[:OF_EACH_FILE]]


def batches(tokens: list[np.ndarray]) -> list[list[np.ndarray]]:
    return [tokens[i : i + BATCH] for i in range(0, len(tokens), BATCH)]


def padded(tokens: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """ids and mask, int64 (batch, longest)."""
    ids = np.zeros((len(tokens), max(map(len, tokens))), np.int64)
    mask = np.zeros_like(ids)
    for i, sequence in enumerate(tokens):
        ids[i, : len(sequence)], mask[i, : len(sequence)] = sequence, 1
    return ids, mask


def reported(model: cq.Transformer) -> dict[str, tuple]:
    """Name of a set → its pairs, and the model's embeddings of them, from which others' distance is taken."""
    found = {name: read(files, model) for name, files in REPORTED.items()}
    return {name: (pairs, model.embed(pairs.tokens)) for name, pairs in found.items()}


def accuracy(model: cq.Transformer, reported: dict[str, tuple]) -> dict[str, dict[str, float]]:
    """Spearman (×100) and mean cosine to float32's embeddings for each set of pairs."""
    found = {}
    for name, (pairs, exact) in reported.items():
        embeddings, scored = model.embed(pairs.tokens), np.isfinite(pairs.scores)
        alike = metrics.cosine(embeddings[::2], embeddings[1::2])
        found[name] = {
            "spearman": 100 * metrics.spearman(alike[scored], pairs.scores[scored]),
            "cosine": float(metrics.cosine(exact, embeddings).mean()),
        }
    return found
