"""The errors cq raises: one base, so that a caller can catch everything that is cq's. Knows nothing else."""


class CqError(ValueError):
    """An argument or a state that cq cannot work with; the message names it, what came, what was wanted and the way
    out."""


class FormatError(CqError):
    """A file or folder that is not what it claims to be, or is not whole."""


class CalibrationError(CqError):
    """A static scale was asked for without data to fix it from."""


class UnsupportedError(CqError):
    """Well-formed, but outside what cq implements or this CPU can run."""
