"""Whether a stranger's regular expression finds its matches in a bounded number of steps, read off its text. Knows
Oniguruma's syntax, in which tokenizers have them, and not what they are for.

A backtracking matcher tries every way in which an expression can match. Ways multiply where what is repeated can
itself match in several ways, and where one unbounded repetition stands before another that must fail first."""

import re
from typing import NamedTuple

from ..errors import UnsupportedError, brief

MAX_LENGTH = 1 << 13  # characters; cl100k's has 130, the longest in the wild about 1,000
MAX_WAYS = 4096  # that bounded repetitions give at one place
_FEW, _MOST, _NO_BOUND = 64, 1000, 1 << 30  # repetitions that count as bounded, that are taken, without a bound
_COUNTS = re.compile(r"\{(\d*)(,?)(\d*)\}")
_GROUP = re.compile(r"\?(?::|=|!|<=|<!|>|[im-]+:|<[A-Za-z_]\w*>)")
_LINE_END = re.compile(r"\\r\?\\n(?![*+?{])")  # matches in one way, since no text begins with both
_NAMED = re.compile(r"\\(?:[pP]\{[^{}]{1,64}\}|x\{[0-9A-Fa-f]{1,8}\}|x[0-9A-Fa-f]{1,2}|u[0-9A-Fa-f]{4})")


class _Ways(NamedTuple):
    """How a part can match. bounded: in how many ways at most, repetitions without a bound left out; open: how many of
    those stand before something that must match too; ends: how many stand at its end, which then count where something
    follows; empty: whether it can match nothing; look: whether it is an assertion, which matches nothing and may
    fail."""

    bounded: int = 1
    open: int = 0
    ends: int = 0
    empty: bool = False
    look: bool = False

    @property
    def one(self) -> bool:
        return self.bounded == 1 and not self.open and not self.ends and not self.empty


_ATOM, _NOTHING, _LOOK = _Ways(), _Ways(empty=True), _Ways(empty=True, look=True)
_AGAIN = _Ways(ends=2)  # a repetition of a repetition takes one step a character, if nothing must match after it


def check_regex(pattern: str, where: str) -> None:
    """Raises UnsupportedError for an expression that may take more steps than a text has characters, at each place of
    it, times MAX_WAYS; and for syntax that this does not know. What is no expression at all the library refuses."""
    try:
        if len(pattern) > MAX_LENGTH:
            raise _Unproven(f"it has more than {MAX_LENGTH} characters")
        ways = _Reader(pattern).whole()
        if ways.open > 1 or ways.bounded > MAX_WAYS:
            raise _Unproven("it can match in too many ways")
    except (_Unproven, RecursionError) as error:
        why = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise UnsupportedError(f"{where}: the regular expression {brief(pattern)} may take forever: {why}") from None


class _Unproven(Exception):
    pass


