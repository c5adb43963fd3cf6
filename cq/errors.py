"""The errors cq raises: one base, so that a caller can catch everything that is cq's. Knows nothing else."""

import reprlib

LONGEST = 1000  # characters of a message
_BREAKS = dict.fromkeys(map(ord, "\n\r\t\v\f\x1c\x1d\x1e\x85\u2028\u2029"), " ")
_BRIEF = reprlib.Repr()
_BRIEF.maxstring = 120


def one_line(message: str) -> str:
    """A message on one line of at most LONGEST characters: its middle is left out where it has more."""
    message = message.translate(_BREAKS)
    return message if len(message) <= LONGEST else f"{message[: LONGEST - 303]} … {message[-300:]}"


def brief(value: object) -> str:
    """`repr` cut to a length that fits an error message, however large the value; names of tensors stay whole."""
    return _BRIEF.repr(value)


class CqError(ValueError):
    """An argument or a state that cq cannot work with; the message, one line, names it, what came, what was wanted and
    the way out."""

    def __init__(self, message: object = "") -> None:
        super().__init__(one_line(str(message)))


class FormatError(CqError):
    """A file or folder that is not what it claims to be, or is not whole."""


class CalibrationError(CqError):
    """A static scale was asked for without data to fix it from."""


class UnsupportedError(CqError):
    """Well-formed, but outside what cq implements or this CPU can run."""
