"""Measuring: what a quantized model costs and gains beside its float32 original. Changes no model."""

from .bench import bench
from .compare import compare
from .layers import Sensitivity
from .mix import mix
from .record import Report, Row
from .sensitivity import sensitivity
from .trials import Mix

__all__ = ["Mix", "Report", "Row", "Sensitivity", "bench", "compare", "mix", "sensitivity"]
