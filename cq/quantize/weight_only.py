"""The plan of WeightOnly: weights in int8, everything that flows in float32."""

from ..model import Config
from ..plan import Plan
from ..strategies import WeightOnly
from .layers import plan_layers


def plan_weight_only(config: Config, strategy: WeightOnly) -> Plan:
    """Layers read float32."""
    return plan_layers(config, strategy, lambda site: None)
