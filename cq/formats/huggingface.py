"""A Hugging Face folder, sentence-transformers files included, as configuration, weights and tokenizer. Must not know
how a model computes."""

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from ..errors import FormatError, UnsupportedError, brief
from ..model.config import Config
from ..model.deferred import Deferred, read
from .compressed_config import Quantization, read_quantization
from .config_json import read_config
from .deberta import READERS as DEBERTAS
from .deberta import WRITTEN, with_positions, without_positions
from .encoders import family_of
from .files import write_whole
from .generation import read_generation
from .heads import architectures_of, as_weighted, without_words
from .multi_vector import MultiVector, is_multi_vector, mark, read_multi_vector, read_projection, read_stanford
from .name_tables import FAMILIES
from .names import canonical, check_weights, foreign
from .sentence import pair_activation, read_answers, read_limits, read_modules, read_pooling, read_sentence, read_tail
from .tensors import PICKLES, read_tensors, write_safetensors
from .tokenizer_files import Settings as TokenizerSettings
from .tokenizer_files import read_tokenizer, read_tokenizer_settings
from .untrusted import as_path, flag_of, read_json


class Settings(NamedTuple):
    """All that a folder says of a model beside its weights."""

    config: Config
    biases: tuple[str, ...] | None  # as in names.check_weights
    folder: Path  # where config.json, weights and tokenizer.json are
    lowercase: bool  # texts are lowercased before they are tokenized
    tokenizer: TokenizerSettings
    tail: list[tuple[int, str, Path]]  # place, kind and folder of the modules after pooling that have weights
    late: MultiVector | None = None  # of late interaction
    quantization: Quantization | None = None  # which layers are in which codes


def read_folder(path: str | os.PathLike) -> tuple[Config, dict[str, np.ndarray | Deferred], Tokenizer | None]:
    """The model in a Hugging Face folder: its configuration, its weights by canonical names (float32, Linear weights
    (out, in), matrices Deferred), from model.safetensors or the files that model.safetensors.index.json names, and its
    tokenizer, which neither pads nor truncates, if there is one.

    Raises FileNotFoundError, FormatError for damage (pickled weights included), UnsupportedError for what cq does not
    implement; messages name the file and the tensor or entry."""
    root = as_path(path)
    if not root.is_dir():
        raise FormatError(f"{root}: not a folder")
    settings = read_settings(root)
    return assembled(settings, *read_weights(settings.folder))


def assembled(
    settings: Settings, tensors: dict[str, np.ndarray | Deferred], where: str
) -> tuple[Config, dict[str, np.ndarray | Deferred], Tokenizer | None]:
    """As read_folder, of a folder's settings and of its tensors by their names in `where`."""
    weights = canonical(tensors, settings.config.family, where, head=settings.config)
    weights = with_positions(weights, settings.config, settings.biases, where)
    settings = settings._replace(config=as_weighted(settings.config, weights))
    weights |= read_tail_weights(settings)
    weights = check_weights(weights, settings.config, where, settings.biases)
    tokenizer = tokenizer_of(settings)
    return with_padding(settings, tokenizer), weights, tokenizer


def write_folder(
    path: str | os.PathLike,
    like: str | os.PathLike,
    weights: Mapping[str, np.ndarray | Deferred],
    family: str,
    dtype: str = "float32",
) -> None:
    """A folder that `read_folder` reads: config.json and tokenizer.json of the folder `like`, and model.safetensors
    with `weights` (canonical name → float32) in `dtype`, "float32" or "float16". What is there is replaced. Of a
    DeBERTa config.json says that layers have positions of their own, see deberta.without_positions. Raises OSError,
    UnsupportedError."""
    folder, source = Path(path), Path(like)
    config = read_settings(source).config
    whole = {name: read(array) for name, array in without_positions(weights, config).items()}
    heads = config.num_heads if FAMILIES[family].by_head else 1
    named = {name: array.astype(dtype) for name, array in foreign(whole, family, heads, config).items()}
    folder.mkdir(exist_ok=True)
    for name in ("config.json", "tokenizer.json"):
        if (source / name).exists() and source.resolve() != folder.resolve():
            write_whole(folder / name, (source / name).read_bytes())
    if family in DEBERTAS:
        values = read_json(folder / "config.json") | WRITTEN
        write_whole(folder / "config.json", (json.dumps(values, indent=2) + "\n").encode())
    write_safetensors(folder / "model.safetensors", named, {"format": "pt"})


def read_settings(root: Path) -> Settings:
    """config.json of the folder `root` and the sentence-transformers files around it: pooling, what follows it, prompts
    and max_length; and those of a language model that say how texts begin and end.
    Without those an encoder pools by mean without normalizing, a decoder does not pool, and max_length is all
    positions, or what the tokenizer says. Raises FormatError, UnsupportedError, also for weights in codes."""
    settings = read_coded_settings(root)
    if settings.quantization is not None:
        raise UnsupportedError(f"{settings.quantization.where}: weights in codes are read by cq.load of their folder")
    return settings


