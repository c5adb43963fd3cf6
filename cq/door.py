"""The one door: every public function and class passes through it, so that what goes wrong inside is one of cq's
errors, in one line. Knows none of them."""

import functools
import inspect
import sys
import sysconfig
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FunctionType, TracebackType
from typing import Any

from .errors import CqError, one_line

# What comes through as it is: cq's own; the system's, which name files; and what says how a program ends.
_PASSES = (CqError, OSError, MemoryError, Warning, ImportError, StopIteration)
_SHOWN = ("__repr__", "__str__", "__format__")  # of arguments, called to name them in messages
_LIBRARIES = ("numpy", "tokenizers", "safetensors")
_COMPILED = tuple(f"{name}." for name in (__package__, *_LIBRARIES))  # so begin the names of Cython's functions


class own_errors:
    """A block whose errors become cq's of `kind`, their message beginning with `what`; panics of a library in Rust
    too, which are no Exceptions. Errors of code that the caller handed in pass."""

    def __init__(self, what: str, kind: type[CqError] = CqError):
        self._what, self._kind = what, kind

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None and not isinstance(error, _PASSES) and _is_ours(error, trace):
            raise translated(error, self._what, self._kind) from error


def translated(error: BaseException, what: str, kind: type[CqError] = CqError) -> CqError:
    """The error as one of cq's."""
    try:
        words = str(error)
    except Exception:  # of an argument that has a hand in its own message
        words = ""
    return kind(one_line(f"{what}: {words}" if words else f"{what}: {type(error).__name__}"))


def guarded(function: Callable, what: str, kind: type[CqError] = CqError) -> Callable:
    """The same function, whose errors are cq's. A call that does not fit its signature is a TypeError, as anywhere."""

    @functools.wraps(function)
    def through(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except _PASSES:
            raise
        except BaseException as error:
            inside = error.__traceback__ and error.__traceback__.tb_next
            if inside is None and isinstance(error, TypeError) or not _is_ours(error, inside):
                raise
            raise translated(error, what, kind) from error

    return through


def guard(names: Iterable[str], namespace: dict[str, Any]) -> None:
    """Puts the public functions and classes of these names behind the door: where they are used and where they are
    defined."""
    for name in names:
        value = namespace[name]
        if isinstance(value, FunctionType):
            namespace[name] = guarded(value, name)
            setattr(sys.modules[value.__module__], name, namespace[name])
        elif inspect.isclass(value) and not issubclass(value, BaseException):
            for kind in value.__mro__:
                if kind.__module__.partition(".")[0] == __package__:
                    _guard_class(kind)


def _guard_class(kind: type) -> None:
    """Its public methods, and how it is made; not those of compiled classes, which look themselves. Properties take no
    arguments."""
    for name, member in list(vars(kind).items()):
        if name.startswith("_") and name != "__init__":
            continue
        what = kind.__name__ if name == "__init__" else name
        found: Any = None
        if isinstance(member, FunctionType):
            found = guarded(member, what)
        elif isinstance(member, classmethod | staticmethod):
            found = type(member)(guarded(member.__func__, what))
        if found is not None and not hasattr(getattr(member, "__func__", member), "__wrapped__"):
            try:
                setattr(kind, name, found)
            except TypeError:  # a compiled class cannot be changed
                return


def _is_ours(error: BaseException, trace: TracebackType | None) -> bool:
    """Whether it happened in cq or in the libraries under it, and not in code that the caller handed in; what an
    argument raises when it is to be named counts as ours."""
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
        return False
    while trace is not None:
        code = trace.tb_frame.f_code
        if not code.co_filename.startswith(_known()) and not code.co_name.startswith(_COMPILED):
            return code.co_name in _SHOWN
        trace = trace.tb_next
    return True


@functools.cache
def _known() -> tuple[str, ...]:
    """Where cq, the standard library and installed packages lie; "<string>" is where dataclasses are made."""
    paths = sysconfig.get_paths()
    found = {paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    found |= {str(Path(sys.modules[name].__file__ or "").parent) for name in _LIBRARIES}
    return str(Path(__file__).parent), *sorted(found), "<frozen", "<string>", "<__array_function__"
