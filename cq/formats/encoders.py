"""config.json of the younger encoders' families as entries of Config. Must not know weights and their names."""

from ..errors import FormatError, UnsupportedError, brief
from .decoders import NAMES as DECODERS_NAMES
from .decoders import count_of, half_window, layer_types, local_theta_of
from .families import activation_of, basics, bert, renamed
from .heads import read_classifier
from .rotary import rope_of
from .untrusted import real_of, size_of

_T5_POSITIONS = 1 << 15  # of which no file says anything: distances have no end
_T5 = {
    "hidden_size": "d_model",
    "num_attention_heads": "num_heads",
    "num_hidden_layers": "num_layers",
    "intermediate_size": "d_ff",
    "head_dim": "d_kv",
}
NAMES: dict[str, dict[str, str]] = {  # as families.NAMES
    "nomic_bert": DECODERS_NAMES["gpt2"] | {"layer_norm_eps": "layer_norm_epsilon", "rope_theta": "rotary_emb_base"},
    "t5": _T5,
    "t5-gated": _T5,
}
# of config.json: keys that say which modules have biases, of families whose class has them not
BIASES = {"nomic_bert": ("qkv_proj_bias", "mlp_fc1_bias", "mlp_fc2_bias")}
# position_embedding_type of families whose is not "absolute"
POSITIONS = {"gte": "rope", "new": "rope", "jina-bert": "alibi"}


def _mpnet(values: dict, where: str) -> dict:
    """As a BERT whose positions begin after that of padding, always 1, with buckets of distances too."""
    entries = bert(values, where)
    positions = entries["max_positions"] - 2
    buckets = size_of(values, "relative_attention_num_buckets", where, 32)
    if buckets != 32:  # transformers' class takes 32, whatever this says
        raise UnsupportedError(f"{where}: relative_attention_num_buckets {buckets} is not implemented, only 32")
    if positions < 1:
        raise FormatError(f"{where}: max_position_embeddings {positions + 2} leaves no positions after padding's")
    return entries | {
        "type_vocab_size": 0,
        "position_offset": 2,
        "max_positions": positions,
        "max_length": positions,
        "position_bias": {"kind": "buckets", "buckets": buckets, "distance": 128},
    }


def _electra(values: dict, where: str) -> dict:
    width = size_of(values, "embedding_size", where, 128)
    factorized = {} if width == values["hidden_size"] else {"embedding_width": width}
    return bert(values, where) | factorized | read_classifier(values, "gelu", where)


def _albert(values: dict, where: str) -> dict:
    width = size_of(values, "embedding_size", where, 128)
    return bert(values, where) | {"embedding_width": width}  # projected even where it is the hidden size


def _rotary(values: dict, theta: float, where: str) -> dict:
    """As a BERT with rotary positions and a gated feed-forward part."""
    entries = basics(values, where)
    rope = rope_of(values, entries["max_positions"], where, theta)
    return (
        entries
        | {
            "type_vocab_size": size_of(values, "type_vocab_size", where, 2, least=0),
            "norm": "layer",
            "norm_eps": real_of(values, "layer_norm_eps", where, 1e-12),
            "activation": activation_of(values, "gelu", where),
            "gated": True,
            "rope_theta": rope.theta,
            "rope_scaling": rope.scaling,
            "pooling": "mean",
        }
        | read_classifier(values, "tanh", where)
    )


