"""What int8 costs SmolLM2-135M-Instruct on real text: perplexity, and agreement with float32, cq's strategies and peers alike."""
import numpy as np

from cq.report import metrics
from cq.report.samples import Samples

from . import smollm

WINDOWS, CASE = 12, "WikiText-2 validation"


def test_accuracy(benchmark, threads, lm, lm_rivals):
    """Windows of 512 tokens without overlap, evenly spread; no time is measured."""
    reported, calibration = smollm.windows(lm)
    contestants = {name: lambda ids, model=model: model.logits([ids])[0]
                   for name, model in smollm.strategies(lm, calibration).items()}
    contestants |= {name: rival.logits for name, rival in lm_rivals.items()}
    tokens = Samples(reported).limit(WINDOWS).tokens
    found = {name: [] for name in contestants}

    def measured() -> None:
        for ids in tokens:
            reference = lm.logits([ids])[0]
            for name, logits in contestants.items():
                scores = logits(ids)
                found[name].append({"nll": metrics.token_nll(scores, ids).mean(), "sqnr_db": metrics.sqnr_db(reference, scores),
                                    "kl": metrics.kl_divergence(reference, scores).mean(),
                                    "top1": metrics.top1_match(reference, scores).mean(),
                                    "flips": metrics.flips(reference, scores, ids).mean()})
    benchmark.pedantic(measured, rounds=1, iterations=1)
    rows = []
    for name, parts in found.items():
        mean = {key: float(np.mean([part[key] for part in parts])) for key in parts[0]}
        row = {"case": CASE, "work": "accuracy", "name": name, "threads": threads, "kind": "accuracy", "windows": len(tokens),
               "perplexity": float(np.exp(mean.pop("nll")))} | mean
        rows.append(row | {"sqnr_db": None if row["sqnr_db"] == np.inf else row["sqnr_db"]})
    assert rows[0]["kl"] == 0 and rows[0]["top1"] == 1
    benchmark.extra_info["rows"] = rows
