"""The transformer in reading order: config, activation, linear, norm, embedding, attention, block, transformer."""
from .config import Config
from .transformer import Placement, Transformer

__all__ = ["Config", "Placement", "Transformer"]
