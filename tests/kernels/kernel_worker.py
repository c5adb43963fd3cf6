"""Run as a script: makes the calls of kernel_cases.py under CQ_ISA and prints "call <label>" before and "bits <digest>"
after each, so that the last line of a crash names the call. An argument that changed, or a result that shares memory
with one, ends it with an error.

    python kernel_worker.py THREADS [plain | end FILL | start FILL | crash-after | crash-before | crash-scratch]

end, start: all arrays, given and new, lie against guard pages and new ones are made of the byte FILL; so do the
kernels' work arrays, where the library of test_guard.py is loaded before. crash-…: does what the guards must catch."""

import ctypes
import hashlib
import os
import sys
from dataclasses import fields, is_dataclass

import kernel_cases
import numpy as np
from guard_pages import Allocator

from cq import _core
from cq.model.forms import Columns
from cq.model.norm import Norm
from cq.weights import FloatWeight, Weight


def arrays(value) -> list[np.ndarray]:
    """The arrays in arguments and results, numbers as arrays of one element."""
    if isinstance(value, tuple):
        return [array for item in value for array in arrays(item)]
    if isinstance(value, _core.Coded):
        return arrays((value.codes, value.scale, value.zero_point))
    if isinstance(value, Norm):
        return arrays((value.weight, value.bias))
    if is_dataclass(value):  # a form
        return arrays(tuple(getattr(value, field.name) for field in fields(value)))
    if isinstance(value, Columns):
        return arrays((value.scale, value.zero_point, value.inverse))
    if isinstance(value, FloatWeight):
        return arrays((value.panels,))
    if isinstance(value, Weight):
        return arrays((value.panels, value.column_sums, value.zero_points, value.scales))
    return [np.asarray(value)] if isinstance(value, (np.ndarray, int, float)) else []


def run(call: kernel_cases.Call) -> str:
    """The digest of what one call gives."""
    inputs = (*call.arguments, *call.keywords.values())
    given = [a for a in arrays(inputs) if not any(a is w for w in call.writes)]
    forms = arrays(tuple(item for item in inputs if is_dataclass(item)))  # codes keep the parameters they were given
    before = [a.tobytes() for a in given]
    results = arrays(call.function(*call.arguments, **call.keywords))
    if [a.tobytes() for a in given] != before:
        raise AssertionError(f"{call.label}: an argument was changed")
    made = [result for result in results if not any(result is a for a in forms)]
    if any(np.shares_memory(result, argument) for result in made for argument in given):
        raise AssertionError(f"{call.label}: a result shares memory with an argument")
    digest = hashlib.blake2b(digest_size=12)
    for array in (*results, *call.writes):
        digest.update(f"{array.dtype} {array.shape}".encode() + array.tobytes())
    return digest.hexdigest()


def crash(how: str) -> None:
    """Touches one byte beside an array or a work array."""
    allocator = Allocator()
    allocator.at_end = how == "crash-after"
    allocator.install()
    array = np.ones(100, np.uint8)
    start = array.ctypes.data
    if how == "crash-scratch":
        allocate = ctypes.CDLL(None).aligned_alloc
        allocate.restype, allocate.argtypes = ctypes.c_void_p, (ctypes.c_size_t, ctypes.c_size_t)
        ctypes.CDLL(None).guard_at_end(1)
        start = allocate(64, 128) + 28
    print("call", how, ctypes.string_at(start, 100)[:0], flush=True)
    ctypes.string_at(start - 1 if how == "crash-before" else start + 100, 1)


def main(threads: int, mode: str = "plain", fill: int = 0) -> None:
    if mode.startswith("crash"):
        return crash(mode)
    _core.set_threads(threads)
    if mode != "plain":
        allocator = Allocator()
        allocator.at_end, allocator.fill = mode == "end", fill
        kernel_cases.fill = fill
        allocator.install()
        if hasattr(ctypes.CDLL(None), "guard_at_end"):
            ctypes.CDLL(None).guard_at_end(allocator.at_end)
            print("work arrays are guarded")
    for call in kernel_cases.calls():
        print("call", call.label, flush=mode != "plain")
        print("bits", run(call))
    sys.stdout.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:3], *map(int, sys.argv[3:4]))
    os._exit(0)  # arrays that still live must not be freed by an allocator that no longer does
