"""config.json of BERT's families as entries of Config, and what all families read alike. Must not know weights and
their names."""

from ..errors import FormatError, UnsupportedError, brief
from .heads import read_classifier
from .untrusted import real_of, size_of

_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
}
NAMES: dict[str, dict[str, str]] = {  # name of most families → the family's own
    "distilbert": {
        "hidden_size": "dim",
        "num_attention_heads": "n_heads",
        "num_hidden_layers": "n_layers",
        "intermediate_size": "hidden_dim",
        "hidden_act": "activation",
    }
}


def bert(values: dict, where: str) -> dict:
    """Entries of Config of the BERT type."""
    return (
        basics(values, where)
        | {
            "type_vocab_size": size_of(values, "type_vocab_size", where, 2),
            "norm": "layer",
            "norm_eps": real_of(values, "layer_norm_eps", where, 1e-12),
            "activation": activation_of(values, "gelu", where),
            "pooling": "mean",
        }
        | read_classifier(values, "tanh", where)
    )


def _roberta(values: dict, where: str) -> dict:
    """As a BERT, but for positions, which are counted from after that of padding."""
    padding = 1 if values.get("pad_token_id") is None else values["pad_token_id"]
    entries = bert(values, where)
    positions = entries["max_positions"] - padding - 1 if type(padding) is int and padding >= 0 else 0
    if positions < 1:
        raise FormatError(
            f"{where}: pad_token_id {brief(padding)} leaves no positions of max_position_embeddings "
            f"{entries['max_positions']}"
        )
    return entries | {"position_offset": padding + 1, "max_positions": positions, "max_length": positions}


def _distilbert(values: dict, where: str) -> dict:
    return (
        bert(renamed(values, NAMES["distilbert"]), where)
        | {"type_vocab_size": 0}
        | read_classifier(values, "relu", where)
    )


def renamed(values: dict, names: dict[str, str]) -> dict:
    """With what a family calls otherwise (name of most families → its own) under the name of most."""
    return values | {usual: values[own] for usual, own in names.items() if own in values}


def basics(values: dict, where: str) -> dict:
    heads, hidden = size_of(values, "num_attention_heads", where), size_of(values, "hidden_size", where)
    if values.get("head_dim") is None and hidden % heads:
        raise FormatError(f"{where}: hidden_size {hidden} is not a multiple of num_attention_heads {heads}")
    positions = size_of(values, "max_position_embeddings", where)
    return {
        "family": values["model_type"],
        "vocab_size": size_of(values, "vocab_size", where),
        "hidden_size": hidden,
        "num_layers": size_of(values, "num_hidden_layers", where),
        "num_heads": heads,
        "num_kv_heads": heads,
        "head_dim": size_of(values, "head_dim", where, hidden // heads),
        "intermediate_size": size_of(values, "intermediate_size", where),
        "max_positions": positions,
        "max_length": positions,
    }


def activation_of(values: dict, default: str, where: str, key: str = "hidden_act") -> str:
    name = values.get(key, default)
    if not isinstance(name, str) or name not in _ACTIVATIONS:
        raise UnsupportedError(f"{where}: {key} {brief(name)} is not implemented; these are: {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


READERS = {"bert": bert, "roberta": _roberta, "xlm-roberta": _roberta, "camembert": _roberta, "distilbert": _distilbert}