def read_coded_settings(root: Path) -> Settings:
    """As read_settings, of a folder whose weights may be in codes."""
    modules, is_module = read_modules(root), (root / "modules.json").exists()
    folder = modules[0][1]
    file = folder / "config.json"
    if not file.exists():
        raise FormatError(f"{folder}: no config.json, so not the folder of a Hugging Face model")
    values = read_json(file)
    coded = values.pop("quantization_config", None)
    quantization = None if coded is None else read_quantization(coded, str(file))
    config, biases = parse_config(values, str(file))
    if quantization is not None and config.family in DEBERTAS and flag_of(values, "share_att_key", str(file)):
        raise UnsupportedError(
            f"{file}: quantization_config is not implemented of {config.family} models with share_att_key true"
        )
    limit, lowercase = read_limits(folder)
    if limit is not None:
        config = replace(config, max_length=min(limit, config.max_positions))
    said = read_sentence(root, is_module)
    activation = said.pop("activation_fn", None)
    if config.labels and activation is not None:
        where = str(root / "config_sentence_transformers.json")
        config = replace(config, pair_activation=pair_activation(activation, len(config.labels), where))
    config, late = replace(config, **said), None
    weighted: list[tuple[int, str, Path]] = []
    if is_multi_vector(modules):
        late = read_multi_vector(root, modules, config.hidden_size)
    elif "HF_ColBERT" in architectures_of(values, str(file)):
        late = read_stanford(folder, config.hidden_size)
    elif modules[1:] and modules[1][0] == "LogitScore":
        where = str(root / "config_sentence_transformers.json")
        config = replace(config, **read_answers(modules[1][1] / "config.json", config.vocab_size))
        config = replace(config, pair_activation=pair_activation(activation, 1, where))
    else:
        config, weighted = _pooled(config, modules[1:])
    if len(modules) > 1 or late is not None:
        config = replace(without_words(config), **({} if late is None else late.entries))
    if config.lm_head and config.causal:
        config = replace(config, **read_generation(folder, config.vocab_size))
    tokenizer = read_tokenizer_settings(folder, config.family, values.get("tokenizer_class"))
    config = replace(config, **_of_tokenizer(tokenizer, config))
    return Settings(config, biases, folder, lowercase, tokenizer, weighted, late, quantization)


def _pooled(config: Config, modules: list[tuple[str, Path]]) -> tuple[Config, list[tuple[int, str, Path]]]:
    """With what the modules after the transformer say; and those of them that have weights."""
    if not modules:
        return config, []
    config = replace(config, **read_pooling(modules[0][1] / "config.json", config.hidden_size))
    tail, weighted = read_tail(modules[1:], len(config.modes) * config.hidden_size)
    ends = bool(tail) and tail[-1] == {"kind": "normalize"}
    return replace(config, normalize=ends, tail=tuple(tail[:-1] if ends else tail)), weighted


def _of_tokenizer(settings: TokenizerSettings, config: Config) -> dict:
    """What the tokenizer's files say of the model's inputs and of its chats."""
    names, side = (settings.values.get(key) for key in ("model_input_names", "truncation_side"))
    if side not in (None, "left", "right"):
        raise FormatError(f"{settings.where}: truncation_side must be 'left' or 'right', got {brief(side)}")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise FormatError(f"{settings.where}: model_input_names must be a list of names, got {brief(names)}")
    found = {"token_types": names is None or "token_type_ids" in names, "truncation_side": side or "right"}
    return found | ({"special_tokens": settings.tokens} if config.head_size else {})


def tokenizer_of(settings: Settings) -> Tokenizer | None:
    """The folder's tokenizer, if there is one."""
    tokenizer = read_tokenizer(settings.folder, settings.lowercase, settings.tokenizer)
    if tokenizer is not None and settings.late is not None:
        mark(tokenizer, settings.late.markers)
    return tokenizer


def with_padding(settings: Settings, tokenizer: Tokenizer | None) -> Config:
    """The configuration with the id of padding that the tokenizer says, where nothing else does."""
    config, text = settings.config, (settings.tokenizer.tokens or {}).get("pad_token")
    if config.pad_token_id is not None or tokenizer is None or text is None:
        return config
    found = tokenizer.token_to_id(text)
    return config if found is None or found >= config.vocab_size else replace(config, pad_token_id=found)


def read_tail_weights(settings: Settings) -> dict[str, np.ndarray | Deferred]:
    """Weights of the modules after the transformer, by canonical name. Raises FormatError, FileNotFoundError."""
    found: dict[str, np.ndarray | Deferred] = {}
    if settings.late is not None and settings.late.projection:
        found |= read_projection(settings.late.projection)
    for i, kind, folder in settings.tail:
        module = {"Dense": "linear", "LayerNorm": "norm"}[kind]
        tensors, where = read_weights(folder)
        wanted = {f"{module}.weight": f"tail.{i}.weight", f"{module}.bias": f"tail.{i}.bias"}
        file = folder / "config.json"
        if kind == "Dense" and not flag_of(read_json(file), "bias", str(file), True):
            del wanted[f"{module}.bias"]
        if set(tensors) != set(wanted):
            raise FormatError(f"{where}: tensors {brief(sorted(tensors))}, wanted {sorted(wanted)}")
        found |= {ours: read(tensors[theirs]) for theirs, ours in wanted.items()}
    return found


def parse_config(values: dict, where: str) -> tuple[Config, tuple[str, ...] | None]:
    """A configuration from JSON in the form of `Config.to_dict` or of Hugging Face's config.json, and which modules
    have biases (see names.check_weights). Raises FormatError, UnsupportedError naming the entry; messages start with
    `where`."""
    family = values.get("family", family_of(values))
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


def read_weights(folder: Path) -> tuple[dict[str, np.ndarray | Deferred], str]:
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
    places = read_json(index, dict).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise FormatError(f"{index}: weight_map must map tensors to files, got {brief(places)}")
    tensors: dict[str, np.ndarray | Deferred] = {}
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
