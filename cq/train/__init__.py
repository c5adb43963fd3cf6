"""Training in float32 without torch: plain, or quantization-aware (Jacob et al. 2018)."""
from .data import Windows
from .loop import fit, train

__all__ = ["Windows", "fit", "train"]
