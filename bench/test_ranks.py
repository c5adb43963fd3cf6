"""What int8 costs a cross-encoder: its scores of pairs of sentences, and the order in which it ranks documents. No time
is measured."""

import numpy as np
import pytest

import cq
from cq.report import metrics

from . import cross_encoder, encoder, minilm, orders, smollm

MARGIN = 0.01  # of a score, which is 0…1: what is closer may change places
STRATEGIES = {
    "weight-only": cq.WeightOnly(),
    "weight-only, best": cq.WeightOnly(effort="best"),
    f"weight-only, best, groups of {smollm.GROUP}": cq.WeightOnly(smollm.FINE, effort="best"),
    "dynamic": cq.Dynamic(),
    "dynamic, best": cq.Dynamic(effort="best"),
    "static": cq.Static(),
    "static, best": cq.Static(effort="best"),
}
PAIRS, COMPARED = 600, 200  # those that are correlated; pairs whose scores transformers gives too
pytest.importorskip("torch", reason="the cross-encoder is trained by torch")
pytestmark = pytest.mark.timeout(0)  # pytest's own limit is for tests


def test_ranks(benchmark, threads):
    """Calibrated on pairs of STS 2012, on which the model was trained; judged on STS 2014."""
    if not minilm.DATA.is_dir():
        pytest.skip(f"it is trained on STS, and the data is not there: {minilm.DATA}")
    folder, rows = cross_encoder.folder(), []
    model = cq.load(folder)
    pairs, gold = zip(*cross_encoder.spread(minilm.EVALUATION, PAIRS))
    queries = cross_encoder.queries(minilm.EVALUATION)
    asked = [(query, text) for query, documents in queries for text in documents]
    calibration = [pair for pair, _ in cross_encoder.spread(minilm.CALIBRATION, encoder.CALIBRATION_SENTENCES)]

    def scores(model: cq.Transformer) -> tuple[np.ndarray, np.ndarray]:
        return model.classify(pairs)[:, 0], model.classify(asked)[:, 0].reshape(len(queries), -1)

    def measured() -> None:
        exact, ranked = scores(model)
        wanted = cross_encoder.reference(folder, pairs[:COMPARED])
        difference = float(np.abs(exact[:COMPARED] - wanted).max())
        rows.append({"name": "float32", "gold": 100 * metrics.spearman(exact, gold), "to_transformers": difference})
        for name, strategy in STRATEGIES.items():
            plain = name in ("weight-only", "dynamic")
            q = cq.quantize(model, strategy, None if plain else calibration)
            found, order = scores(q)
            row = {"gold": 100 * metrics.spearman(found, gold), "float32": 100 * metrics.spearman(found, exact)}
            row["difference"] = float(np.sqrt(np.square(order - ranked).mean()))
            rows.append({"name": name} | row | orders.agreement(ranked, order, MARGIN))

    benchmark.pedantic(measured, rounds=1, iterations=1)
    case = {"case": "cross-encoder", "work": "accuracy", "threads": threads, "pairs": len(pairs), "margin": MARGIN}
    case |= {"steps": cross_encoder.STEPS, "queries": len(queries), "documents": cross_encoder.DOCUMENTS}
    benchmark.extra_info["rows"] = [case | row for row in rows]
