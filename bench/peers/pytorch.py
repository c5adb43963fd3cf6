"""torch: float32, and dynamic int8 by each engine that it has. Times nothing."""

import importlib.util
import warnings
from collections.abc import Callable

import numpy as np

from ..card import is_held

HAVE = all(importlib.util.find_spec(name) for name in ("torch", "transformers"))
HELD_BY = "ONEDNN_MAX_CPU_ISA"
ENGINES = ("x86", "onednn")  # of torch's int8; x86 uses fbgemm too, which asks the CPU alone


def linear(weight: np.ndarray, threads: int) -> dict[str, Callable]:
    """Name → function x float32 (M, K) → (M, N): dynamic int8, by engine. weight float32 (N, K)."""
    import torch

    torch.set_num_threads(threads)
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight.data = torch.from_numpy(weight)
    return {
        f"torch dynamic int8 ({engine})": _inference(quantized)
        for engine, quantized in _dynamic(torch.nn.Sequential(layer)).items()
    }


def encoders(source, threads: int) -> dict[str, Callable]:
    """float32, and dynamic int8 by engine."""
    import torch
    import transformers

    torch.set_num_threads(threads)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModel.from_pretrained(source.folder, add_pooling_layer=False).eval()

    def encoder(model) -> Callable:
        run = _inference(lambda ids, mask: model(input_ids=ids, attention_mask=mask).last_hidden_state)
        return lambda ids, mask, often: lambda: run(ids, mask).numpy()

    return {"torch float32": encoder(model)} | {
        f"torch dynamic int8 ({engine})": encoder(quantized) for engine, quantized in _dynamic(model).items()
    }


def _dynamic(model) -> dict:
    """Engine → model with its linear layers in dynamic int8."""
    import torch

    found = {}
    for engine in ENGINES[1:] if is_held() else ENGINES:
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
