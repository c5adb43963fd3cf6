"""Files in and out: load finds what a path holds and makes a model of it, save writes cq's checkpoint. Knows nothing of
how a model computes."""

from os import PathLike
from pathlib import Path

from ..door import own_errors
from ..errors import CqError, FormatError
from ..model import Config, Transformer
from .arrays import read_arrays
from .checkpoint import KEY, load_checkpoint, save_checkpoint
from .compressed import load_folder
from .compressed_config import METHOD
from .compressed_write import export_compressed
from .gguf import read_gguf
from .hub import located
from .onnx import export_onnx
from .tensors import read_tensors
from .untrusted import as_name


def load(
    path: str | PathLike,
    config: Config | dict | str | PathLike | None = None,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
) -> Transformer:
    """Loads a model.

    Args:
        path: A Hugging Face folder, in float32 or in int8 codes of compressed-tensors; a .safetensors or .npz file; a
            .gguf file (extra `gguf`), whose codes become float32; a checkpoint that `save` wrote; or "owner/name" of a
            model on the Hugging Face Hub, from its cache or downloaded (extra `hub`). A path that exists counts first.
        config: For a file of arrays without a configuration: a `Config`, a dict in its form or in that of config.json,
            or the path of such JSON.
        revision: For a model on the Hub: a branch, tag or commit. None: main.
        token: For a private model on the Hub, as huggingface_hub takes it. None: that of whoever is logged in.

    Returns:
        A `Transformer`, in float32, or quantized where the file is.

    Raises:
        FileNotFoundError: There is no such file, or the name is not in the cache and the Hub cannot be reached.
        PermissionError: The model is gated.
        FormatError: The file is damaged, or not what it claims to be.
        UnsupportedError: The file asks for something that cq does not compute; the message names file, key and value.
    """
    path = located(path, revision, token)
    with own_errors(f"{path}: not a whole model", FormatError):
        return _load(path, config)


def _load(path: Path, config: Config | dict | str | PathLike | None) -> Transformer:
    if path.is_dir():
        if config is not None:
            raise CqError(f"config: {path} is a folder with its own config.json; leave this argument out")
        return load_folder(path)
    if path.suffix == ".gguf":
        if config is not None:
            raise CqError(f"config: {path} brings its own configuration; leave this argument out")
        found, weights, tokenizer = read_gguf(path)
        return Transformer(found, weights).take_tokenizer(tokenizer)
    if path.suffix == ".safetensors":
        tensors, metadata = read_tensors(path)
        if KEY in metadata:
            return load_checkpoint(tensors, metadata, str(path))
    found, weights, tokenizer = read_arrays(path, config)
    return Transformer(found, weights).take_tokenizer(tokenizer)


def save(model: Transformer, path: str | PathLike) -> None:
    """Saves a model, float32 or quantized, as one checkpoint, as a whole or not at all.

    Args:
        model: The model. Its plan, tensors, configuration and tokenizer are saved.
        path: A name that ends in .safetensors. An existing file is replaced and keeps its mode.

    Raises:
        FormatError: The name ends otherwise.
        OSError: The file cannot be written.
    """
    if not isinstance(model, Transformer):
        raise CqError(f"model: need a cq.Transformer, got {type(model).__name__}")
    target = as_name(path)
    if target.suffix != ".safetensors":
        raise FormatError(f"{target}: a cq checkpoint is one file; give it a name that ends in .safetensors")
    save_checkpoint(model, target)


def export(model: Transformer, path: str | PathLike, format: str | None = None) -> None:
    """Writes a model for another runtime, as a whole or not at all.

    An ONNX graph uses standard operators of opset 21 with dynamic batch and length: static as QuantizeLinear and
    DequantizeLinear, dynamic as MatMulInteger with codes found in the graph, weight-only as DequantizeLinear. Its
    inputs are input_ids, attention_mask and, where the model has segments, token_type_ids; prompt_length, a number of
    tokens, where a prompt's are not pooled; decoders also take past_key_values.N.key and .value. Its outputs are logits
    (and present.N.key and .value), token_embeddings of late interaction, or last_hidden_state and sentence_embedding.
    Above 2 GB the weights are in a second file with ".data" after the name.

    A compressed-tensors folder holds the model's codes and scales as llm-compressor writes them; vLLM, transformers
    with the package compressed-tensors, and `load` read it. It takes every scheme of `WeightOnly`, and `Dynamic` and
    `Static` with attention="float32" and without smoothing.

    Args:
        model: The model.
        path: A file that ends in .onnx, or a new folder for compressed-tensors.
        format: "onnx" (extra `onnx`) or "compressed-tensors". None: by the suffix.

    Raises:
        CqError: The suffix or the format is none of these.
        UnsupportedError: The package is missing, or the format cannot express the model.
        OSError: The file cannot be written.
    """
    if not isinstance(model, Transformer):
        raise CqError(f"model: need a cq.Transformer, got {type(model).__name__}")
    target = as_name(path)
    if format not in (None, "onnx", METHOD):
        raise CqError(f"format: wanted 'onnx' or {METHOD!r}, got {format!r}")
    if format == METHOD:
        export_compressed(model, target)
    elif target.suffix == ".onnx":
        export_onnx(model, target)
    else:
        raise FormatError(f"{target}: wanted a name that ends in .onnx; for a folder, format={METHOD!r}")
