"""Ctrl-C while the command is still being loaded ends it in one line. Does nothing in anybody else's program. Must be
imported before what takes long to load."""

import os
import signal
import sys
import threading
from types import FrameType
from typing import NoReturn


def _is_command() -> bool:
    """Whether this process is `cq` or `python -m cq`."""
    as_module = sys.argv[:1] == ["-m"] and "cq" in sys.orig_argv[sys.orig_argv.index("-m") + 1 :][:1]
    return as_module or os.path.basename(sys.argv[0] if sys.argv else "") == "cq"


def _end(number: int, frame: FrameType | None) -> NoReturn:
    os.write(2, b"cq: interrupted\n")
    os._exit(130)


def loaded() -> None:
    """From now on Ctrl-C raises KeyboardInterrupt again."""
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


if _is_command() and threading.current_thread() is threading.main_thread():
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # nobody has asked for anything else
        signal.signal(signal.SIGINT, _end)
