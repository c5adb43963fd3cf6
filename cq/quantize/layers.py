"""What the plans of all strategies have in common: which layers a strategy takes, and how their weights are coded."""

from collections.abc import Callable
from fnmatch import fnmatchcase

from ..model import Config
from ..model.forms import Form
from ..model.sites import Graph
from ..plan import LayerPlan, Plan, WeightCoding, WordPlan
from ..strategies import Dynamic, Single, Static


def left_out(name: str, strategy: Single) -> str:
    """Why the user leaves the layer in float32, or "" where it is to be quantized."""
    for pattern in strategy.exclude:
        if fnmatchcase(name, pattern):
            return f"excluded by {pattern!r}"
    return "" if any(fnmatchcase(name, pattern) for pattern in strategy.include) else "matches no include pattern"


def plan_layers(config: Config, strategy: Single, form_at: Callable[[str], Form]) -> Plan:
    """Every layer that the strategy takes, reading form_at(its site); all between layers in float32."""
    scheme, graph = strategy.scheme, Graph(config)
    coding = WeightCoding(scheme.weight_symmetric, scheme.weight_granularity, scheme.group_size)
    layers = {}
    for name, site in graph.reads.items():
        reason = left_out(name, strategy)
        if reason:
            layers[name] = LayerPlan("float32", reason)
        else:
            layers[name] = LayerPlan(strategy.name, "", coding, scheme.bias, form_at(site))
    return Plan(strategy, layers, _word(config, strategy, layers))


def _word(config: Config, strategy: Single, layers: dict[str, LayerPlan]) -> WordPlan:
    """The tied head's own codes where they have one scale per word, else int8 with its own."""
    tied, scheme, granularity = config.tied and config.lm_head, strategy.scheme, strategy.scheme.weight_granularity
    reason = left_out("embed.word", strategy) or (layers["head"].reason if tied else "")
    if reason:
        return WordPlan(None, tied, reason)
    if tied and (scheme.group_size is None or scheme.group_size >= config.hidden_size):
        return WordPlan(None, True)
    own = "per_tensor" if granularity == "per_tensor" else "per_channel"
    return WordPlan(WeightCoding(scheme.weight_symmetric, own), tied)


def attends_in_int8(plan: Plan, strategy: Dynamic | Static, projections: tuple[str, ...]) -> bool:
    """Whether attention computes in int8 where these layers give queries, keys and values."""
    return strategy.scheme.attention == "int8" and all(map(plan.coded, projections))
