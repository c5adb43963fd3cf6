"""A Hugging Face folder, sentence-transformers files included, as configuration, weights and tokenizer. Must not know
how a model computes."""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer, normalizers

from ..errors import FormatError, UnsupportedError
from ..model.config import Config
from ..model.deferred import Deferred, read
from .families import read_config
from .generation import read_generation
from .names import FAMILIES, canonical, check_weights, foreign
from .sentence import read_limits, read_modules, read_pooling
from .tensors import PICKLES, read_tensors, write_safetensors
from .untrusted import as_file, as_path, brief, read_json

MAX_TOKENIZER = 256 << 20  # bytes; the largest in the wild are near 40 MB


class Settings(NamedTuple):
    """All that a folder says of a model beside its weights."""

    config: Config
    biases: tuple[str, ...] | None  # as in names.check_weights
    folder: Path  # where config.json, weights and tokenizer.json are
    lowercase: bool  # texts are lowercased before they are tokenized


def read_folder(path) -> tuple[Config, dict[str, np.ndarray | Deferred], Tokenizer | None]:
    """The model in a Hugging Face folder: its configuration, its weights by canonical names (float32, Linear weights
    (out, in), matrices Deferred), from model.safetensors or the files that model.safetensors.index.json names, and its
    tokenizer, which neither pads nor truncates, if there is one.

    Raises FileNotFoundError, FormatError for damage (pickled weights included), UnsupportedError for what cq does not
    implement; messages name the file and the tensor or entry."""
    root = as_path(path)
    if not root.is_dir():
        raise FormatError(f"{root}: not a folder")
    settings = read_settings(root)
    tensors, where = _read_weights(settings.folder)
    weights = canonical(tensors, settings.config.family, where, classifier=bool(settings.config.labels))
    weights = check_weights(weights, settings.config, where, settings.biases)
    return settings.config, weights, read_tokenizer(settings.folder, settings.lowercase)


def write_folder(path, like, weights: dict[str, np.ndarray], family: str, dtype: str = "float32") -> None:
    """A folder that `read_folder` reads: config.json and tokenizer.json of the folder `like`, and model.safetensors
    with `weights` (canonical name → float32) in `dtype`, "float32" or "float16". What is there is replaced. Raises
    OSError."""
    folder, like = Path(path), Path(like)
    folder.mkdir(exist_ok=True)
    whole = {name: read(array) for name, array in weights.items()}
    named = {name: array.astype(dtype) for name, array in foreign(whole, family).items()}
    for name in ("config.json", "tokenizer.json"):
        if (like / name).exists() and like.resolve() != folder.resolve():
            (folder / name).write_bytes((like / name).read_bytes())
    write_safetensors(folder / "model.safetensors", named, {"format": "pt"})


def read_settings(root: Path) -> Settings:
    """config.json of the folder `root` and the sentence-transformers files around it: pooling, normalize and
    max_length; and those of a language model that say how texts begin and end.
    Without those an encoder pools by mean without normalizing, a decoder does not pool, and max_length is all
    positions."""
    modules = read_modules(root)
    folder = modules["Transformer"]
    file = folder / "config.json"
    if not file.exists():
        raise FormatError(f"{folder}: no config.json, so not the folder of a Hugging Face model")
    config, biases = parse_config(read_json(file), str(file))
    limit, lowercase = read_limits(folder, (root / "modules.json").exists())
    if limit is not None:
        config = replace(config, max_length=min(limit, config.max_positions))
    if "Pooling" in modules:
        config = replace(config, pooling=read_pooling(modules["Pooling"] / "config.json", config.hidden_size))
    if "Normalize" in modules:
        config = replace(config, normalize=True)
    if config.lm_head:
        config = replace(config, **read_generation(folder, config.vocab_size))
    return Settings(config, biases, folder, lowercase)


def parse_config(values: dict, where: str) -> tuple[Config, tuple[str, ...] | None]:
    """A configuration from JSON in the form of `Config.to_dict` or of Hugging Face's config.json, and which modules
    have biases (see names.check_weights). Raises FormatError, UnsupportedError naming the entry; messages start with
    `where`."""
    family = values.get("family", values.get("model_type"))
    if family is None:
        raise FormatError(f"{where}: no model_type, so nothing says which family of models this is")
    if not isinstance(family, str) or family not in FAMILIES:
        raise UnsupportedError(f"{where}: family {brief(family)} is not implemented; these are: {', '.join(FAMILIES)}")
    biases = None
    if "family" not in values:
        values, biases = read_config(values, family, where)
    try:
        return Config.from_dict(values), biases
    except FormatError as error:
        raise FormatError(f"{where}: {str(error).removeprefix('config: ')}") from None


def read_tokenizer(folder: Path, lowercase: bool = False) -> Tokenizer | None:
    """tokenizer.json of `folder` with padding and truncation off, or None if there is none. `lowercase`: before all
    else."""
    file = folder / "tokenizer.json"
    if not file.exists():
        return None
    with open(as_file(file), "rb") as opened:
        data = opened.read(min(file.stat().st_size, MAX_TOKENIZER + 1))
    return parse_tokenizer(data, str(file), lowercase)


def parse_tokenizer(data: bytes, where: str, lowercase: bool = False) -> Tokenizer:
    """The tokenizer in `data`, the bytes of a tokenizer.json, as `read_tokenizer`. Raises FormatError, its message
    starting with `where`."""
    if len(data) > MAX_TOKENIZER:
        raise FormatError(f"{where}: at most {MAX_TOKENIZER} bytes are read, this has more")
    try:
        tokenizer = Tokenizer.from_str(data.decode("utf-8"))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        if lowercase:
            rest = [tokenizer.normalizer] if tokenizer.normalizer is not None else []
            tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *rest])
        tokenizer.encode("a")  # some contradictions show only here
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # a panic of the Rust library is no Exception
        raise FormatError(f"{where}: not a tokenizer: {error}") from None
    return tokenizer


def _read_weights(folder: Path) -> tuple[dict[str, np.ndarray | Deferred], str]:
    """All tensors of the folder, and what to call where they came from."""
    file, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if file.exists():
        return read_tensors(file)[0], str(file)
    if index.exists():
        return _read_shards(index), str(index)
    pickled = sorted(entry.name for entry in folder.iterdir() if entry.suffix in PICKLES)
    if pickled:
        raise FormatError(
            f"{folder}: no model.safetensors; {pickled[0]} is a pickle, which could run code and is never "
            "read; save the model again with safe_serialization=True"
        )
    raise FormatError(f"{folder}: no model.safetensors")


def _read_shards(index: Path) -> dict[str, np.ndarray | Deferred]:
    """The tensors of the files beside `index` that it names, each from the file that it says."""
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise FormatError(f"{index}: weight_map must map tensors to files, got {brief(places)}")
    tensors = {}
    for name in sorted(set(places.values())):
        file = index.parent / name
        if file.name != name or file.suffix != ".safetensors":
            raise FormatError(f"{index}: {brief(name)} is not the name of a .safetensors file beside it")
        if not file.exists():
            raise FormatError(f"{index}: {brief(name)}, one of the files that it names, is not there; fetch it again")
        found, _ = read_tensors(file)
        astray = set(found) ^ {tensor for tensor, place in places.items() if place == name}
        if astray:
            raise FormatError(f"{index}: {brief(name)} has not the tensors that it should: {brief(sorted(astray))}")
        tensors |= found
    return tensors
