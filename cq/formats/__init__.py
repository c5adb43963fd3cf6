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
    """The model at `path`: a Hugging Face folder (config.json, model.safetensors, tokenizer.json), in float32 or in
    int8 codes of compressed-tensors, as llm-compressor writes and vLLM runs them, a `.safetensors` or
    `.npz` of NumPy arrays, a `.gguf` (with the package gguf; its codes become float32), a cq checkpoint, or
    "owner/name" of a model on the Hugging Face hub: from its cache, or downloaded through huggingface_hub (the extra
    `hub`), only the files that are read. A path that exists counts first.

    config: for a file of arrays that brings none: a cq.Config, a dict in its form or in that of config.json, or the
    path of such JSON. revision: of a model on the hub, a branch, tag or commit; None: main. token: for private models,
    as huggingface_hub takes it; None: of whoever is logged in. Raises FileNotFoundError, also where a name is not in
    the cache and the hub out of reach, PermissionError for gated models, FormatError (damaged, or not what it claims),
    UnsupportedError."""
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
        return Transformer(*read_gguf(path))
    if path.suffix == ".safetensors":
        tensors, metadata = read_tensors(path)
        if KEY in metadata:
            return load_checkpoint(tensors, metadata, str(path))
    return Transformer(*read_arrays(path, config))


def save(model: Transformer, path: str | PathLike) -> None:
    """Writes the model, float32 or quantized, as one cq checkpoint (safetensors), whole or not at all; load gives back
    the same bits. `path` must end in .safetensors. Raises CqError, OSError."""
    if not isinstance(model, Transformer):
        raise CqError(f"model: need a cq.Transformer, got {type(model).__name__}")
    target = as_name(path)
    if target.suffix != ".safetensors":
        raise FormatError(f"{target}: a cq checkpoint is one file; give it a name that ends in .safetensors")
    save_checkpoint(model, target)


def export(model: Transformer, path: str | PathLike, format: str | None = None) -> None:
    """Writes the model for another runtime, whole or not at all.

    format: "onnx", of a path that ends in `.onnx`, or "compressed-tensors", a folder; None: as the suffix says.

    - onnx: the model, float32 or quantized, in standard operators (opset 21; needs the package onnx), which onnxruntime
      and OpenVINO compute in int8: static as QuantizeLinear and DequantizeLinear, with smoothing folded into weights,
      norms and biases; dynamic as MatMulInteger with codes found in the graph; weight-only as DequantizeLinear.
      Attention multiplies in float32, static models' queries, keys and values having gone through their codes. Batch
      and length are free. Inputs: input_ids, attention_mask (int64; 1 where a token counts, padding on either side)
      and, where the model tells segments apart, token_type_ids; of language models past_key_values.N.key and .value
      (batch, kv heads, past, head dim), of past 0 at first, and a mask over past and new tokens. Outputs: a language
      model's logits and present.N.key and .value, a classifier's logits, or last_hidden_state and, of models that pool,
      sentence_embedding. Above 2 GB weights go to a second file, with ".data" behind the name.
    - compressed-tensors: a quantized model as a Hugging Face folder with its codes and scales, as llm-compressor writes
      it, which vLLM, transformers with the package compressed-tensors and cq.load read. WeightOnly of every scheme;
      Dynamic and Static with attention='float32' and without smooth; a tied head in codes gets a table of its own.

    Raises CqError for another suffix or format, UnsupportedError where the package is missing or the format cannot
    express the model, OSError."""
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
