"""Foreign names of weights into this library's own and back, by the tables of name_tables.py, and the check that all
weights are there and sound. Must not know files or config.json."""

import re
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np

from ..affine import first_not_finite
from ..errors import FormatError, UnsupportedError, brief
from ..model.config import Config
from ..model.deferred import Deferred, read
from .family import Family
from .name_tables import FAMILIES

# Hugging Face's heads, which stand beside what has the prefix
_BARE = ("lm_head.", "embed_out.", "classifier.", "pre_classifier.", "score.", "qa_outputs.", "cls.", "vocab_")
# gamma, beta: norms of TensorFlow's time
_LEAVES = {"weight": "weight", "bias": "bias", "gamma": "weight", "beta": "bias"}
_MAX_SPREAD = 4096  # layers that share weights
_LAYER = re.compile(r"layers\.(0|[1-9][0-9]{0,8})\.(.+)")


def is_canonical(names: Iterable[str]) -> bool:
    """Whether these are cq's names; no table holds a name that begins like these."""
    return any(name.startswith(("embed.", "layers.0.attention.")) for name in names)


def canonical(
    tensors: dict,
    family: str,
    where: str,
    tables: dict[str, Family] = FAMILIES,
    head: Config | None = None,
    config: Config | None = None,
) -> dict:
    """Names of `tables`, with or without the family's prefix → canonical names; task heads and buffers are left out,
    but for the head that the configuration `head` asks for. config: says how wide the parts of fused weights are; None:
    `head`, or all are alike.
    Raises UnsupportedError for a family without a table and for tensors that have no place in it, FormatError where two
    tensors claim the same place; messages start with `where`."""
    table = _family(family, where, tables)
    outside = table.outside | _head_names(table, head, tensors)
    result: dict[str, Any] = {}
    source: dict[str, str] = {}
    unknown: list[str] = []
    for name, array in tensors.items():
        short = name
        for prefix in (table.prefix, *table.other_prefixes):
            short = short.removeprefix(prefix) if short == name else short
        layer = re.fullmatch(re.escape(table.layer) + r"(0|[1-9][0-9]{0,8})\.(.+)", short)
        layer = None if short in outside else layer
        new = _translate(layer.group(2), table.inside) if layer else _translate(short, outside)
        if new is None and (layer.group(2) if layer else short).startswith(table.ignored):
            continue
        if new is None:
            unknown.append(name)
            continue
        new = f"layers.{layer.group(1)}.{new}" if layer else new
        if new in result:
            raise FormatError(f"{where}: {brief(source[new])} and {brief(name)} are both the weight {new}")
        result[new], source[new] = array, name
    _refuse(unknown, f"has no place in a {family} model", where)
    if table.fused is not None or table.raised:
        result = _split(result, table, config or head, where)
    if table.shared:
        whole = config or head
        assert whole is not None, "its layers say how often a group comes"
        result = _spread(result, whole.num_layers, where)
    return result


def _spread(weights: dict, layers: int, where: str) -> dict:
    """Weights of groups of layers → of every layer, those of a group the same arrays. Raises FormatError."""
    groups = 1 + max((int(match.group(1)) for match in map(_LAYER.fullmatch, weights) if match), default=-1)
    if not 0 < groups <= layers <= _MAX_SPREAD:
        raise FormatError(f"{where}: {groups} groups of weights cannot be shared by {layers} layers")
    result = {name: array for name, array in weights.items() if not _LAYER.fullmatch(name)}
    inside: dict[int, dict] = {}
    for name, array in weights.items():
        if match := _LAYER.fullmatch(name):
            inside.setdefault(int(match.group(1)), {})[match.group(2)] = array
    for i in range(layers):
        result |= {f"layers.{i}.{part}": array for part, array in inside.get(int(i / (layers / groups)), {}).items()}
    return result


