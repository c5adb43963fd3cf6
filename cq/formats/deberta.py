"""DeBERTa-v2 and v3: config.json as entries of Config, and weights as cq has them: the keys and queries of relative
positions, which are constants of a model: its layers make them of one table, once, as the weights are read; and the
kernel of the convolution as a matrix. Must not know how the model uses them."""

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from .. import _core
from ..errors import FormatError, UnsupportedError, brief
from ..model.config import Config
from ..model.deferred import Deferred, read
from ..model.norm import Norm
from ..weights import pack_floats
from .families import activation_of, basics
from .heads import architectures_of, read_classifier
from .names import check_finite
from .untrusted import flag_of, real_of, size_of

_TERMS = {"c2p": "keys", "p2c": "queries"}  # content meets a position's key; a key meets a position's query
_POOLERS = ("gelu", "relu", "tanh")
_TABLE, _NORM = "embed.relative", "embed.relative_norm"
_LAYERS = {"keys": "key", "queries": "query"}
# of config.json, where each layer has keys and queries of positions of its own
WRITTEN = {"share_att_key": False, "norm_rel_ebd": "none"}
_LAYER_OWN = re.compile(r"layers\.[0-9]+\.(attention\.position_(?:key|query))\.(?:weight|bias)")
POSITION_LAYER = re.compile(r"layers\.[0-9]+\.attention\.position_(?:key|query)\.weight")


def _deberta(values: dict, where: str) -> dict:
    """As a BERT whose scores are sums of products with relative positions too."""
    entries = basics(values, where)
    for key, only in (("embedding_size", entries["hidden_size"]), ("attention_head_size", entries["head_dim"])):
        if size_of(values, key, where, only) != only:
            raise UnsupportedError(f"{where}: {key} {brief(values[key])} is not implemented, only {only} here")
    terms = _terms(values, where)
    found = entries | {
        "type_vocab_size": size_of(values, "type_vocab_size", where, 0, least=0),
        "norm": "layer",
        "norm_eps": real_of(values, "layer_norm_eps", where, 1e-7),
        "activation": activation_of(values, "gelu", where),
        "position_table": flag_of(values, "position_biased_input", where, True),
        "pooling": "mean",
    }
    if terms:  # with relative_attention or without it
        found["attention_scale"] = 1 / math.sqrt(entries["head_dim"] * (1 + len(terms)))
    if terms and flag_of(values, "relative_attention", where):
        furthest = values.get("max_relative_positions", -1)
        if type(furthest) is int and furthest < 1:
            furthest = entries["max_positions"]
        buckets = values.get("position_buckets", -1)
        found["position_bias"] = {
            "kind": "disentangled",
            "buckets": 0 if type(buckets) is int and buckets < 1 else buckets,
            "distance": furthest,
            **{part: part in terms for part in _TERMS.values()},
        }
    return found | _convolution(values, where) | _classifier(values, entries["hidden_size"], where)


def _terms(values: dict, where: str) -> set[str]:
    """The products that pos_att_type asks for."""
    given = values.get("pos_att_type") or []
    names = [name.strip() for name in given.lower().split("|")] if isinstance(given, str) else given
    if not isinstance(names, list) or not all(isinstance(name, str) and name in _TERMS for name in names):
        raise UnsupportedError(f"{where}: pos_att_type {brief(given)} is not implemented, only c2p and p2c")
    return {_TERMS[name] for name in names}


def _convolution(values: dict, where: str) -> dict:
    """Entries of Config of a convolution beside the first layer."""
    kernel = size_of(values, "conv_kernel_size", where, 0, least=0)
    if not kernel:
        return {}
    if size_of(values, "conv_groups", where, 1) != 1:
        raise UnsupportedError(f"{where}: conv_groups {brief(values['conv_groups'])} is not implemented, only 1")
    return {"convolution": {"kernel": kernel, "activation": activation_of(values, "tanh", where, "conv_act")}}


def _classifier(values: dict, hidden: int, where: str) -> dict:
    """Entries of Config of a sequence classifier, whose pooler is a layer of its own."""
    if not any(name.endswith("ForSequenceClassification") for name in architectures_of(values, where)):
        return {}
    activation = values.get("pooler_hidden_act", "gelu")
    if activation not in _POOLERS:
        raise UnsupportedError(
            f"{where}: pooler_hidden_act {brief(activation)} is not implemented; these are: {', '.join(_POOLERS)}"
        )
    if size_of(values, "pooler_hidden_size", where, hidden) != hidden:
        raise UnsupportedError(
            f"{where}: pooler_hidden_size {brief(values['pooler_hidden_size'])} is not implemented, only the hidden "
            f"size, {hidden}"
        )
    return read_classifier(values, activation, where)


def _without_tie(values: dict, where: str) -> dict:
    """Where the masked language model's head always reads the word table."""
    if not flag_of(values, "tie_word_embeddings", where, True):
        raise UnsupportedError(f"{where}: tie_word_embeddings false is not implemented where legacy is false")
    return _deberta(values, where)


def as_deberta(config: Config) -> dict[str, Any]:
    """The inverse of `READERS` beside what a BERT has, for weights as `without_positions` gives them."""
    bias, convolution = config.position_bias, config.convolution
    if bias is not None:
        terms = [name for name, part in _TERMS.items() if bias[part]]
    else:  # only how many there are counts
        scale = config.attention_scale
        terms = [] if scale is None else list(_TERMS)[: round(1 / (scale * scale * config.head_dim)) - 1]
    found = {
        "legacy": config.family == "deberta-v2",
        "relative_attention": bias is not None,
        "pos_att_type": terms,
        "position_buckets": (bias or {}).get("buckets") or -1,
        "max_relative_positions": (bias or {}).get("distance", -1),
        "position_biased_input": config.position_table,
        **WRITTEN,
    }
    if convolution is not None:
        act = {"gelu_tanh": "gelu_new"}.get(convolution["activation"], convolution["activation"])
        found |= {"conv_kernel_size": convolution["kernel"], "conv_act": act}
    return found | ({} if config.classifier is None else {"pooler_hidden_act": config.classifier})


