"""The rivals, where they are installed: onnxruntime and torch, each in the fastest form that it offers. Times nothing."""
import importlib.util
import logging
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

HAVE_ONNXRUNTIME = all(importlib.util.find_spec(name) for name in ("onnxruntime", "onnx"))
HAVE_TORCH = importlib.util.find_spec("torch") is not None
TORCH_ENGINES = ("x86", "onednn")  # of torch's int8; x86 uses fbgemm too
# onnxruntime's own fusion makes its model slower: 74 ms against 54, 8 x 128 tokens of MiniLM-L6 in int8 with one thread
SLOW_FUSION = "SkipLayerNormFusion"


def session(model, threads: int):
    """An onnxruntime session on the CPU. model: an onnx.ModelProto, or the path of one."""
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    return onnxruntime.InferenceSession(source, options, ["CPUExecutionProvider"], disabled_optimizers=[SLOW_FUSION])


def one_operator(op: str, order: str, constants: dict[str, np.ndarray], threads: int, domain: str = "") -> Callable:
    """A function x (M, K) → y (M, N) that runs one operator of onnxruntime.

    order: its inputs by name: "x", the one that varies, and those in `constants`."""
    from onnx import TensorProto, helper, numpy_helper
    kinds = {"MatMulInteger": (TensorProto.UINT8, TensorProto.INT32),
             "QLinearMatMul": (TensorProto.UINT8, TensorProto.UINT8),
             "MatMulIntegerToFloat": (TensorProto.UINT8, TensorProto.FLOAT),
             "DynamicQuantizeMatMul": (TensorProto.FLOAT, TensorProto.FLOAT)}
    inside, outside = kinds[op]
    node = helper.make_node(op, order.split(), ["y"], domain=domain)
    graph = helper.make_graph([node], "one",
                              [helper.make_tensor_value_info("x", inside, ["m", "k"])],
                              [helper.make_tensor_value_info("y", outside, ["m", "n"])],
                              [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()])
    domains = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    ready = session(helper.make_model(graph, opset_imports=domains, ir_version=9), threads)
    return lambda x: ready.run(None, {"x": x})[0]


def onnx_encoders(config, weights: dict[str, np.ndarray], folder: Path, threads: int) -> dict[str, Callable]:
    """Name → function (ids, mask; int64 (batch, length)) → hidden: float32 and quantize_dynamic's per-channel int8."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    from .bert_onnx import encoder
    plain, quantized = folder / "float32.onnx", folder / "int8.onnx"
    onnx.save(encoder(config, weights), plain)
    logging.disable(logging.WARNING)  # advice to preprocess, which changes nothing here
    quantize_dynamic(plain, quantized, weight_type=QuantType.QInt8, per_channel=True)
    logging.disable(logging.NOTSET)

    def runner(path: Path) -> Callable:
        ready = session(path, threads)
        return lambda ids, mask: ready.run(None, {"ids": ids, "mask": mask})[0]
    return {"onnxruntime float32": runner(plain), "onnxruntime dynamic int8": runner(quantized)}


def torch_linear(weight: np.ndarray, threads: int) -> dict[str, Callable]:
    """Name → function x float32 (M, K) → (M, N): torch's dynamic int8, by engine. weight float32 (N, K)."""
    import torch
    torch.set_num_threads(threads)
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight.data = torch.from_numpy(weight)
    return {f"torch dynamic int8 ({engine})": _inference(quantized)
            for engine, quantized in _dynamic(torch.nn.Sequential(layer)).items()}


def torch_encoders(folder: Path, threads: int) -> dict[str, Callable]:
    """Name → function (ids, mask; int64 (batch, length)) → hidden: float32, and dynamic int8 by engine."""
    import torch
    import transformers
    torch.set_num_threads(threads)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModel.from_pretrained(folder, add_pooling_layer=False).eval()

    def runner(model) -> Callable:
        call = _inference(lambda ids, mask: model(input_ids=ids, attention_mask=mask).last_hidden_state)
        return lambda ids, mask: call(ids, mask).numpy()
    return {"torch float32": runner(model)} | \
        {f"torch dynamic int8 ({engine})": runner(quantized) for engine, quantized in _dynamic(model).items()}


def _dynamic(model) -> dict:
    """Engine → model with its linear layers in dynamic int8."""
    import torch
    found = {}
    for engine in TORCH_ENGINES:
        if engine in torch.backends.quantized.supported_engines:
            torch.backends.quantized.engine = engine
            with warnings.catch_warnings(action="ignore"):  # that the call will be removed one day
                found[engine] = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
    return found


def _inference(call: Callable) -> Callable:
    """`call` of tensors, given NumPy arrays, without gradients."""
    import torch

    @torch.inference_mode()
    def run(*arrays: np.ndarray):
        return call(*(torch.from_numpy(array) for array in arrays))
    return run
