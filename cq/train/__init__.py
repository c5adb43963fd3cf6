"""Training in float32 without torch: plain, or quantization-aware (Jacob et al. 2018)."""

from .data import Windows, encode_text, split_text
from .loop import fit, random_weights, train
from .network import Network

__all__ = ["Network", "Windows", "encode_text", "fit", "random_weights", "split_text", "train"]
