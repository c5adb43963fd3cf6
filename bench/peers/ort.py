"""onnxruntime: float32, dynamic and static int8, and single operators. Times nothing."""

import importlib.util
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from ..card import saturates

HAVE = all(importlib.util.find_spec(name) for name in ("onnxruntime", "onnx"))
HELD_BY = None  # it asks the CPU alone
# onnxruntime's own fusion makes its model slower: 74 ms against 54, 8 x 128 tokens of MiniLM-L6 in int8 with one thread
SLOW_FUSION = "SkipLayerNormFusion"


EXACT = ", exact mode"


def modes() -> dict[str, bool]:
    """What is added to the names of int8 → whether it runs in the exact mode, which differs where its kernels would
    saturate: there both are contestants."""
    return {"": False} | ({EXACT: True} if saturates() else {})


def session(model, threads: int, exact: bool = False, without: tuple[str, ...] = (SLOW_FUSION,)):
    """A session on the CPU. model: an onnx.ModelProto, or the path of one. without: optimizers that are left out."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    if exact:
        options.add_session_config_entry("session.x64quantprecision", "1")
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    return onnxruntime.InferenceSession(source, options, ["CPUExecutionProvider"], disabled_optimizers=list(without))


def one_operator(
    op: str, order: str, constants: dict[str, np.ndarray], threads: int, domain: str = "", exact: bool = False
) -> Callable:
    """A function x (M, K) → y (M, N) that runs one operator.

    order: its inputs by name: "x", the one that varies, and those in `constants`."""
    from onnx import TensorProto, helper, numpy_helper

    kinds = {
        "MatMulInteger": (TensorProto.UINT8, TensorProto.INT32),
        "QLinearMatMul": (TensorProto.UINT8, TensorProto.UINT8),
        "MatMulIntegerToFloat": (TensorProto.UINT8, TensorProto.FLOAT),
        "DynamicQuantizeMatMul": (TensorProto.FLOAT, TensorProto.FLOAT),
    }
    inside, outside = kinds[op]
    node = helper.make_node(op, order.split(), ["y"], domain=domain)
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", inside, ["m", "k"])],
        [helper.make_tensor_value_info("y", outside, ["m", "n"])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    domains = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    ready = session(helper.make_model(graph, opset_imports=domains, ir_version=9), threads, exact)
    return lambda x: ready.run(None, {"x": x})[0]


def encoders(source, threads: int) -> dict[str, Callable]:
    """float32; quantize_dynamic's int8; quantize_static's int8. All int8 is per channel.

    Of the static forms the fastest that computes the right thing: QOperator took 99 ms, QDQ 100 (8 x 128 tokens of
    MiniLM-L6, one thread); quantizing attention's products too, 101; every operator that can be, 124, and then nothing
    of the model is left (0 dB: the mask's -3e38 spoils the scale of its sum)."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_dynamic,
        quantize_static,
    )

    class Reader(CalibrationDataReader):
        def __init__(self, feeds: Iterator):
            self.feeds = feeds

        def get_next(self) -> dict | None:
            return next(self.feeds, None)

    dynamic, static = source.scratch / "dynamic.onnx", source.scratch / "static.onnx"
    logging.disable(logging.WARNING)  # advice to preprocess, which changes nothing here
    quantize_dynamic(source.onnx, dynamic, weight_type=QuantType.QInt8, per_channel=True)
    quantize_static(
        source.onnx,
        static,
        Reader(source.feeds()),
        QuantFormat.QOperator,
        ["MatMul"],
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        extra_options={"MatMulConstBOnly": True},
    )
    logging.disable(logging.NOTSET)

    def encoder(path: Path, exact: bool = False) -> Callable:
        ready = session(path, threads, exact)
        return lambda ids, mask, often: lambda: ready.run(None, {"ids": ids, "mask": mask})[0]

    return {"onnxruntime float32": encoder(source.onnx)} | {
        f"onnxruntime {name} int8{suffix}": encoder(path, exact)
        for suffix, exact in modes().items()
        for name, path in (("dynamic", dynamic), ("static", static))
    }
