"""What quantization-aware training makes of SmolLM2-135M-Instruct, on the windows that the other strategies are judged
on. No time is measured."""

import pytest

from cq.report.samples import Samples

from . import smollm

pytestmark = pytest.mark.timeout(0)


def test_qat(benchmark, threads, lm):
    reported, before = smollm.windows(lm)
    models = {"cq float32": lm} | smollm.trained(lm, before)
    contestants = {name: lambda ids, model=model: model.logits([ids])[0] for name, model in models.items()}
    case = {"case": "WikiText-2 validation", "work": "accuracy", "threads": threads}
    sizes = {name: model.nbytes for name, model in models.items()}
    smollm.scored(benchmark, contestants, Samples(reported).limit(smollm.WINDOWS).tokens, case, sizes)
