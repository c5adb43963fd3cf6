"""Checkpoints of version 4, which held each layer's form as a list: their record as one of version 5. Checks nothing
that the reader of version 5 checks."""

from ..model.sites import Graph
from ..strategies import Mixed, Scheme, Strategy, choice_of, from_dict
from .huggingface import parse_config

_KINDS = {2: "per_token", 3: "per_tensor", 4: "fixed", 5: "smoothed"}  # by the length of the list
_FIELDS = ("dtype", "symmetric", "scale", "zero_point", "columns")


def upgraded(record: dict) -> dict:
    """record: of version 4. Raises KeyError, TypeError and the like for one that is not whole."""
    config, _ = parse_config(record["config"], "config")
    blocks = Graph(config).blocks
    strategy = None if record["strategy"] is None else from_dict(record["strategy"])
    layers = {name: _layer(name, entry, strategy) for name, entry in record["layers"].items()}
    attention = {block.name: _attention(record["attention"][i]) for i, block in enumerate(blocks)}
    streams = [_form(form) for form in record["streams"]]
    plan = {
        "strategy": record["strategy"],
        "layers": layers,
        "word": _word(record["word"], record["reason"], config.tied and config.lm_head, strategy),
        "attention": {name: forms for name, forms in attention.items() if forms is not None},
        "residual": streams if any(form is not None for form in streams) or len(streams) != 2 * len(blocks) + 1 else [],
    }
    float32 = strategy is None and all(entry["runs_in"] == "float32" for entry in layers.values())
    plain = float32 and plan["attention"] == {} and plan["residual"] == [] and record["word"] == "float32"
    return {"version": 5, "config": record["config"], "plan": None if plain else plan, "tensors": record["tensors"]}


def _layer(name: str, entry: dict, strategy: Strategy | None) -> dict:
    if entry["runs_in"] == "float32":
        return {"runs_in": "float32", "reason": entry["reason"]}
    scheme = _scheme(name, strategy)
    grouped = scheme.weight_granularity == "per_group"
    weight = {
        "symmetric": scheme.weight_symmetric,
        "granularity": scheme.weight_granularity,
        "group_size": entry["group_size"] if grouped else None,
    }
    form = _form(entry["input"])
    return {"runs_in": entry["runs_in"], "reason": "", "weight": weight, "bias": scheme.bias, "input": form}


def _scheme(name: str, strategy: Strategy | None) -> Scheme:
    part = choice_of(name, strategy)[0] if isinstance(strategy, Mixed) else strategy
    if part is None:
        raise ValueError(f"{name} is in codes by no strategy")
    return part.scheme


def _form(values: list | None) -> dict | None:
    if values is None:
        return None
    kind = _KINDS[len(values)]
    given = values[:2] if kind == "per_tensor" else values
    return {"kind": kind} | dict(zip(_FIELDS, given))


def _attention(values: list | None) -> dict | None:
    """Of one block: a form per head, or those of queries, keys and values."""
    if values is None:
        return None
    if not isinstance(values[0], list):
        return {"kind": "per_head"} | dict(zip(("dtype", "symmetric", "group_size"), values, strict=True))
    return {part: _form(form) for part, form in zip(("query", "key", "value"), values, strict=True)}


def _word(kind: str, reason: str, tied: bool, strategy: Strategy | None) -> dict:
    if kind == "int8":
        scheme = _scheme("head" if tied else "embed.word", strategy)
        granularity = "per_tensor" if scheme.weight_granularity == "per_tensor" else "per_channel"
        weight = {"symmetric": scheme.weight_symmetric, "granularity": granularity, "group_size": None}
        return {"weight": weight, "with_head": tied, "reason": reason}
    if kind not in ("head", "float32"):
        raise ValueError(f"word table in {kind!r}")
    return {"weight": None, "with_head": tied and (kind == "head" or bool(reason)), "reason": reason}
