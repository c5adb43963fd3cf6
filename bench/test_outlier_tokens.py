"""What each strategy, and its best effort, costs decoders of two other families that were trained here and have a token
that is an outlier. No time is measured."""

import numpy as np
import pytest

import cq
from cq.report import metrics
from cq.report.samples import Samples

from . import outlier_tokens

WINDOWS = 100
pytest.importorskip("transformers", reason="it makes the models")
pytestmark = pytest.mark.timeout(0)  # pytest's own limit is for tests


@pytest.mark.parametrize("family", ["GPT-NeoX", "Gemma 2"])
def test_outlier_tokens(benchmark, threads, family):
    if not outlier_tokens.TEXT.is_file():
        pytest.skip(f"it is trained on a text that is not there: {outlier_tokens.TEXT}")
    before, calibration, after = outlier_tokens.windows()
    rows = []

    def measured() -> None:
        model = outlier_tokens.trained(outlier_tokens.untrained(outlier_tokens.configurations()[family]), before)
        tokens = Samples(after).limit(WINDOWS).tokens
        exact = model.logits(tokens)
        losses = np.array([metrics.token_nll(scores, ids).mean() for scores, ids in zip(exact, tokens)])
        parameters = sum(weight.size for weight in model.weights().values())
        rows.append({"name": "float32", "perplexity": float(np.exp(losses.mean())), "parameters": parameters})
        for kind in (cq.WeightOnly, cq.Dynamic, cq.Static):
            for effort in ("fast", "best"):
                given = None if effort == "fast" and kind is not cq.Static else calibration
                found = cq.quantize(model, kind(effort=effort), given).logits(tokens)
                over = np.array([metrics.token_nll(scores, ids).mean() for scores, ids in zip(found, tokens)]) - losses
                kl = [metrics.kl_divergence(one, other).mean() for one, other in zip(exact, found)]
                row = {"name": f"{kind.name}, {effort}", "over": float(np.expm1(over.mean())), "kl": float(np.mean(kl))}
                rows.append(row | {"over_error": float(over.std(ddof=1) / len(over) ** 0.5)})

    benchmark.pedantic(measured, rounds=1, iterations=1)
    case = {"case": family, "work": "accuracy", "kind": "accuracy", "threads": threads, "windows": WINDOWS}
    case |= {"steps": outlier_tokens.STEPS, "size": outlier_tokens.SIZE, "parameters": rows[0].pop("parameters")}
    benchmark.extra_info["rows"] = [case | row for row in rows]
