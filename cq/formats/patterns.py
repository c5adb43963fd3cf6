"""Regular expressions that come from strangers, matched in time that a pattern cannot blow up: by the set of places
that a match may have reached, not by trying one way after another. Must not know what is matched."""

import re
import warnings
from typing import Any

from ..errors import UnsupportedError, brief

MAX_PATTERN = 1000  # characters
_BUDGET = 3_000_000  # steps of one matcher, about a second

Places = frozenset[int]


class Matcher:
    """Matches names against patterns as re.match does: from a name's beginning, to anywhere. where: begins messages."""

    def __init__(self, where: str):
        self.where, self._parsed, self._left = where, dict[str, Any](), _BUDGET

    def __call__(self, pattern: str, name: str) -> bool:
        """Raises UnsupportedError for what is no pattern, or one with look-arounds, back references or conditions, or
        of more work than a checkpoint's may be."""
        try:
            if pattern not in self._parsed:
                self._parsed[pattern] = self._parse(pattern)
            return bool(self._sequence(self._parsed[pattern], name, frozenset((0,)), pattern))
        except UnsupportedError:
            raise
        except (re.error, ValueError, OverflowError, RecursionError):
            raise UnsupportedError(f"{self.where}: {brief(pattern)} is no regular expression that is read") from None

    def _parse(self, pattern: str) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            parsed = re._parser.parse(pattern[: MAX_PATTERN + 1])  # type: ignore[attr-defined]
        if len(pattern) > MAX_PATTERN or parsed.state.flags != re.UNICODE:
            raise ValueError
        return parsed

    def _sequence(self, nodes: Any, name: str, places: Places, pattern: str) -> Places:
        """Where a match may stand after `nodes`, from any of `places`."""
        for node in nodes:
            if not places:
                break
            self._left -= len(places)
            if self._left < 0:
                raise UnsupportedError(f"{self.where}: {brief(pattern)} takes too long to match")
            places = self._after(node, name, places, pattern)
        return places

    def _after(self, node: Any, name: str, places: Places, pattern: str) -> Places:
        kind, value = str(node[0]), node[1]
        if kind == "BRANCH":
            return frozenset().union(*(self._sequence(nodes, name, places, pattern) for nodes in value[1]))
        if kind == "SUBPATTERN" and value[1:3] == (0, 0):
            return self._sequence(value[3], name, places, pattern)
        if kind in ("MAX_REPEAT", "MIN_REPEAT"):
            least, most, body = value
            return self._repeated(int(least), int(most), body, name, places, pattern)
        if kind == "AT":
            ends = {"AT_BEGINNING": 0, "AT_BEGINNING_STRING": 0, "AT_END": len(name), "AT_END_STRING": len(name)}
            if str(value) in ends:
                return places & {ends[str(value)]}
        elif kind in ("LITERAL", "NOT_LITERAL", "ANY", "IN"):
            return frozenset(at + 1 for at in places if at < len(name) and _takes(kind, value, name[at]))
        raise UnsupportedError(f"{self.where}: {brief(pattern)} is not implemented: no look-arounds, references, flags")

    def _repeated(self, least: int, most: int, nodes: Any, name: str, places: Places, pattern: str) -> Places:
        """Repetition ends early where it changes nothing: what can match nothing only adds places, and what cannot has
        left the name after so many turns as that has characters."""
        for _ in range(least):
            before, places = places, self._sequence(nodes, name, places, pattern)
            if places in (before, frozenset()):
                break
        found = places
        for _ in range(most - least):
            places = self._sequence(nodes, name, places, pattern) - found
            if not places:
                break
            found |= places
        return found


def _takes(kind: str, value: Any, character: str) -> bool:
    if kind == "ANY":
        return character != "\n"
    if kind == "IN":
        negated = str(value[0][0]) == "NEGATE"
        return any(_takes(str(inner), what, character) for inner, what in value[negated:]) != negated
    if kind == "RANGE":
        return bool(value[0] <= ord(character) <= value[1])
    if kind == "CATEGORY":
        found = re.match({"DIGIT": r"\d", "SPACE": r"\s", "WORD": r"\w"}[str(value).rpartition("_")[2]], character)
        return (found is None) == ("_NOT_" in str(value))
    return bool(ord(character) == value) == (kind == "LITERAL")
