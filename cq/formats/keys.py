"""Every key of a checkpoint's files: whether cq honours it, why it changes nothing here, or with which values alone it
is taken. The tables stand in key_tables.py; docs/checkpoint-files.md is made of them. Must not know what a key does."""

from dataclasses import dataclass
from fnmatch import fnmatchcase

from ..errors import UnsupportedError, brief
from .key_tables import TABLES, TITLES

INTRODUCTION = """# What cq reads in a checkpoint's files

Each key of each file that transformers, sentence-transformers or llama.cpp reads is one of three: **honoured**;
**irrelevant**, because it changes no result here; or **refused**: with any other value than those named, loading
ends in an error with the file, the key and the value. A missing key counts as the default of the family's own
configuration class in transformers (`cq/formats/defaults.py`). Keys that none of these programs reads for one of
the families that cq runs are passed over, as they do.

This page is made of the tables in `cq/formats/key_tables.py`:
`python -c "from cq.formats.keys import page; print(page(), end='')"`."""


@dataclass(frozen=True)
class Rule:
    """verdict: "honoured", "irrelevant" or "refused"; note: how, or why; allowed: of a refused key, the values that
    change nothing."""

    verdict: str
    note: str
    allowed: tuple = ()


def rule_of(file: str, key: str) -> Rule | None:
    """What the table of `file` says of a key, by its name or by the first pattern that it matches; None: nothing, since
    no family that cq runs reads it."""
    for verdict, rows in TABLES[file].items():
        row = rows.get(key)
        if row is None:
            row = next((row for pattern, row in rows.items() if "*" in pattern and fnmatchcase(key, pattern)), None)
        if row is not None:
            note, *allowed = row if isinstance(row, tuple) else (row,)
            return Rule(verdict, note, tuple(allowed))
    return None


def check_keys(values: dict, file: str, where: str, architecture: str | None = None) -> None:
    """Raises UnsupportedError naming file, key and value where a refused key has another value than those allowed;
    null and absent count as one of these. architecture: of a GGUF file, whose own keys begin with it."""
    for key, value in values.items():
        name = key if architecture is None else key.replace(architecture + ".", "ARCH.", 1)
        rule = rule_of(file, name)
        if rule is None or rule.verdict != "refused" or value is None or _among(value, rule.allowed):
            continue
        only = f", only {' or '.join(map(repr, rule.allowed))}" if rule.allowed else ""
        raise UnsupportedError(f"{where}: {key} {brief(value)} is not implemented{only} ({rule.note})")


def _among(value: object, allowed: tuple) -> bool:
    return any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in allowed)


def page() -> str:
    """docs/checkpoint-files.md."""
    lines = [INTRODUCTION]
    for file, title in TITLES.items():
        lines += ["", f"## {file}", "", title, "", "| key | | |", "|---|---|---|"]
        for verdict, rows in TABLES[file].items():
            for key, row in rows.items():
                note, *allowed = row if isinstance(row, tuple) else (row,)
                only = "; taken: " + ", ".join(f"`{one!r}`" for one in allowed) if allowed else ""
                lines.append(f"| `{key}` | {verdict} | {note}{only} |")
    return "\n".join(lines) + "\n"
