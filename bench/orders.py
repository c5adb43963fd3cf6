"""How far two models rank the documents of queries in the same order. Knows no model."""

import numpy as np


def agreement(exact: np.ndarray, found: np.ndarray, margin: float) -> dict[str, float]:
    """Shares of queries, 0…1, of two scores (queries, documents), the higher the better; of equals the first comes
    first. "first": the same document is best. "order": all are in the same order. "order_beyond": any two are that
    `exact` scores more than `margin` apart."""
    orders = [np.argsort(-scores, axis=1, kind="stable") for scores in (exact, found)]
    apart = exact[:, :, None] - exact[:, None] > margin
    kept = ~apart | (found[:, :, None] > found[:, None])
    return {
        "first": float((orders[0][:, 0] == orders[1][:, 0]).mean()),
        "order": float((orders[0] == orders[1]).all(1).mean()),
        "order_beyond": float(kept.all((1, 2)).mean()),
    }
