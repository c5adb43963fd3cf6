"""A model from one file of arrays, npz or safetensors, with its configuration in the file, beside it or given. Must not
know how a model computes."""

from os import PathLike
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from ..errors import CqError, FormatError
from ..model.config import Config
from ..model.deferred import Deferred
from .deberta import with_positions
from .heads import as_weighted
from .huggingface import parse_config, read_settings, read_tail_weights, tokenizer_of, with_padding
from .names import canonical, check_weights, is_canonical
from .tensors import read_tensors
from .tokenizer_files import read_tokenizer
from .untrusted import parse_json, read_json


def read_arrays(
    path: str | PathLike, config: Config | dict | str | PathLike | None = None
) -> tuple[Config, dict[str, np.ndarray | Deferred], Tokenizer | None]:
    """The model in the `.npz` or `.safetensors` file `path`: configuration, weights by canonical names (float32, Linear
    weights (out, in)), and the tokenizer of a tokenizer.json beside the file, if there is one.

    The file names its arrays canonically or as Hugging Face does for the family. The configuration is
    `config`, in the form of `Config.to_dict` or of config.json, or the path of a JSON file of such; or else the string
    `config` in the npz or in the metadata of the safetensors file; or else config.json beside the file, with the
    sentence-transformers files around it. Raises FileNotFoundError, FormatError, UnsupportedError, naming the file and
    the tensor or entry."""
    tensors, metadata = read_tensors(path)
    where, folder = str(path), Path(path).parent
    settings, tail = None, {}
    if config is not None:
        config, biases = _given(config)
    elif "config" in metadata:
        at = f"{where}: config"
        config, biases = parse_config(parse_json(metadata["config"].encode("utf-8", "surrogatepass"), at, dict), at)
    elif (folder / "config.json").is_file():
        settings = read_settings(folder)
        config, biases, folder, tail = settings.config, settings.biases, settings.folder, read_tail_weights(settings)
    else:
        raise FormatError(
            f'{where}: no configuration: give config=, put one into the file as the string "config", '
            "or config.json beside it"
        )
    if not is_canonical(tensors):
        tensors = canonical(tensors, config.family, where, head=config)
        tensors = with_positions(tensors, config, biases, where)
        config = as_weighted(config, tensors)
    weights = check_weights(tail | tensors, config, where, biases)
    if settings is None:
        return config, weights, read_tokenizer(folder)
    settings = settings._replace(config=config)
    tokenizer = tokenizer_of(settings)
    return with_padding(settings, tokenizer), weights, tokenizer


def _given(config: Config | dict | str | PathLike) -> tuple[Config, tuple[str, ...] | None]:
    if isinstance(config, Config):
        return config, None
    if isinstance(config, dict):
        return parse_config(config, "config")
    if isinstance(config, (str, PathLike)):
        return parse_config(read_json(config, dict), str(config))
    raise CqError(f"config: wanted a Config, a dict or the path of a JSON file, got {type(config).__name__}")