class _Reader:
    def __init__(self, text: str):
        self.text, self.at = text, 0

    def whole(self) -> _Ways:
        ways = self._alternatives()
        if self.at < len(self.text):
            raise _Unproven("a parenthesis closes nothing")
        return ways

    def _alternatives(self) -> _Ways:
        found = [self._sequence()]
        while self._next("|"):
            found.append(self._sequence())
        if len(found) == 1:
            return found[0]
        return _Ways(
            sum(ways.bounded for ways in found),
            max(ways.open for ways in found),
            max(ways.ends for ways in found),
            any(ways.empty for ways in found),
        )

    def _sequence(self) -> _Ways:
        found = _NOTHING
        while self.at < len(self.text) and self.text[self.at] not in "|)":
            part = self._repeated(self._atom())
            follows = found.ends if not part.empty or part.look else 0
            found = _Ways(
                found.bounded * part.bounded,
                found.open + part.open + follows,
                found.ends - follows + part.ends,
                found.empty and part.empty,
            )
            if found.bounded > MAX_WAYS:
                raise _Unproven("it can match in too many ways")
        return found

    def _next(self, what: str) -> bool:
        if not self.text.startswith(what, self.at):
            return False
        self.at += len(what)
        return True

    def _atom(self) -> _Ways:
        if self._next("("):
            return self._group()
        if self._next("["):
            self._class()
            return _ATOM
        line_end = _LINE_END.match(self.text, self.at)
        if line_end is not None:
            self.at = line_end.end()
            return _ATOM
        if self.text[self.at] == "\\":
            return self._escape()
        self.at += 1
        return _LOOK if self.text[self.at - 1] in "^$" else _ATOM

    def _group(self) -> _Ways:
        look = False
        if self.text.startswith("?", self.at):
            match = _GROUP.match(self.text, self.at)
            if match is None:
                raise _Unproven(f"it has a group {self.text[self.at - 1 : self.at + 3]!r}")
            self.at, look = match.end(), match[0] in ("?=", "?!", "?<=", "?<!")
        ways = self._alternatives()
        if not self._next(")"):
            raise _Unproven("a parenthesis is not closed")
        return _LOOK._replace(bounded=ways.bounded, open=ways.open + ways.ends) if look else ways

    def _class(self) -> None:
        self._next("^")
        self._next("]")
        while not self._next("]"):
            if self.at >= len(self.text):
                raise _Unproven("a bracket is not closed")
            if self._next("[:"):
                end = self.text.find(":]", self.at)
                if end < 0:
                    raise _Unproven("a bracket is not closed")
                self.at = end + 2
            elif self._next("["):
                self._class()
            else:
                self.at += 2 if self.text[self.at] == "\\" else 1

    def _escape(self) -> _Ways:
        named = _NAMED.match(self.text, self.at)
        letter = self.text[self.at + 1 : self.at + 2]
        if named is None and (letter in "gkXRK123456789" or not letter):
            raise _Unproven(f"it has \\{letter}")
        self.at = self.at + 2 if named is None else named.end()
        return _LOOK if letter in "bBAzZG" else _ATOM

    def _repeated(self, atom: _Ways) -> _Ways:
        """The atom with what repeats it. Oniguruma reads + after braces as a second repetition, and so ? after {n}."""
        counts = self._counts()
        if counts is None:
            return atom
        least, most, braces = counts
        ways = _times(atom, least, most)
        if not braces:
            self._next("?") or self._next("+")
        elif self._next("?"):
            ways = ways if "," in braces else _times(ways, 0, 1)
        elif self._next("+"):
            if not atom.one or ways.empty:
                raise _Unproven("a repetition is repeated")
            ways = _AGAIN
        if self._counts() is not None or atom.look:
            raise _Unproven("a repetition is repeated")
        return ways

    def _counts(self) -> tuple[int, int, str] | None:
        """From how many times to how many, and the braces that say it, if braces do."""
        for sign, counts in (("*", (0, _NO_BOUND)), ("+", (1, _NO_BOUND)), ("?", (0, 1))):
            if self._next(sign):
                return *counts, ""
        braces = _COUNTS.match(self.text, self.at)
        if braces is None or not (braces[1] or braces[3]):
            return None
        self.at = braces.end()
        least = int(braces[1][:6] or 0)
        most = _NO_BOUND if braces[2] else least
        if braces[3]:
            most = int(braces[3][:6])
        if least > _MOST or _MOST < most < _NO_BOUND or most < least:
            raise _Unproven(f"it repeats more than {_MOST} times")
        return least, most, braces[0]


def _times(ways: _Ways, least: int, most: int) -> _Ways:
    """What can match in these ways, so many times."""
    if most == 1:
        return ways._replace(bounded=ways.bounded + (least == 0), empty=ways.empty or least == 0)
    if not ways.one:
        raise _Unproven("what is repeated can match in several ways")
    if most > _FEW and most != least:
        return _Ways(1, 0, 1, least == 0)
    return _Ways(most - least + 1, 0, 0, least == 0)
