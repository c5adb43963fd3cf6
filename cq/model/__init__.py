"""The transformer in reading order: config, activation, linear, norm, embedding, attention, block, transformer."""

from .config import Config
from .coverage import Coverage, Placement
from .transformer import Transformer

__all__ = ["Config", "Coverage", "Placement", "Transformer"]
