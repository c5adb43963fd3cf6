"""The transformer. In reading order: config and sites, which describe it; forms, activation, linear, norm, embedding,
attention, block, build and transformer, which compute; texts, encoding, heads, late_interaction, ranking and writing,
the methods for texts."""

from .config import Config
from .coverage import Coverage, Placement
from .transformer import Transformer

__all__ = ["Config", "Coverage", "Placement", "Transformer"]