def _nomic(values: dict, where: str) -> dict:
    gates = {"swiglu": "silu", "geglu": "gelu"}
    values = renamed(values, NAMES["nomic_bert"])
    if isinstance(values["hidden_act"], str):
        values["hidden_act"] = gates.get(values["hidden_act"], values["hidden_act"])
    if "activation_function" in values and values["activation_function"] not in gates:
        raise UnsupportedError(
            f"{where}: activation_function {brief(values['activation_function'])} is not implemented; these are: "
            + ", ".join(gates)
        )
    if values.get("rotary_scaling_factor") is not None:  # stretched from there on, by each text's own length
        trained = size_of(values, "max_trained_positions", where, 2048)
        values["max_position_embeddings"] = min(size_of(values, "max_position_embeddings", where), trained)
    multiple = size_of(values, "pad_vocab_size_multiple", where, 1)
    values["vocab_size"] = -(-size_of(values, "vocab_size", where) // multiple) * multiple
    return _rotary(values, 1000.0, where)


def _gte(values: dict, where: str) -> dict:
    return _rotary(values, 10000.0 if values["model_type"] == "new" else 160000.0, where)


def _jina(values: dict, where: str) -> dict:
    """As a BERT whose positions are a bias of scores by distance, with a gated feed-forward part."""
    gates, kind = {"geglu": "gelu", "reglu": "relu"}, values.get("feed_forward_type", "original")
    if not isinstance(kind, str) or kind not in gates:
        raise UnsupportedError(
            f"{where}: feed_forward_type {brief(kind)} is not implemented; these are: {', '.join(gates)}"
        )
    return bert(values, where) | {
        "activation": gates[kind],
        "gated": True,
        "position_table": False,
        "position_bias": {"kind": "alibi"},
    }


def _t5(values: dict, where: str) -> dict:
    """T5's encoder alone, which knows positions only as buckets of distances and scales no scores."""
    values = renamed(values, NAMES["t5"]) | {"max_position_embeddings": _T5_POSITIONS}
    kind = values.get("feed_forward_proj", "relu")
    activation = kind.removeprefix("gated-") if isinstance(kind, str) else kind
    values["hidden_act"] = "gelu_new" if kind == "gated-gelu" else activation
    for key, only in (("dense_act_fn", values["hidden_act"]), ("is_gated_act", activation != kind)):
        if values.get(key) not in (None, only):
            raise UnsupportedError(
                f"{where}: {key} {brief(values[key])} beside feed_forward_proj {brief(kind)} is not implemented"
            )
    buckets = size_of(values, "relative_attention_num_buckets", where, 32)
    return basics(values, where) | {
        "norm": "rms",
        "norm_eps": real_of(values, "layer_norm_epsilon", where, 1e-6),
        "norm_first": True,
        "activation": activation_of(values, "relu", where),
        "gated": activation != kind,
        "attention_scale": 1.0,
        "position_table": False,
        "position_bias": {
            "kind": "buckets",
            "buckets": buckets,
            "distance": size_of(values, "relative_attention_max_distance", where, 128),
        },
        "pooling": "mean",
    }


def _modernbert(values: dict, where: str) -> dict:
    """Norms before each part, a gated feed-forward part, rotary positions that turn faster in layers that see a window
    alone."""
    entries = basics(values, where)
    positions, layers = entries["max_positions"], entries["num_layers"]
    far, near = (values | {"rope_theta": values.get(f"{kind}_rope_theta")} for kind in ("global", "local"))
    rope = rope_of(far, positions, where, 160000.0, None, "full_attention")
    every = size_of(values, "global_attn_every_n_layers", where, 3)
    windowed = layer_types(values, layers, where) or tuple(i % every != 0 for i in range(count_of(layers, where)))
    found = entries | {
        "norm": "layer",
        "norm_eps": real_of(values, "norm_eps", where, 1e-5),
        "norm_first": True,
        "embedding_norm": True,
        "activation": activation_of({"hidden_act": values.get("hidden_activation", "gelu")}, "gelu", where),
        "gated": True,
        "rope_theta": rope.theta,
        "rope_scaling": rope.scaling,
        "pooling": "mean",
    }
    if any(windowed):
        window = half_window(size_of(values, "local_attention", where, 128), "local_attention", where)
        theta = local_theta_of(near, positions, where, 10000.0)
        found |= {"window": window, "local": windowed, "local_rope_theta": theta}
    return found


def family_of(values: dict) -> object:
    """model_type, or the family that has another name here, since tensors are named otherwise."""
    kind = values.get("model_type")
    if kind == "bert" and values.get("position_embedding_type") == "alibi":
        return "jina-bert"
    if kind == "t5" and str(values.get("feed_forward_proj", "")).startswith("gated-"):
        return "t5-gated"
    if kind == "deberta-v2" and values.get("legacy") is False:
        return "deberta-v2-new"
    return kind


READERS = {
    "mpnet": _mpnet,
    "electra": _electra,
    "albert": _albert,
    "nomic_bert": _nomic,
    "gte": _gte,
    "new": _gte,
    "jina-bert": _jina,
    "t5": _t5,
    "t5-gated": _t5,
    "modernbert": _modernbert,
}
