"""What int8 costs all-MiniLM-L6-v2 on real pairs of sentences, each strategy on the model as it is and on the one that
cq.compensate made of it. No time is measured."""

import cq

from . import encoder


def test_accuracy(benchmark, threads, float_model, calibration):
    """Calibrated on STS 2012."""
    reported, rows = encoder.reported(float_model), []
    strategies = {"weight-only": cq.WeightOnly(), "dynamic": cq.Dynamic(), "static": cq.Static()}

    def measured() -> None:
        models = {"": float_model, ", compensated": cq.compensate(float_model, calibration)}
        rows.append({"name": "float32"} | encoder.accuracy(float_model, reported))
        for suffix, model in models.items():
            for name, strategy in strategies.items():
                q = cq.quantize(model, strategy, calibration if name == "static" else None)
                rows.append({"name": f"{name}{suffix}"} | encoder.accuracy(q, reported))

    benchmark.pedantic(measured, rounds=1, iterations=1)
    benchmark.extra_info["rows"] = [
        {"case": "all-MiniLM-L6-v2", "work": "accuracy", "scheme": "default", "threads": threads} | row for row in rows
    ]
