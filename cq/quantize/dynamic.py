"""The plan of Dynamic: activations are coded at inference, by parameters of their own."""

from dataclasses import replace

from ..model import Config
from ..model.forms import PerHead, PerTensor, PerToken
from ..model.sites import Graph
from ..plan import Plan, QkvForms
from ..strategies import Dynamic
from .layers import attends_in_int8, plan_layers


def plan_dynamic(config: Config, strategy: Dynamic) -> Plan:
    """Layers read codes per token, or per tensor; attention, where it is in int8, codes with a scale per token and
    head."""
    scheme = strategy.scheme
    kind = PerToken if scheme.activation_granularity == "per_token" else PerTensor
    form = kind(scheme.activation_dtype, scheme.activation_symmetric)
    plan = plan_layers(config, strategy, lambda site: form)
    attention: dict[str, QkvForms | PerHead] = {
        block.name: PerHead("int8", True, config.head_dim)
        for block in Graph(config).blocks
        if attends_in_int8(plan, strategy, block.attention.projections)
    }
    return replace(plan, attention=attention)
