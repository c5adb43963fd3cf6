"""A Hugging Face folder, sentence-transformers files included, as configuration, weights and tokenizer. Must not know how a
model computes."""
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer, normalizers

from ..errors import FormatError, UnsupportedError
from ..model.config import Config
from .chat import with_chat
from .names import FAMILIES, canonical, check_weights, foreign
from .sentence import read_limits, read_modules, read_pooling
from .strangers import as_file, as_path, brief, flag_of, read_json, real_of, size_of
from .tensors import PICKLES, read_tensors, write_safetensors

MAX_TOKENIZER = 256 << 20  # bytes; the largest in the wild are near 40 MB

_ACTIVATIONS = {"gelu": "gelu", "gelu_python": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh",
                "gelu_fast": "gelu_tanh", "silu": "silu", "swish": "silu", "relu": "relu"}
_ONLY = {  # entry of config.json → the one value that is implemented; absent or null counts as that value
    "position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False, "sliding_window": None,
    "partial_rotary_factor": 1.0, "quantization_config": None}


class Settings(NamedTuple):
    """All that a folder says of a model beside its weights."""
    config: Config
    biases: tuple[str, ...] | None  # as in names.check_weights
    folder: Path                    # where config.json, weights and tokenizer.json are
    lowercase: bool                 # texts are lowercased before they are tokenized


def read_folder(path) -> tuple[Config, dict[str, np.ndarray], Tokenizer | None]:
    """The model in a Hugging Face folder: its configuration, its weights by canonical names (float32, Linear weights (out,
    in), read-only and mapped where the file holds float32), and its tokenizer, which neither pads nor truncates, if there
    is one.

    Raises FileNotFoundError, FormatError for damage (pickled weights included), UnsupportedError for what cq does not
    implement; messages name the file and the tensor or entry."""
    root = as_path(path)
    if not root.is_dir():
        raise FormatError(f"{root}: not a folder")
    settings = read_settings(root)
    file = _weights_file(settings.folder)
    tensors, _ = read_tensors(file)
    weights = canonical(tensors, settings.config.family, str(file))
    weights = check_weights(weights, settings.config, str(file), settings.biases)
    return settings.config, weights, read_tokenizer(settings.folder, settings.lowercase)


def write_folder(path, like, weights: dict[str, np.ndarray], family: str, dtype: str = "float32") -> None:
    """A folder that `read_folder` reads: config.json and tokenizer.json of the folder `like`, and model.safetensors with
    `weights` (canonical name → float32) in `dtype`, "float32" or "float16". What is there is replaced. Raises OSError."""
    folder, like = Path(path), Path(like)
    folder.mkdir(exist_ok=True)
    named = {name: array.astype(dtype) for name, array in foreign(weights, family).items()}
    for name in ("config.json", "tokenizer.json"):
        if (like / name).exists() and like.resolve() != folder.resolve():
            (folder / name).write_bytes((like / name).read_bytes())
    write_safetensors(folder / "model.safetensors", named, {"format": "pt"})


def read_settings(root: Path) -> Settings:
    """config.json of the folder `root` and the sentence-transformers files around it: pooling, normalize and max_length.
    Without those an encoder pools by mean without normalizing, a decoder does not pool, and max_length is all positions."""
    modules = read_modules(root)
    folder = modules["Transformer"]
    file = folder / "config.json"
    if not file.exists():
        raise FormatError(f"{folder}: no config.json, so not the folder of a Hugging Face model")
    values = read_json(file)
    config, biases = parse_config(values, str(file))
    if config.lm_head:
        config = with_chat(config, folder, values)
    limit, lowercase = read_limits(folder, (root / "modules.json").exists())
    if limit is not None:
        config = replace(config, max_length=min(limit, config.max_positions))
    if "Pooling" in modules:
        config = replace(config, pooling=read_pooling(modules["Pooling"] / "config.json", config.hidden_size))
    if "Normalize" in modules:
        config = replace(config, normalize=True)
    return Settings(config, biases, folder, lowercase)


def parse_config(values: dict, where: str) -> tuple[Config, tuple[str, ...] | None]:
    """A configuration from JSON in the form of `Config.to_dict` or of Hugging Face's config.json, and which modules have
    biases (see names.check_weights). Raises FormatError, UnsupportedError naming the entry; messages start with `where`."""
    family = values.get("family", values.get("model_type"))
    if family is None:
        raise FormatError(f"{where}: no model_type, so nothing says which family of models this is")
    if not isinstance(family, str) or family not in FAMILIES:
        raise UnsupportedError(f"{where}: family {brief(family)} is not implemented; these are: {', '.join(FAMILIES)}")
    biases = None
    if "family" not in values:
        for key, only in _ONLY.items():
            if values.get(key) is not None and values[key] != only:
                raise UnsupportedError(f"{where}: {key} {brief(values[key])} is not implemented"
                                       + (f", only {only!r}" if only is not None else ""))
        if family == "llama":
            biases = tuple(module for module, key in (("attention", "attention_bias"), ("ffn", "mlp_bias"))
                           if flag_of(values, key, where))
        values = {"bert": _bert, "llama": _llama}[family](values, where)
    try:
        return Config.from_dict(values), biases
    except FormatError as error:
        raise FormatError(f"{where}: {str(error).removeprefix('config: ')}") from None


