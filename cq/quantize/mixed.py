"""The plan of Mixed: each layer from the plan of its own strategy, made for the layers of that strategy alone."""

from collections.abc import Callable
from dataclasses import replace

from ..model import Config
from ..model.forms import PerHead
from ..model.sites import Graph
from ..plan import LayerPlan, Plan, QkvForms, WordPlan
from ..strategies import Mixed, Single, choice_of, parts


def plan_mixed(config: Config, strategy: Mixed, plan_of: Callable[[Single], Plan]) -> Plan:
    """plan_of(part): the plan of one of the mix's strategies, which `include`s its own layers."""
    names = ["embed.word", *Graph(config).reads]
    tied = config.tied and config.lm_head
    chosen = {name: choice_of("head" if name == "embed.word" and tied else name, strategy) for name in names}
    layers = {name: LayerPlan("float32", chosen[name][1]) for name in names[1:]}
    word = WordPlan(None, tied, chosen["embed.word"][1])
    attention: dict[str, QkvForms | PerHead] = {}
    for part in parts(strategy):
        mine = tuple(name for name in names if chosen[name][0] == part)
        if not mine:
            continue
        plan = plan_of(replace(part, include=mine))
        layers |= {name: plan.layers[name] for name in mine if name in layers}
        word = plan.word if "embed.word" in mine else word
        attention = plan.attention | attention
    return Plan(strategy, layers, word, attention)
