"""The files that sentence-transformers lays around a Hugging Face folder: which modules follow the transformer, how
token vectors are pooled, what is put before a text and how long it may be. Must not know weights."""

import re
from pathlib import Path
from typing import Any

from ..errors import FormatError, UnsupportedError, brief
from .keys import check_keys
from .untrusted import flag_of, read_json, read_json_if_any, size_of

_AFTER = ("Dense", "LayerNorm", "Normalize", "Dropout")  # any of these, in any order, after Pooling
_OF_TOKENS = ("Dense", "MultiVectorMask", "Normalize")  # after Transformer, of late interaction
_MAX_MODULES = 32
POOLINGS = {  # sentence-transformers' name → Config's
    "mean": "mean",
    "cls": "cls",
    "max": "max",
    "mean_sqrt_len_tokens": "mean_sqrt_len",
    "lasttoken": "last",
    "weightedmean": "weightedmean",
}
_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}  # one flag per mode was the form before sentence-transformers 5.4; joined in this order
_ACTIVATIONS = {
    "Identity": "identity",
    "Tanh": "tanh",
    "Sigmoid": "sigmoid",
    "ReLU": "relu",
    "GELU": "gelu",
    "SiLU": "silu",
}
_NAMES = ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")  # sentence_…_config.json
_STRIPPED_BEFORE = (5, 4)  # the version of sentence-transformers that no longer leaves white space out


def read_modules(root: Path) -> list[tuple[str, Path]]:
    """(kind, folder) of the modules of `root`, in order: "Transformer", and maybe "Pooling" and then others.

    From modules.json; without it the transformer is in `root` itself, and 1_Pooling and 2_Normalize count if they are
    there. Raises FormatError, UnsupportedError for other modules or another order."""
    file = root / "modules.json"
    if not file.exists():
        modules = [("Transformer", root)]
        if (root / "1_Pooling" / "config.json").is_file():
            modules.append(("Pooling", root / "1_Pooling"))
            modules += [("Normalize", root / "2_Normalize")] if (root / "2_Normalize").is_dir() else []
        return modules
    modules = []
    for entry in read_json(file, list):
        if (
            not isinstance(entry, dict)
            or not isinstance(entry.get("type"), str)
            or not isinstance(entry.get("path"), str)
        ):
            raise FormatError(f"{file}: each module must have a type and a path, got {brief(entry)}")
        check_keys(entry, "modules.json", str(file))
        kind = entry["type"].rpartition(".")[2]
        if (
            kind not in ("Transformer", "Pooling", "MultiVectorMask", "LogitScore", *_AFTER)
            or len(modules) == _MAX_MODULES
        ):
            raise UnsupportedError(
                f"{file}: module {brief(entry['type'])} is not implemented here; these are: Transformer, Pooling, "
                + ", ".join(_AFTER)
            )
        modules.append((kind, _inside(root, entry["path"], str(file))))
    kinds = [kind for kind, _ in modules]
    wanted = ["Transformer", "Pooling"][: max(len(kinds), 1)]
    if kinds == ["Transformer", "LogitScore"]:
        return modules
    if kinds[:2] == ["Transformer", "Dense"] and set(kinds[1:]) <= set(_OF_TOKENS):
        return modules
    if kinds[:2] != wanted or not set(kinds[2:]) <= set(_AFTER):
        raise UnsupportedError(
            f"{file}: modules {kinds} in this order are not implemented, only Transformer, Pooling and then others"
        )
    return modules


def read_pooling(file: Path, hidden_size: int) -> dict:
    """`pooling` and `include_prompt` of Config from the Pooling module's config.json. Raises FormatError,
    UnsupportedError for modes cq has not."""
    values, where = read_json(file), str(file)
    check_keys(values, "Pooling/config.json", where)
    for key in ("word_embedding_dimension", "embedding_dimension"):
        if size_of(values, key, where, hidden_size) != hidden_size:
            raise FormatError(f"{where}: {key} {values[key]} is not the model's hidden_size {hidden_size}")
    modes = values.get("pooling_mode")
    if modes is None:
        modes = [mode for key, mode in _FLAGS.items() if flag_of(values, key, where)] or ["mean"]
    modes = modes if isinstance(modes, list) else [modes]
    if not modes or not all(isinstance(mode, str) and mode in POOLINGS for mode in modes):
        raise UnsupportedError(
            f"{where}: pooling by {brief(modes)} is not implemented; these are: {', '.join(POOLINGS)}"
        )
    modes = [POOLINGS[mode] for mode in modes]
    return {
        "pooling": modes[0] if len(modes) == 1 else tuple(modes),
        "include_prompt": flag_of(values, "include_prompt", where, True),
    }


def read_answers(file: Path, vocab_size: int) -> dict[str, Any]:
    """`answers` of Config from the LogitScore module's config.json. Raises FormatError, UnsupportedError."""
    values, where = read_json(file), str(file)
    check_keys(values, "LogitScore/config.json", where)
    ids = [values.get("true_token_id")]
    ids += [] if values.get("false_token_id") is None else [values["false_token_id"]]
    if not all(type(i) is int and 0 <= i < vocab_size for i in ids):
        raise FormatError(f"{where}: true_token_id and false_token_id must be ids of tokens, got {brief(ids)}")
    return {"answers": tuple(ids)}


