"""What a Hugging Face folder says of how its language model writes: the ids that begin and end a text, the template of
a chat. Must not know weights."""

from pathlib import Path

from ..errors import FormatError
from .untrusted import as_file, brief, read_json

MAX_TEMPLATE = 1 << 20  # bytes; the longest in the wild are some tens of kilobytes


def read_ids(values: dict, vocab_size: int, where: str) -> dict:
    """bos_token_id and eos_token_ids of Config, as far as config.json or generation_config.json says them. Ids outside
    the vocabulary, which no text can hold, are left out: small models often carry their family's. Raises
    FormatError."""
    found = {}
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
        ids = tuple(dict.fromkeys(i for i in ids if 0 <= i < vocab_size))
        found[ours] = ids if ours != theirs else next(iter(ids), None)
    return found


def read_generation(folder: Path, vocab_size: int) -> dict:
    """bos_token_id, eos_token_ids and chat_template of Config, as far as the files beside config.json say them, which
    count more than it. Raises FormatError."""
    file, found = folder / "generation_config.json", {}
    if file.exists():
        found = read_ids(read_json(file), vocab_size, str(file))
    template = _template(folder)
    return found | ({} if template is None else {"chat_template": template})


def _template(folder: Path) -> str | None:
    """From chat_template.jinja, or from tokenizer_config.json, where it stood before transformers 4.50; of several
    named ones that called default."""
    file = folder / "chat_template.jinja"
    if file.exists():
        with open(as_file(file), "rb") as opened:
            data = opened.read(MAX_TEMPLATE + 1)
        if len(data) > MAX_TEMPLATE:
            raise FormatError(f"{file}: at most {MAX_TEMPLATE} bytes are read, this has more")
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise FormatError(f"{file}: not UTF-8 text (byte {error.start})") from None
    file = folder / "tokenizer_config.json"
    template = read_json(file).get("chat_template") if file.exists() else None
    if isinstance(template, list):
        named = {
            entry.get("name"): entry.get("template")
            for entry in template
            if isinstance(entry, dict) and isinstance(entry.get("name"), str)
        }
        template = named.get("default")
    if not isinstance(template, str | None):
        raise FormatError(f"{file}: chat_template must be a string or a list of named ones, got {brief(template)}")
    return template
