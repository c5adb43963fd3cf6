"""config.json of the younger encoders' families as entries of Config. Must not know weights and their names."""

from ..errors import FormatError, UnsupportedError
from .families import bert
from .untrusted import size_of

NAMES: dict[str, dict[str, str]] = {}  # as families.NAMES


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


READERS = {"mpnet": _mpnet}