def read_tail(modules: list[tuple[str, Path]], width: int) -> tuple[list[dict], list[tuple[int, str, Path]]]:
    """Config.tail of the modules after Pooling, which gives `width` features, the last Normalize included; and
    (place, kind, folder) of those with weights. Raises FormatError, UnsupportedError."""
    tail: list[dict[str, object]] = []
    weighted: list[tuple[int, str, Path]] = []
    for kind, folder in modules:
        file = folder / "config.json"
        values = read_json_if_any(file)
        if kind == "Dropout":
            continue
        check_keys(values, f"{kind}/config.json", str(file))
        for name in ("module_input_name", "module_output_name"):
            if values.get(name) not in (None, "sentence_embedding"):
                raise UnsupportedError(f"{file}: {name} {brief(values[name])} is not implemented after Pooling")
        if values.get("use_residual") not in (None, False):
            raise UnsupportedError(
                f"{file}: use_residual {brief(values['use_residual'])} is not implemented after Pooling"
            )
        if kind == "Normalize":
            tail.append({"kind": "normalize"})
            continue
        key = "in_features" if kind == "Dense" else "dimension"
        if size_of(values, key, str(file)) != width:
            raise FormatError(f"{file}: {key} {values[key]} is not {width}, what comes before it")
        weighted.append((len(tail), kind, folder))
        if kind == "LayerNorm":
            tail.append({"kind": "norm"})
            continue
        width = size_of(values, "out_features", str(file))
        activation = _activation(values.get("activation_function", "torch.nn.modules.activation.Tanh"), str(file))
        tail.append({"kind": "dense", "features": width, "activation": activation})
    return tail, weighted


def _activation(name: object, where: str) -> str:
    short = name.rpartition(".")[2] if isinstance(name, str) and name.startswith("torch.") else None
    if short not in _ACTIVATIONS:
        raise UnsupportedError(
            f"{where}: activation {brief(name)} is not implemented; these are, of torch.nn: {', '.join(_ACTIVATIONS)}"
        )
    return _ACTIVATIONS[short]


def pair_activation(name: object, labels: int, where: str) -> str:
    """What a cross-encoder's scores go through, by the name of torch's class; None: as sentence-transformers has it."""
    if name is None:
        return "sigmoid" if labels == 1 else "identity"
    found = _activation(name, where)
    if found not in ("identity", "sigmoid", "tanh"):
        raise UnsupportedError(f"{where}: activation {brief(name)} of a classifier's scores is not implemented")
    return found


def read_sentence(root: Path, is_module: bool) -> dict:
    """Entries of Config from config_sentence_transformers.json: prompts, the default one, truncate_dim and strip; and
    under "activation_fn" what a cross-encoder's scores go through, if it says so. is_module: sentence-transformers
    wrote modules.json. Raises FormatError, UnsupportedError."""
    file = root / "config_sentence_transformers.json"
    if not file.exists():
        return {"strip": True} if is_module else {}
    values, where = read_json(file), str(file)
    check_keys(values, "config_sentence_transformers.json", where)
    prompts, name = values.get("prompts"), values.get("default_prompt_name")
    if prompts is not None and not isinstance(prompts, dict):
        raise FormatError(f"{where}: prompts must map names to texts, got {brief(prompts)}")
    prompts = {key: text for key, text in (prompts or {}).items() if text is not None}
    if not all(isinstance(text, str) for text in prompts.values()):
        raise FormatError(f"{where}: prompts must map names to texts, got {brief(prompts)}")
    if name is not None and (not isinstance(name, str) or name not in prompts):
        raise FormatError(f"{where}: default_prompt_name {brief(name)} is none of the prompts {brief(list(prompts))}")
    found: dict[str, object] = {
        "prompts": prompts or None,
        "default_prompt": name,
        "strip": is_module and _strips(values),
    }
    if values.get("truncate_dim") is not None:
        found["truncate_dim"] = size_of(values, "truncate_dim", where)
    if values.get("activation_fn") is not None:
        found["activation_fn"] = values["activation_fn"]
    return found


def _strips(values: dict) -> bool:
    """Whether the version of sentence-transformers that wrote these leaves white space around texts out."""
    versions = values.get("__version__")
    version = versions.get("sentence_transformers") if isinstance(versions, dict) else None
    numbers = re.match(r"(\d{1,6})\.(\d{1,6})", version) if isinstance(version, str) else None
    return numbers is None or tuple(map(int, numbers.groups())) < _STRIPPED_BEFORE


def read_limits(folder: Path) -> tuple[int | None, bool]:
    """(the longest text in tokens, or None where nothing says; whether texts are lowercased first) for the transformer
    in `folder`. The limit is max_seq_length of sentence_bert_config.json, or else model_max_length of
    tokenizer_config.json."""
    files = (folder / f"sentence_{name}_config.json" for name in _NAMES)
    file, lowercase = next((file for file in files if file.exists()), None), False
    if file is not None:
        values = read_json(file)
        check_keys(values, "sentence_bert_config.json", str(file))
        lowercase = flag_of(values, "do_lower_case", str(file))
        if values.get("max_seq_length") is not None:
            return size_of(values, "max_seq_length", str(file)), lowercase
    file = folder / "tokenizer_config.json"
    limit = read_json_if_any(file).get("model_max_length")
    if limit is None or isinstance(limit, (int, float)) and limit >= 2**31:  # 1e30: how tokenizers write "none"
        return None, lowercase
    return size_of({"model_max_length": limit}, "model_max_length", str(file)), lowercase


def _inside(root: Path, path: str, where: str) -> Path:
    try:
        folder = root / path
        inside = folder.resolve().is_relative_to(root.resolve()) and (folder.is_dir() or not folder.exists())
    except (OSError, ValueError):  # too long, or a zero byte
        inside = False
    if not inside:
        raise FormatError(f"{where}: path {brief(path)} is no folder inside the model's folder")
    return folder
