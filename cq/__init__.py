"""cq: int8 transformers on ordinary CPUs."""

from . import interrupt  # noqa: F401, I001 (before anything that takes long)
from . import core  # noqa: F401 (before anything that loads the core)
from . import observers
from .door import guard
from .errors import CalibrationError, CqError, FormatError, UnsupportedError
from .formats import export, load, save
from .model import Config, Transformer
from .ops import PackedWeight, linear, matmul_integer, pack
from .prepare.compensate import compensate
from .prepare.rotate import rotate
from .qtensor import QTensor, quantize_tensor
from .quantize import quantize
from .report import compare, mix, sensitivity
from .strategies import QAT, Dynamic, Mixed, Scheme, Static, Training, WeightOnly
from .system import info, set_num_threads
from .train import train

__all__ = [
    "CalibrationError",
    "Config",
    "CqError",
    "Dynamic",
    "FormatError",
    "Mixed",
    "PackedWeight",
    "QAT",
    "QTensor",
    "Scheme",
    "Static",
    "Training",
    "Transformer",
    "UnsupportedError",
    "WeightOnly",
    "compare",
    "compensate",
    "export",
    "info",
    "linear",
    "load",
    "matmul_integer",
    "mix",
    "observers",
    "pack",
    "quantize",
    "quantize_tensor",
    "rotate",
    "save",
    "sensitivity",
    "set_num_threads",
    "train",
]

guard((name for name in __all__ if name != "observers"), globals())
guard((name for name in observers.__all__ if not name.startswith("like_")), vars(observers))
guard(("MinMax", "MovingAverage", "Histogram"), vars(observers.like_torch))
guard(("Percentile", "Entropy"), vars(observers.like_onnxruntime))
