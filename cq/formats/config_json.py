"""config.json as entries of Config: what is read of every family, around its own reader. Must not know weights and
their names."""

from ..errors import UnsupportedError, brief
from . import deberta, decoders, encoders, families
from .defaults import DEFAULTS
from .generation import read_defaults, read_ids, read_padding
from .heads import read_head
from .keys import check_keys
from .untrusted import flag_of

_ATTENTION = ("attention.query", "attention.key", "attention.value", "attention.output")
_BIASES = {  # key → modules
    "attention_bias": _ATTENTION,
    "mlp_bias": ("ffn",),
    "norm_bias": ("embed.norm", "attention_norm", "ffn_norm", "final_norm"),
    "qkv_proj_bias": ("attention",),
    "mlp_fc1_bias": ("ffn.gate", "ffn.up"),
    "mlp_fc2_bias": ("ffn.down",),
}
READERS = families.READERS | encoders.READERS | deberta.READERS | decoders.READERS
NAMES = families.NAMES | encoders.NAMES | decoders.NAMES


def read_config(values: dict, family: str, where: str) -> tuple[dict, tuple[str, ...] | None]:
    """Entries of Config from those of config.json, and which modules have biases (see names.check_weights). Raises
    FormatError, UnsupportedError naming the entry; messages start with `where`."""
    check_keys(values, "config.json", where)
    if values.get("quantization_config") is not None:
        raise UnsupportedError(
            f"{where}: quantization_config {brief(values['quantization_config'])} is not implemented here: weights in "
            "codes are read by cq.load of their folder"
        )
    if family not in decoders.WINDOWED and values.get("sliding_window") is not None:
        raise UnsupportedError(f"{where}: sliding_window {brief(values['sliding_window'])} is not implemented")
    usual = NAMES.get(family, {})
    given = {own for name, own in usual.items() if name in values}
    values = {key: value for key, value in DEFAULTS[family].items() if key not in given} | values
    kind, only = values.get("position_embedding_type"), encoders.POSITIONS.get(family, "absolute")
    if kind is not None and kind != only:
        raise UnsupportedError(f"{where}: position_embedding_type {brief(kind)} is not implemented, only {only!r}")
    if flag_of(values, "is_encoder_decoder", where) and not family.startswith("t5"):
        raise UnsupportedError(
            f"{where}: is_encoder_decoder true is not implemented, only of T5, whose encoder is read"
        )
    keys = [key for key in _BIASES if key in DEFAULTS[family] or key in encoders.BIASES.get(family, ())]
    biases = tuple(module for key in keys if flag_of(values, key, where) for module in _BIASES[key]) if keys else None
    if family in deberta.READERS:
        biases = deberta.position_layers(values, where)
    entries = READERS[family](values, where)
    if entries.get("causal") and not flag_of(values, "is_causal", where, True):
        raise UnsupportedError(f"{where}: is_causal false is not implemented: a decoder's tokens see no later ones")
    entries["family"], vocab_size = family, entries["vocab_size"]
    entries |= read_head(values, entries, where)
    entries |= read_padding(values, vocab_size, where)
    if entries.get("lm_head") and entries.get("causal"):
        entries |= read_ids(values, vocab_size, where) | read_defaults(values, vocab_size, where)
    return entries, biases