def _gathered(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inverse of `_spread`: neighbours whose weights are all equal are one group."""
    result, group, before = {}, -1, None
    layers: dict[int, dict[str, np.ndarray]] = {}
    for name, array in weights.items():
        if match := _LAYER.fullmatch(name):
            layers.setdefault(int(match.group(1)), {})[match.group(2)] = array
        else:
            result[name] = array
    for _, layer in sorted(layers.items()):
        if before is None or not all(np.array_equal(array, before[part]) for part, array in layer.items()):
            group, before = group + 1, layer
            result |= {f"layers.{group}.{part}": array for part, array in layer.items()}
    return result


def foreign(
    weights: dict[str, np.ndarray], family: str, heads: int = 1, head: Config | None = None
) -> dict[str, np.ndarray]:
    """The inverse of `canonical`, with the family's prefix. heads: of families whose fused weights lie head by head.
    head: the configuration whose head has its names; None: any. Raises UnsupportedError for a family without a
    table, and for a weight that its files do not hold."""
    table, result = _family(family, "weights"), dict[str, np.ndarray]()
    others = (table.classifier or {}) | (table.words or {}) if head is None else _head_names(table, head, ())
    outside = table.outside | others
    if table.shared:
        weights = _gathered(weights)
    if table.fused is not None or table.raised:
        weights = _fuse(weights, table, heads)
    for name, array in weights.items():
        layer = _LAYER.fullmatch(name)
        inside = {ours: theirs for theirs, ours in (table.inside if layer else outside).items()}
        short = layer.group(2) if layer else name
        module, _, leaf = short.rpartition(".")
        if short not in inside and module not in inside:
            raise UnsupportedError(f"weights: {name} has no name in the files of {family} models")
        new = inside.get(short) or f"{inside[module]}.{leaf}"
        prefix = "" if new.startswith(_BARE + table.bare) else table.prefix
        result[f"{prefix}{table.layer}{layer.group(1)}.{new}" if layer else prefix + new] = array
    return result


def foreign_name(name: str, config: Config) -> str:
    """What Hugging Face calls the weight of a canonical name in a model of this configuration: with the family's prefix
    where there is a head."""
    (theirs,) = foreign({name: np.zeros((1, 1), np.float32)}, config.family, head=config)
    bare = not (config.head_size or config.labels)
    return theirs.removeprefix(FAMILIES[config.family].prefix if bare else "")


def _head_names(table: Family, config: Config | None, tensors: Iterable[str]) -> dict[str, str]:
    """Names of the head that a configuration asks for → canonical; a causal language model's are the family's own.
    Where a masked language model's decoder has a bias of its own, the one beside it does not count."""
    if config is None:
        return {}
    if config.classifier is not None:
        return table.classifier or {}
    if config.token_head is not None:
        return {{"labels": table.labels or "", "spans": "qa_outputs", "vectors": "linear"}[config.token_head]: "head"}
    words = (table.words or {}) if config.masked_lm else {}
    own = any(ours == "head" and f"{theirs}.bias" in tensors for theirs, ours in words.items())
    return {theirs: ours for theirs, ours in words.items() if not (own and ours == "head.bias")}


def _widths(config: Config | None) -> dict[str, int]:
    """Canonical module → outputs, of those that other families fuse."""
    if config is None:
        return {}
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    attention = {"attention.query": q, "attention.key": kv, "attention.value": kv}
    return attention | dict.fromkeys(("ffn.gate", "ffn.up"), config.intermediate_size)


def _split(
    weights: dict[str, np.ndarray | Deferred], table: Family, config: Config | None, where: str
) -> dict[str, np.ndarray | Deferred]:
    """Weights of layers as (out, in), each module's apart, norms' weights as they multiply."""
    result, widths = {}, _widths(config)
    for name, array in weights.items():
        module = module_of(name)
        turned = table.turned and _LAYER.fullmatch(name) is not None and array.ndim == 2
        shape, parts = array.shape[::-1] if turned else array.shape, (table.fused or {}).get(module)
        if parts is None:
            raised = table.raised and module.endswith("norm")
            result[name] = (
                _rows(array, shape, turned, 0) if not raised else _changed(array, lambda x: x + np.float32(1))
            )
            continue
        sizes = [widths.get(part, shape[0] // len(parts) if shape else 0) for part in parts]
        if not shape or shape[0] != sum(sizes):
            raise FormatError(
                f"{where}: weight {name}, as (out, in), has shape {shape}; wanted the outputs of {', '.join(parts)} "
                "one after another"
            )
        if table.by_head:
            assert config is not None, "its heads say how rows lie"
            array = _changed(array, partial(_regrouped, heads=config.num_heads, parts=len(parts)))
        begin = 0
        for part, size in zip(parts, sizes):
            result[name.replace(module, part)] = _rows(array, (size, *shape[1:]), turned, begin)
            begin += size
    return result


def _changed(array: np.ndarray | Deferred, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray | Deferred:
    return array.then(array.shape, change) if isinstance(array, Deferred) else change(array)


def _regrouped(rows: np.ndarray, heads: int, parts: int) -> np.ndarray:
    """Rows of (heads, parts, …) as those of (parts, heads, …)."""
    split = rows.reshape(heads, parts, -1, *rows.shape[1:])
    return np.ascontiguousarray(split.swapaxes(0, 1)).reshape(rows.shape)


def _rows(array: np.ndarray | Deferred, shape: tuple[int, ...], turned: bool, begin: int) -> np.ndarray | Deferred:
    """`shape` of an array's rows, or of its columns turned to rows, from `begin` on."""

    def taken(whole: np.ndarray) -> np.ndarray:
        return (
            np.ascontiguousarray(whole[:, begin : begin + shape[0]].T)
            if turned
            else whole[begin : begin + shape[0]].copy()
        )

    if not turned and array.shape == shape:
        return array
    return array.then(shape, taken) if isinstance(array, Deferred) else taken(array)


def _fuse(weights: dict[str, np.ndarray], table: Family, heads: int) -> dict[str, np.ndarray]:
    """The inverse of `_split`."""
    fused = table.fused or {}
    first, others = (
        {parts[0]: whole for whole, parts in fused.items()},
        {p for parts in fused.values() for p in parts[1:]},
    )
    result = {}
    for name, array in weights.items():
        module = module_of(name)
        if module in others:
            continue
        if module in first:
            parts = fused[first[module]]
            array = np.concatenate([weights[name.replace(module, part)] for part in parts])
            array = _regrouped(array, len(parts), heads) if table.by_head else array
            name = name.replace(module, first[module])
        if table.raised and module.endswith("norm"):
            array = array - np.float32(1)
        result[name] = array.T if table.turned and _LAYER.fullmatch(name) and array.ndim == 2 else array
    return result


def check_weights(
    weights: dict[str, np.ndarray | Deferred], config: Config, where: str, biases: tuple[str, ...] | None = None
) -> dict[str, np.ndarray | Deferred]:
    """The weights that `config` asks for, checked: none missing, none too many, float32, of the right shape, finite;
    those that are Deferred are read one at a time, and not kept.

    `biases`: canonical modules ("ffn", "attention.query") that have a bias beside those of the family's that always
    have one, all others having none; None: these, or, where the family does not say, those found, provided that every
    layer has the same. A `head.weight` equal to the word embeddings it is tied to is left out. Raises FormatError or
    UnsupportedError naming the tensor, what came and what was wanted; messages start with `where`."""
    _check_layers(weights, config, where)
    shapes = config.shapes()
    usual = _family(config.family, where).biases
    biases = usual if biases is None else (*(usual or ()), *biases)
    if biases is not None and (config.token_head is not None or config.masked_lm):
        always = config.token_head != "vectors" or "head.bias" in weights
        biases += (
            *(("head",) if always else ()),
            *(name for name in ("transform.dense", "transform.norm") if f"{name}.bias" in weights),
        )
    shapes |= _bias_shapes(shapes, weights, biases)
    if config.masked_lm and config.tied:
        shapes["head.bias"] = (config.vocab_size,)
    if config.tied and "head.weight" in weights:
        weights = _untangle(weights, where)
    missing = [name for name in shapes if name not in weights]
    if missing:
        raise FormatError(
            f"{where}: missing weight {missing[0]} of shape {shapes[missing[0]]}"
            + (f", and {len(missing) - 1} more" if len(missing) > 1 else "")
        )
    _refuse([name for name in weights if name not in shapes], "is not asked for by the configuration", where)
    for name, shape in shapes.items():
        array = weights[name]
        if array.shape != shape:
            raise FormatError(f"{where}: weight {name} has shape {array.shape}, the configuration asks for {shape}")
        if array.dtype != np.float32:
            raise FormatError(f"{where}: weight {name} is {array.dtype}; wanted floating point")
        check_finite(array, name, where)
    return {name: weights[name] for name in shapes}


def _family(name: str, where: str, tables: dict[str, Family] = FAMILIES) -> Family:
    if name not in tables:
        raise UnsupportedError(f"{where}: family {brief(name)} is not implemented; these are: {', '.join(tables)}")
    return tables[name]


def _translate(name: str, table: dict[str, str]) -> str | None:
    if name in table:
        return table[name]
    module, _, leaf = name.rpartition(".")
    return f"{table[module]}.{_LEAVES[leaf]}" if module in table and leaf in _LEAVES else None


def _refuse(names: list[str], why: str, where: str) -> None:
    if names:
        more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
        raise UnsupportedError(f"{where}: tensor {brief(names[0])} {why}{more}")


def _check_layers(weights: Iterable[str], config: Config, where: str) -> None:
    """Counts before anything is built per layer, so that a configuration of two thousand million layers costs
    nothing."""
    found = {int(match.group(1)) for match in map(_LAYER.fullmatch, weights) if match}
    if len(found) != config.num_layers or max(found) != len(found) - 1:
        raise FormatError(
            f"{where}: the configuration says {config.num_layers} layers, the weights are of layers "
            f"{brief(sorted(found)) if found else 'none'}"
        )


def _bias_shapes(
    shapes: dict[str, tuple[int, ...]], weights: Iterable[str], biases: tuple[str, ...] | None
) -> dict[str, tuple[int, ...]]:
    """Shapes of the biases that must be there. A bias found in one layer is wanted in all."""
    if biases is None:
        biases = tuple({module_of(name) for name in weights if name.endswith(".bias")})
    wanted = {}
    for name, shape in shapes.items():
        module = module_of(name)
        if name.startswith("tail.") and name.removesuffix("weight") + "bias" in weights:  # its own file has said so
            wanted[name.removesuffix("weight") + "bias"] = shape[:1]
        if name.endswith(".weight") and any(module == part or module.startswith(part + ".") for part in biases):
            wanted[name.removesuffix("weight") + "bias"] = shape[:1]
    return wanted


def module_of(name: str) -> str:
    """ "layers.3.ffn.up.weight" → "ffn.up": what the layers have in common."""
    match = _LAYER.fullmatch(name)
    return (match.group(2) if match else name).rpartition(".")[0]


def _untangle(weights: dict[str, np.ndarray | Deferred], where: str) -> dict[str, np.ndarray | Deferred]:
    if "embed.word" in weights and not np.array_equal(read(weights["head.weight"]), read(weights["embed.word"])):
        raise FormatError(
            f"{where}: the configuration ties head.weight to embed.word, yet both are there and differ; "
            "set tie_word_embeddings to false or leave the head out"
        )
    return {name: array for name, array in weights.items() if name != "head.weight"}


def check_finite(array: np.ndarray | Deferred, name: str, where: str) -> None:
    values = read(array)
    index = first_not_finite(values)
    if index is not None:
        raise FormatError(f"{where}: weight {name} is {values[index]} at index {index}; every weight must be finite")
