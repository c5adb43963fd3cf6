"""Quantization-aware training of all-MiniLM-L6-v2 on unlabeled sentences, beside what calibration alone makes of it.
Training takes some 15 minutes for each scheme on two cores."""

import re
import time

import numpy as np
import pytest

import cq
from cq.report import samples
from cq.strategies import OBSERVERS

from . import encoder, minilm

TEXT = minilm.DATA.parent / "text" / "wikitext2.valid.txt"
LENGTHS = range(20, 301)  # characters of a sentence of the text
SCHEMES = {"textbook": cq.Static(cq.Scheme.textbook()), "default": cq.Static()}
pytestmark = pytest.mark.timeout(0)  # pytest's own limit is for tests
TRAINING = {"steps": 1000, "batch_size": 64}


@pytest.fixture(scope="module")
def unlabeled(float_model) -> list[np.ndarray]:
    """Sentences of STS 2012 and of WikiText-2's validation text, each once, as ids."""
    if not minilm.DATA.is_dir():
        pytest.skip(f"it trains on STS and WikiText-2, and the data is not there: {minilm.DATA.parent}")
    lines = (line.strip() for line in TEXT.read_text(encoding="utf-8").splitlines())
    text = [sentence for line in lines if not line.startswith("=") for sentence in re.split(r"(?<= [.!?]) ", line)]
    found = samples.read(minilm.CALIBRATION, float_model).tokens
    found += [float_model.tokenize(sentence) for sentence in text if len(sentence) in LENGTHS]
    return list({ids.tobytes(): ids for ids in found}.values())


@pytest.fixture(scope="module")
def reported(float_model) -> dict[str, tuple]:
    return encoder.reported(float_model)


def trained(benchmark, model: cq.Transformer, strategy: cq.QAT, data: list) -> tuple[cq.Transformer, dict]:
    """The quantized model, and what it took."""
    cpu, found = time.process_time(), []
    benchmark.pedantic(lambda: found.append(cq.quantize(model, strategy, data)), rounds=1, iterations=1)
    cost = {
        "steps": strategy.steps,
        "samples": len(data),
        "seconds": round(benchmark.stats.stats.total),
        "cpu_seconds": round(time.process_time() - cpu),
    }
    return found[0], cost


@pytest.mark.parametrize("scheme", SCHEMES)
def test_minilm(benchmark, threads, float_model, calibration, unlabeled, reported, scheme):
    target = SCHEMES[scheme]
    q, cost = trained(benchmark, float_model, cq.QAT(target=target, **TRAINING), unlabeled)
    others = {
        "float32": float_model,
        "weight-only": cq.quantize(float_model, cq.WeightOnly(target.scheme)),
        "dynamic": cq.quantize(float_model, cq.Dynamic(target.scheme)),
    }
    for smooth in (True, False) if scheme == "default" else (False,):
        for observer in OBSERVERS:
            static = cq.Static(target.scheme, observer=observer, smooth=smooth)
            others[f"static, {observer}{', smooth' * smooth}"] = cq.quantize(float_model, static, calibration)
    rows = [{"name": name} | encoder.accuracy(model, reported) for name, model in others.items()]
    rows.append({"name": "QAT → static"} | encoder.accuracy(q, reported) | cost)
    benchmark.extra_info["rows"] = [
        {"case": "all-MiniLM-L6-v2", "work": "accuracy", "scheme": scheme, "threads": threads} | row for row in rows
    ]