def read_tokenizer(folder: Path, lowercase: bool = False) -> Tokenizer | None:
    """tokenizer.json of `folder` with padding and truncation off, or None if there is none. `lowercase`: before all else."""
    file = folder / "tokenizer.json"
    if not file.exists():
        return None
    with open(as_file(file), "rb") as opened:
        data = opened.read(min(file.stat().st_size, MAX_TOKENIZER + 1))
    return parse_tokenizer(data, str(file), lowercase)


def parse_tokenizer(data: bytes, where: str, lowercase: bool = False) -> Tokenizer:
    """The tokenizer in `data`, the bytes of a tokenizer.json, as `read_tokenizer`. Raises FormatError, its message starting
    with `where`."""
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


def _bert(values: dict, where: str) -> dict:
    """Entries of Config from a BERT's config.json."""
    return _common(values, where) | {
        "type_vocab_size": size_of(values, "type_vocab_size", where, 2),
        "norm": "layer", "norm_eps": real_of(values, "layer_norm_eps", where, 1e-12),
        "activation": _activation(values, "gelu", where), "pooling": "mean"}


def _llama(values: dict, where: str) -> dict:
    """Entries of Config from a Llama's config.json; what early checkpoints leave out counts as transformers counts it."""
    common, lm_head = _common(values, where), _lm_head(values, where)
    return common | {
        "num_kv_heads": size_of(values, "num_key_value_heads", where, common["num_heads"]),
        "norm": "rms", "norm_eps": real_of(values, "rms_norm_eps", where, 1e-6), "norm_first": True,
        "activation": _activation(values, "silu", where), "gated": True, "rope_theta": _rope_theta(values, where),
        "causal": True, "lm_head": lm_head, "tied": lm_head and flag_of(values, "tie_word_embeddings", where)}


def _common(values: dict, where: str) -> dict:
    heads, hidden = size_of(values, "num_attention_heads", where), size_of(values, "hidden_size", where)
    if values.get("head_dim") is None and hidden % heads:
        raise FormatError(f"{where}: hidden_size {hidden} is not a multiple of num_attention_heads {heads}")
    positions = size_of(values, "max_position_embeddings", where)
    return {"family": values["model_type"], "vocab_size": size_of(values, "vocab_size", where), "hidden_size": hidden,
            "num_layers": size_of(values, "num_hidden_layers", where), "num_heads": heads, "num_kv_heads": heads,
            "head_dim": size_of(values, "head_dim", where, hidden // heads),
            "intermediate_size": size_of(values, "intermediate_size", where), "max_positions": positions,
            "max_length": positions}


def _lm_head(values: dict, where: str) -> bool:
    """LlamaModel has no head, LlamaForCausalLM has; where config.json does not say, the family is one of language models."""
    names = values.get("architectures")
    if names is None or names == []:
        return True
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise FormatError(f"{where}: architectures must be a list of strings, got {brief(names)}")
    return any(name.endswith("ForCausalLM") for name in names)


def _rope_theta(values: dict, where: str) -> float:
    """From rope_theta, or from rope_parameters, where transformers 5 writes it."""
    theta = real_of(values, "rope_theta", where, 10000.0)
    for key in ("rope_scaling", "rope_parameters"):
        rope = values.get(key)
        if rope is None:
            continue
        if not isinstance(rope, dict):
            raise FormatError(f"{where}: {key} must be an object or null, got {brief(rope)}")
        if rope.get("rope_type", rope.get("type")) != "default" or rope.get("partial_rotary_factor") not in (None, 1.0):
            raise UnsupportedError(f"{where}: {key} {brief(rope)} is not implemented, only plain rotary positions")
        theta = real_of(rope, "rope_theta", f"{where}: {key}", theta)
    return theta


def _activation(values: dict, default: str, where: str) -> str:
    name = values.get("hidden_act", default)
    if not isinstance(name, str) or name not in _ACTIVATIONS:
        raise UnsupportedError(f"{where}: hidden_act {brief(name)} is not implemented; these are: {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def _weights_file(folder: Path) -> Path:
    file = folder / "model.safetensors"
    if file.exists():
        return file
    if (folder / "model.safetensors.index.json").exists():
        raise UnsupportedError(f"{folder}: weights in several files (model.safetensors.index.json) are not implemented; "
                               "save the model again as one model.safetensors")
    pickled = sorted(entry.name for entry in folder.iterdir() if entry.suffix in PICKLES)
    if pickled:
        raise FormatError(f"{folder}: no model.safetensors; {pickled[0]} is a pickle, which could run code and is never "
                          "read; save the model again with safe_serialization=True")
    raise FormatError(f"{folder}: no model.safetensors")
