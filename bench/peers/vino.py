"""OpenVINO: float32, and the static int8 that NNCF makes of it. Times nothing."""

import importlib.util
import logging
from collections.abc import Callable

import numpy as np

HAVE = all(importlib.util.find_spec(name) for name in ("openvino", "onnx"))
HELD_BY = "ONEDNN_MAX_CPU_ISA"
HAVE_NNCF = importlib.util.find_spec("nncf") is not None


def encoders(source, threads: int) -> dict[str, Callable]:
    """float32 and, where NNCF is installed, static int8.

    NNCF's int8 took 75.7 ms where OpenVINO ran onnxruntime's static model in 92 (8 x 128 tokens of MiniLM-L6, one
    thread)."""
    import openvino

    core = openvino.Core()
    # Precision: else a CPU that has bfloat16 computes float32 in it. Pinning: it would bind the thread that calls, and
    # with it every other contestant.
    choices = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
        "ENABLE_CPU_PINNING": False,
    }

    def encoder(model) -> Callable:
        any_shape = core.compile_model(model, "CPU", choices).create_infer_request()

        def prepare(ids: np.ndarray, mask: np.ndarray, often: bool) -> Callable:
            request = any_shape
            if often:  # 4 % faster, and half a second to compile
                fixed = model.clone()
                fixed.reshape({name: list(ids.shape) for name in ("ids", "mask")})
                request = core.compile_model(fixed, "CPU", choices).create_infer_request()
            inputs = {"ids": ids, "mask": mask}
            return lambda: request.infer(inputs, share_inputs=True, share_outputs=True)[0]

        return prepare

    found = {"OpenVINO float32": encoder(core.read_model(source.onnx))}
    if HAVE_NNCF:
        found["OpenVINO static int8"] = encoder(_quantized(core.read_model(source.onnx), source))
    return found


def _quantized(model, source):
    """Static int8 with NNCF's own choices for transformers."""
    import nncf

    nncf.set_log_level(logging.ERROR)
    return nncf.quantize(
        model,
        nncf.Dataset(list(source.feeds())),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(source.calibration),
    )
