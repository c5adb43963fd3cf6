"""Loads the compiled core, and says what to do where it is missing. Must be imported first."""

from pathlib import Path

try:
    from . import _core  # noqa: F401
except ImportError as error:
    if any(Path(__file__).parent.glob("_core.*.so")):
        raise
    raise ImportError(
        "this is cq's source folder, without the compiled core: start Python elsewhere, or work in it after "
        "pip install -e ."
    ) from error