def position_layers(values: dict, where: str) -> tuple[str, ...]:
    """The modules, beside those of all models of the family, that relative positions go through, as config.json says;
    each has a bias."""
    kinds = values.get("norm_rel_ebd", "none")
    kinds = {kind.strip() for kind in kinds.lower().split("|")} if isinstance(kinds, str) else {brief(kinds)}
    if not kinds <= {"none", "layer_norm"}:
        raise UnsupportedError(
            f"{where}: norm_rel_ebd {brief(values['norm_rel_ebd'])} is not implemented; these are: none, layer_norm"
        )
    own = () if flag_of(values, "share_att_key", where) else tuple(map(_own, _LAYERS.values()))
    return own + ((_NORM,) if "layer_norm" in kinds else ())


def _own(layer: str) -> str:
    return f"attention.position_{layer}"


def with_positions(
    weights: Mapping[str, np.ndarray | Deferred], config: Config, modules: tuple[str, ...] | None, where: str
) -> dict[str, np.ndarray | Deferred]:
    """Weights by canonical name with the keys and queries of relative positions, which each layer makes of one table,
    in place of that table, its norm and layers of their own, and the convolution's weight as a matrix; weights of other
    families as they are. modules: as `position_layers` gives them; None: those that have weights. What transformers
    does not read either is left out.
    Raises FormatError for weights that are missing, of another shape or not finite."""
    if config.family not in READERS:
        return dict(weights)
    apart = (_TABLE, *(() if config.position_table else ("embed.position",)))
    apart += () if config.convolution else ("convolution.",)
    own = {name: _LAYER_OWN.fullmatch(name) for name in weights}
    result = {name: array for name, array in weights.items() if not (own[name] or name.startswith(apart))}
    bias, hidden, features = config.position_bias, config.hidden_size, config.num_heads * config.head_dim
    if config.convolution is not None:
        taken = _taken(weights, "convolution.weight", (hidden, hidden, config.convolution["kernel"]), where)
        result["convolution.weight"] = np.ascontiguousarray(taken.swapaxes(1, 2)).reshape(hidden, -1)
    if bias is None:
        return result
    if modules is None:
        modules = tuple(match.group(1) for match in own.values() if match)
        modules += (_NORM,) if f"{_NORM}.weight" in weights else ()
    rows = _taken(weights, _TABLE, (2 * (bias["buckets"] or bias["distance"]), hidden), where)
    if _NORM in modules:
        weight, shift = (_taken(weights, f"{_NORM}.{leaf}", (hidden,), where) for leaf in ("weight", "bias"))
        rows = Norm(weight, shift, config.norm_eps, False)(rows).floats()
    for i in range(config.num_layers):
        for part, layer in _LAYERS.items():
            if bias[part]:
                name = f"layers.{i}.{_own(layer) if _own(layer) in modules else f'attention.{layer}'}"
                weight = _taken(weights, f"{name}.weight", (features, hidden), where)
                packed = pack_floats(np.ascontiguousarray(weight).T)
                met = _core.linear(rows, packed, _taken(weights, f"{name}.bias", (features,), where))
                result[f"layers.{i}.attention.relative_{part}"] = np.ascontiguousarray(met.T)
    return result


def without_positions(weights: Mapping[str, np.ndarray | Deferred], config: Config) -> dict[str, np.ndarray | Deferred]:
    """The inverse of `with_positions`, for a config.json with WRITTEN; weights of other families as they are. The table
    has a 1 in a feature of its own for each position, so that a layer's weight holds that layer's keys or queries
    themselves, whatever became of those that were read, and every reader gets the same bits. Raises UnsupportedError
    where there are more positions than features."""
    result, hidden, bias = dict(weights), config.hidden_size, config.position_bias
    if config.family not in READERS:
        return result
    if config.convolution is not None and "convolution.weight" in weights:
        kernel = read(weights["convolution.weight"]).reshape(hidden, config.convolution["kernel"], hidden)
        result["convolution.weight"] = np.ascontiguousarray(kernel.swapaxes(1, 2))
    if bias is None:
        return result
    positions = 2 * (bias["buckets"] or bias["distance"])
    if positions > hidden:
        raise UnsupportedError(
            f"weights: keys of {positions} relative positions go back into no table of {hidden} features; "
            f"{config.family} models are written where there are no more positions than features"
        )
    result[_TABLE] = np.eye(positions, hidden, dtype=np.float32)
    for i in range(config.num_layers):
        for part, layer in _LAYERS.items():
            if bias[part]:
                rows = read(result.pop(f"layers.{i}.attention.relative_{part}"))
                weight = np.zeros((len(rows), hidden), np.float32)
                weight[:, :positions] = rows
                own = f"layers.{i}.{_own(layer)}"
                result |= {f"{own}.weight": weight, f"{own}.bias": np.zeros(len(rows), np.float32)}
    return result


def _taken(weights: Mapping[str, np.ndarray | Deferred], name: str, shape: tuple[int, ...], where: str) -> np.ndarray:
    if name not in weights:
        raise FormatError(f"{where}: missing weight {name} of shape {shape}")
    array = weights[name]
    if array.shape != shape or array.dtype != np.float32:
        raise FormatError(f"{where}: weight {name} is {array.dtype} of shape {array.shape}, wanted float32 of {shape}")
    check_finite(array, name, where)
    return read(array)


READERS = {"deberta-v2": _deberta, "deberta-v2-new": _without_tie}
