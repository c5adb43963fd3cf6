"""Measuring: what a quantized model costs and gains beside its float32 original. Changes no model."""
from .bench import bench
from .compare import compare
from .record import Report, Row

__all__ = ["Report", "Row", "bench", "compare"]
