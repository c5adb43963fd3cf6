"""What a Hugging Face folder says of how its language model writes: the ids that begin and end a text, the template of
a chat. Must not know weights."""

from pathlib import Path

from ..errors import FormatError, brief
from ..model.sampling import DEFAULTS, check_defaults
from .keys import check_keys
from .untrusted import as_file, read_json

MAX_TEMPLATE = 1 << 20  # bytes; the longest in the wild are some tens of kilobytes
MAX_TEMPLATES = 16  # of one checkpoint


def read_ids(values: dict, vocab_size: int, where: str) -> dict:
    """bos_token_id and eos_token_ids of Config, as far as config.json or generation_config.json says them. Ids outside
    the vocabulary, which no text can hold, are left out: small models often carry their family's. Raises
    FormatError."""
    found: dict[str, object] = {}
    for theirs, ours in (("bos_token_id", "bos_token_id"), ("eos_token_id", "eos_token_ids")):
        value = values.get(theirs)
        if value is None:
            continue
        ids = value if isinstance(value, list) and theirs == "eos_token_id" else [value]
        if not all(type(i) is int for i in ids):
            raise FormatError(
                f"{where}: {theirs} must be a token id"
                + (" or a list of them" * (ours != theirs))
                + f", got {brief(value)}"
            )
        inside = tuple(dict.fromkeys(i for i in ids if 0 <= i < vocab_size))
        found[ours] = inside if ours != theirs else next(iter(inside), None)
    return found


def read_padding(values: dict, vocab_size: int, where: str) -> dict:
    """pad_token_id of Config, as `read_ids`."""
    value = values.get("pad_token_id")
    if value is not None and type(value) is not int:
        raise FormatError(f"{where}: pad_token_id must be a token id, got {brief(value)}")
    if value is None:
        return {}
    return {"pad_token_id": value if 0 <= value < vocab_size else None}


def read_defaults(values: dict, vocab_size: int, where: str) -> dict:
    """Config.generation from config.json or generation_config.json: what `generate` does where a call says nothing, as
    transformers does it. Raises FormatError."""
    found = {name: values[name] for name in DEFAULTS if values.get(name) is not None}
    if "stop_strings" in found and isinstance(found["stop_strings"], str):
        found["stop_strings"] = [found["stop_strings"]]
    if found.get("do_sample") is True:
        found = {"temperature": 1.0, "top_k": 50} | found
    elif not found.get("do_sample"):
        found = {name: value for name, value in found.items() if name != "temperature"}
    for name in ("suppress_tokens", "begin_suppress_tokens"):
        if isinstance(found.get(name), list):  # ids that no text can hold are suppressed anyway
            found[name] = [i for i in found[name] if type(i) is not int or 0 <= i < vocab_size]
    if isinstance(words := found.get("bad_words_ids"), list):  # and so are words with such ids
        inside = [
            w for w in words if not isinstance(w, list) or all(type(i) is not int or 0 <= i < vocab_size for i in w)
        ]
        found["bad_words_ids"] = inside
    try:
        check_defaults(found, vocab_size)
    except FormatError as error:
        raise FormatError(f"{where}: {str(error).removeprefix('config: generation: ')}") from None
    return {"generation": found} if found else {}


def read_generation(folder: Path, vocab_size: int) -> dict:
    """bos_token_id, eos_token_ids, generation and chat_template of Config, as far as the files beside config.json say
    them, which count more than it. Raises FormatError, UnsupportedError."""
    file, found = folder / "generation_config.json", {}
    if file.exists():
        values, where = read_json(file), str(file)
        check_keys(values, "generation_config.json", where)
        found = read_ids(values, vocab_size, where) | read_padding(values, vocab_size, where)
        found |= {"generation": None} | read_defaults(values, vocab_size, where)
    template = _template(folder)
    return found | ({} if template is None else {"chat_template": template})


def _template(folder: Path) -> str | dict[str, str] | None:
    """From chat_template.jinja, or from tokenizer_config.json, where it stood before transformers 4.50: one, or several
    by name, to which the files of additional_chat_templates belong."""
    named = {}
    more = folder / "additional_chat_templates"
    if more.is_dir():
        named = {file.stem: _text(file) for file in sorted(more.iterdir())[:MAX_TEMPLATES] if file.suffix == ".jinja"}
    file = folder / "chat_template.jinja"
    if file.exists():
        text = _text(file)
        return {"default": text} | named if named else text
    file = folder / "tokenizer_config.json"
    template = read_json(file).get("chat_template") if file.exists() and not named else None
    if isinstance(template, list):
        template = {
            entry.get("name"): entry.get("template")
            for entry in template
            if isinstance(entry, dict) and isinstance(entry.get("name"), str)
        }
    texts = template.values() if isinstance(template, dict) else [template]
    if not all(isinstance(text, str | None) for text in texts):
        raise FormatError(f"{file}: chat_template must be a string or a list of named ones, got {brief(template)}")
    if isinstance(template, dict):
        named = {name: text for name, text in template.items() if text is not None}
        return next(iter(named.values())) if list(named) == ["default"] else named or None
    return named or template


def _text(file: Path) -> str:
    with open(as_file(file), "rb") as opened:
        data = opened.read(MAX_TEMPLATE + 1)
    if len(data) > MAX_TEMPLATE:
        raise FormatError(f"{file}: at most {MAX_TEMPLATE} bytes are read, this has more")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(f"{file}: not UTF-8 text (byte {error.start})") from None
