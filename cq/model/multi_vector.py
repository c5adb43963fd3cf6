"""What a configuration of late interaction says, checked. Knows no model."""

from typing import Any, TypeGuard

from ..errors import FormatError

_FIELDS = {
    "features": int,
    "normalize": bool,
    "query_length": int | None,
    "document_length": int | None,
    "expansion": dict | None,
    "mean": bool,
    "skiplist": list,
    "skips_queries": bool,
}
_EXPANSION = {"strategy": str, "attend": bool, "token": str | None, "length": int}


def check_multi_vector(values: object) -> None:
    """Raises FormatError unless this is what Config.multi_vector wants: {"features": of a vector; "normalize": whether
    its length is 1; "query_length", "document_length": tokens at most, or None; "expansion": None, or how queries are
    filled up with mask tokens: {"strategy": "fixed" (to exactly `length` tokens) or "min" (to at least so many),
    "attend": whether tokens see those, "token": which, or None for the tokenizer's mask, "length"}; "mean": whether
    similarities are divided by the number of a query's vectors; "skiplist": words whose tokens a document's vectors
    leave out; "skips_queries": whether a query's do too}."""
    if not (_fits(values, _FIELDS) and _is_sound(values)):
        raise FormatError(f"config: multi_vector: {values!r:.200} does not say how tokens' vectors are made")


def _is_sound(values: dict[str, Any]) -> bool:
    expansion, sizes = values["expansion"], [values[name] for name in ("features", "query_length", "document_length")]
    if expansion is not None:
        if not _fits(expansion, _EXPANSION) or expansion["strategy"] not in ("fixed", "min"):
            return False
        sizes.append(expansion["length"])
    words = all(isinstance(word, str) for word in values["skiplist"])
    return words and all(size is None or 0 < size < 2**31 for size in sizes)


def _fits(values: object, fields: dict[str, Any]) -> TypeGuard[dict[str, Any]]:
    """Whether these are the fields, each of its type."""
    if not isinstance(values, dict) or set(values) != set(fields):
        return False
    return all(isinstance(values[name], kind) for name, kind in fields.items()) and not any(
        isinstance(values[name], bool) for name, kind in fields.items() if kind in (int, int | None)
    )
