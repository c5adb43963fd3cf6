"""AMX beside what else a process does: its tiles are a permission of the system's, and state of the thread."""

import ctypes
import os
import subprocess
import sys

import numpy as np
import pytest
from compiled import compiled

import cq
from cq import _core

pytestmark = pytest.mark.skipif("amx" in _core.ISAS_MISSING, reason="this CPU has no AMX")
SMALL_SIGNAL_STACK = """
import ctypes
class Stack(ctypes.Structure):
    _fields_ = [("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("bytes", ctypes.c_size_t)]
room = ctypes.create_string_buffer(4096)
assert not ctypes.CDLL(None).sigaltstack(ctypes.byref(Stack(ctypes.addressof(room), 0, 4096)), None)
import cq
print(cq.info()["isa"], cq.info()["isa_missing"])
"""
SHAPES = """
void put(const char *shapes) { __asm__ volatile("ldtilecfg %0" : : "m"(*(const char (*)[64])shapes)); }
void get(char *shapes) { __asm__ volatile("sttilecfg %0" : "=m"(*(char (*)[64])shapes)); }
void release(void) { __asm__ volatile("tilerelease"); }
"""


def test_tiles_are_left_alone_where_the_system_refuses_them():
    """Linux does where a thread's stack for signals is too small to save tiles on."""
    chosen_freely = {name: value for name, value in os.environ.items() if name != "CQ_ISA"}
    run = subprocess.run([sys.executable, "-c", SMALL_SIGNAL_STACK], env=chosen_freely, text=True, capture_output=True)
    assert run.stdout.startswith("avx512vnni ['amx (the operating system does not let this process"), run.stderr


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """Functions that set, read and release the shapes of this thread's tiles."""
    library = compiled(tmp_path_factory.mktemp("tiles"), SHAPES)
    if library is None:
        pytest.skip("no C compiler to reach the thread's tiles with")
    return ctypes.CDLL(str(library))


@pytest.mark.skipif(_core.ISA != "amx", reason="CQ_ISA forces less")
@pytest.mark.parametrize("rows", [0, 7])
def test_another_librarys_shapes_stay(shapes, rows):
    """Of tiles that nobody has shaped, and of one with so many rows."""
    before, after = bytearray(64), (ctypes.c_char * 64)()
    if rows:
        before[0], before[16], before[48] = 1, 64, rows  # the palette; tile 0's bytes in a row, and its rows
    rng = np.random.default_rng(0)
    a = rng.integers(0, 256, (40, 100), np.uint8)
    w = rng.integers(-128, 128, (100, 50), np.int8)
    packed = cq.pack(w)
    if rows:
        shapes.put(bytes(before))
    try:
        sums = cq.matmul_integer(a, packed)
        _core.peak("int8", 1)
        shapes.get(after)
    finally:
        shapes.release()
    assert np.array_equal(sums, a.astype(np.int32) @ w.astype(np.int32))
    assert after.raw == bytes(before)
