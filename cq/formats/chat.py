"""What the files beside a language model say of its texts: the tokens that begin and end one, and its chat template. Must not know
what a template means."""
from dataclasses import replace
from pathlib import Path

from ..errors import FormatError
from ..model.config import Config
from .strangers import as_file, brief, read_json

MAX_TEMPLATE = 1 << 20  # bytes; the longest in the wild have some ten thousand


def with_chat(config: Config, folder: Path, values: dict) -> Config:
    """`config` with bos_token_id, eos_token_ids and chat_template as `folder` has them: ids of generation_config.json, else of
    `values` (config.json's); the template of chat_template.jinja, else of tokenizer_config.json, of several the one named
    "default". Raises FormatError."""
    file = folder / "generation_config.json"
    said = [(read_json(file), str(file))] if file.exists() else []
    said.append((values, str(folder / "config.json")))
    begin, ends = (_ids(said, key, config.vocab_size) for key in ("bos_token_id", "eos_token_id"))
    return replace(config, bos_token_id=begin[0] if begin else None, eos_token_ids=tuple(dict.fromkeys(ends)),
                   chat_template=_template(folder))


def _ids(said: list[tuple[dict, str]], key: str, vocab_size: int) -> list[int]:
    """The ids of `key` where it is said first; those that a vocabulary lacks count for nothing: small models keep their parents'."""
    values, where = next(((values, where) for values, where in said if values.get(key) is not None), ({}, ""))
    ids = values.get(key, [])
    ids = ids if isinstance(ids, list) else [ids]
    bad = next((i for i in ids if type(i) is not int or i < 0), None)
    if bad is not None:
        raise FormatError(f"{where}: {key} must be a token id or a list of them, got {brief(bad)}")
    return [i for i in ids if i < vocab_size]


def _template(folder: Path) -> str | None:
    file = folder / "chat_template.jinja"
    if file.exists():
        if as_file(file).stat().st_size > MAX_TEMPLATE:
            raise FormatError(f"{file}: at most {MAX_TEMPLATE} bytes are read, this has more")
        try:
            return file.read_text("utf-8")
        except UnicodeDecodeError as error:
            raise FormatError(f"{file}: not UTF-8 text (byte {error.start})") from None
    file = folder / "tokenizer_config.json"
    found = read_json(file).get("chat_template") if file.exists() else None
    if isinstance(found, list):  # [{"name": …, "template": …}, …]
        found = {one.get("name"): one.get("template") for one in found if isinstance(one, dict)}.get("default")
    if not isinstance(found, str | None):
        raise FormatError(f"{file}: chat_template must be a string, or a list of named ones, got {brief(found)}")
    return found
