"""Models of the Hugging Face Hub by their names: found in its cache, or downloaded through huggingface_hub, and no more
of them than is read. Must not know what the files mean, but for modules.json, which names folders."""

import re
from os import PathLike
from pathlib import Path
from typing import Any

from ..errors import CqError, FormatError, UnsupportedError, brief
from .untrusted import as_name, as_path, read_json

_NAME = re.compile(r"[A-Za-z0-9_][\w.-]{0,95}/[\w.-]{1,96}", re.ASCII)
_FILES = (".safetensors", ".npz", ".gguf", ".json")  # names that end so are files', not models'
_SMALL = (  # read wherever a transformer is
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
    "sentence_*_config.json",
    "artifact.metadata",
)
_ABOVE = ("modules.json", "config_sentence_transformers.json", "1_Pooling/config.json", "2_Normalize/config.json")
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors")


def located(path: str | PathLike, revision: str | None = None, token: str | bool | None = None) -> Path:
    """The file or folder at `path`; of a str "owner/name" that is no path here, the folder of that model in the Hugging
    Face cache, downloaded where it is not there and huggingface_hub may go online (HF_HOME, HF_HUB_OFFLINE and the like
    count as everywhere).

    revision, token: as huggingface_hub takes them, of such names alone. Raises FileNotFoundError for what is nowhere,
    UnsupportedError where huggingface_hub is missing, PermissionError for a model that this token may not read,
    CqError for a revision or token of a local path."""
    name = as_name(path)
    if not _is_model(path, name):
        if revision is not None or token is not None:
            raise CqError(f"{name}: revision and token are for models of the Hugging Face Hub, this is a local path")
        return as_path(path)
    try:
        import huggingface_hub.errors
    except ImportError:
        raise UnsupportedError(
            f"{name}: no such file or folder; to read it as a model of the Hugging Face Hub, install huggingface_hub: "
            "pip install 'cquant[hub]'"
        ) from None
    root = _snapshot(huggingface_hub, str(path), revision, token, [*_ABOVE, *_SMALL])
    folders = _folders(root)
    weights = [f"{folder}{file}" for folder in folders for file in _WEIGHTS]
    small = [f"{folder}{file}" for folder in folders if folder for file in _SMALL]
    root = _snapshot(huggingface_hub, str(path), revision, token, [*small, *weights])
    _check_whole(root, folders[0], str(path))
    return root


def _is_model(path: object, name: Path) -> bool:
    """Whether this is a model's name and no path of this machine."""
    said = isinstance(path, str) and _NAME.fullmatch(path) is not None and not path.endswith(_FILES)
    return said and not name.exists() and not name.parent.exists()


def _snapshot(hub: Any, name: str, revision: str | None, token: str | bool | None, patterns: list[str]) -> Path:
    """The model's folder with the files that the patterns name."""
    errors, at = hub.errors, "" if revision is None else f" at revision {revision!r}"
    try:
        return Path(hub.snapshot_download(name, revision=revision, token=token, allow_patterns=patterns))
    except errors.GatedRepoError:
        raise PermissionError(
            f"{name}: this model is gated; accept its terms on its page, then give token= or log in: `hf auth login`"
        ) from None
    except errors.RevisionNotFoundError:
        raise FileNotFoundError(f"{name}: the model has no revision {revision!r}") from None
    except errors.RepositoryNotFoundError:
        raise FileNotFoundError(
            f"{name}: no such path here and no such model on the Hugging Face Hub, or it is private: then give token= "
            "or log in with `hf auth login`"
        ) from None
    except (errors.HFValidationError, errors.LocalEntryNotFoundError, errors.HfHubHTTPError, OSError) as error:
        raise FileNotFoundError(
            f"{name}: no such path here, not whole in the Hugging Face cache{at}, and not to be had from the Hub "
            f"({' '.join(str(error).split())[:200]}); load it once with a network connection and HF_HUB_OFFLINE unset, "
            "or give the path of its folder"
        ) from None


def _folders(root: Path) -> list[str]:
    """Where files with weights may be, "" or "1_Dense/", the transformer's first."""
    file = root / "modules.json"
    if not file.exists():
        return [""]
    entries = read_json(file, list)
    paths = [entry.get("path") for entry in entries if isinstance(entry, dict)]
    if not paths or not all(isinstance(path, str) and not set(path) & set("*?[") for path in paths):
        raise FormatError(f"{file}: each module must have a path, got {brief(entries)}")
    return [f"{path.rstrip('/')}/" if path else "" for path in paths]


def _check_whole(root: Path, folder: str, name: str) -> None:
    """Offline, a cache may hold some files alone."""
    where = root / folder
    files = ["config.json"] if not (where / "config.json").exists() else []
    index = where / "model.safetensors.index.json"
    if index.exists():
        places = read_json(index).get("weight_map")
        named = sorted({file for file in places.values() if isinstance(file, str)}) if isinstance(places, dict) else []
        files += [file for file in named if not (where / file).exists()]
    elif not (where / "model.safetensors").exists():
        files.append("model.safetensors")
    if files:
        raise FileNotFoundError(
            f"{name}: no {files[0]} in {where}; if the model has one, load it once with a network connection and "
            "HF_HUB_OFFLINE unset; weights are read from safetensors alone, never from pickles"
        )
