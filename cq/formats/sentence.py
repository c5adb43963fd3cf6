"""The files that sentence-transformers lays around a Hugging Face folder: which modules follow the transformer, how
token vectors are pooled, how long a text may be. Must not know weights."""

from pathlib import Path

from ..errors import FormatError, UnsupportedError
from .untrusted import brief, flag_of, read_json, size_of

_IMPLEMENTED = ["Transformer", "Pooling", "Normalize"]
_POOLINGS = {"mean": "mean", "cls": "cls", "max": "max", "mean_sqrt_len_tokens": "mean_sqrt_len", "lasttoken": "last"}
_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}  # one flag per mode was the form before sentence-transformers 6


def read_modules(root: Path) -> dict[str, Path]:
    """Kind → folder of the modules of `root`, in order: "Transformer", and maybe "Pooling" and then "Normalize".

    From modules.json; without it the transformer is in `root` itself, and 1_Pooling and 2_Normalize count if they are
    there. Raises FormatError, UnsupportedError for other modules or another order."""
    file = root / "modules.json"
    if not file.exists():
        modules = {"Transformer": root}
        if (root / "1_Pooling" / "config.json").is_file():
            modules["Pooling"] = root / "1_Pooling"
            modules |= {"Normalize": root / "2_Normalize"} if (root / "2_Normalize").is_dir() else {}
        return modules
    modules = {}
    for entry in read_json(file, list):
        if (
            not isinstance(entry, dict)
            or not isinstance(entry.get("type"), str)
            or not isinstance(entry.get("path"), str)
        ):
            raise FormatError(f"{file}: each module must have a type and a path, got {brief(entry)}")
        kind = entry["type"].rpartition(".")[2]
        if kind in modules or kind not in _IMPLEMENTED:
            raise UnsupportedError(
                f"{file}: module {brief(entry['type'])} is not implemented here; these are, "
                f"once each: {', '.join(_IMPLEMENTED)}"
            )
        modules[kind] = _inside(root, entry["path"], str(file))
    if list(modules) != _IMPLEMENTED[: max(len(modules), 1)]:
        raise UnsupportedError(
            f"{file}: modules {list(modules)} in this order are not implemented, only {_IMPLEMENTED}"
        )
    return modules


def read_pooling(file: Path, hidden_size: int) -> str:
    """`Config.pooling` from the Pooling module's config.json. Raises FormatError, UnsupportedError for modes cq has
    not."""
    values, where = read_json(file), str(file)
    for key in ("word_embedding_dimension", "embedding_dimension"):
        if size_of(values, key, where, hidden_size) != hidden_size:
            raise FormatError(f"{where}: {key} {values[key]} is not the model's hidden_size {hidden_size}")
    modes = values.get("pooling_mode")
    if modes is None:
        modes = [mode for key, mode in _FLAGS.items() if flag_of(values, key, where)] or ["mean"]
    modes = modes if isinstance(modes, list) else [modes]
    if len(modes) != 1 or not isinstance(modes[0], str) or modes[0] not in _POOLINGS:
        raise UnsupportedError(
            f"{where}: pooling by {brief(modes)} is not implemented; one of {', '.join(_POOLINGS)} is"
        )
    return _POOLINGS[modes[0]]


def read_limits(folder: Path, is_module: bool) -> tuple[int | None, bool]:
    """(the longest text in tokens, or None where nothing says; whether texts are lowercased first) for the transformer
    in `folder`. The limit is max_seq_length of sentence_bert_config.json; sentence-transformers 6 writes it as
    model_max_length of tokenizer_config.json instead, which is read where `is_module` or where
    sentence_bert_config.json is there."""
    file, lowercase = folder / "sentence_bert_config.json", False
    if file.exists():
        values, is_module = read_json(file), True
        lowercase = flag_of(values, "do_lower_case", str(file))
        if values.get("max_seq_length") is not None:
            return size_of(values, "max_seq_length", str(file)), lowercase
    file = folder / "tokenizer_config.json"
    if not is_module or not file.exists():
        return None, lowercase
    limit = read_json(file).get("model_max_length")
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
