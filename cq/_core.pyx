# cython: language_level=3, boundscheck=False, binding=False, autotestdict=False, auto_pickle=False
# cython: embedsignature=True, embedsignature.format=clinic
"""The only door to C: checks arrays, releases the GIL, calls, raises. Knows nothing of models or files.

Arrays must be C-contiguous and of the exact dtype; float32 is (rows, columns). `Coded` is an activation in codes,
`Packed` a weight; both are checked once, when they are made. A `form` says which codes are wanted, by its field `kind`
and those that come with it (cq/model/forms.py). What Python calls is described once, in cq/_core.pyi. """
import os
import numpy as np
from cpython.buffer cimport PyBUF_C_CONTIGUOUS, PyBUF_FORMAT, PyBUF_STRIDED_RO, PyBUF_WRITABLE, PyBuffer_Release
from cython cimport final
from cpython.pythread cimport PyThread_get_thread_ident
from libc.stdint cimport int8_t, int32_t, int64_t, uint8_t

from cq.errors import CqError, UnsupportedError
from cq.memory import aligned

MAX_K = CQ_MAX_K
COMPILER = cq_compiler().decode()
PANEL = CQ_PANEL
ISAS = ("scalar", "avx2", "avx512bw", "avxvnni", "avx512vnni", "amx")  # slowest first
ISAS_MISSING = {name: cq_isa_lacks(name.encode()).decode() for name in ISAS if cq_isa_lacks(name.encode()) != NULL}
cdef int threads = 1  # read and written under Python's lock

if cq_select():
    raise UnsupportedError(f"CQ_ISA={os.environ['CQ_ISA']!r}: need one of {', '.join(ISAS)}, or unset it; this CPU has "
                           f"only {', '.join([name for name in ISAS if name not in ISAS_MISSING])}")
if cq_guard_fork():
    raise MemoryError("cq: no memory to register the fork handler")
ISA = cq_isa().decode()  # the one whose kernels run

include "bindings/arrays.pxi"    # pointers to checked arrays, new arrays, errors
include "bindings/steps.pxi"     # calls that can be made again; passes
include "bindings/codes.pxi"     # activations in codes
include "bindings/weights.pxi"   # packed weights
include "bindings/products.pxi"  # matrix products, with what follows one
include "bindings/layers.pxi"    # embeddings, norms, gates, rotary positions
include "bindings/attention.pxi"


def get_threads():
    return threads


def set_threads(int n):
    global threads
    threads = n


def keep_freed(bint on):
    cq_keep_freed(on)


def peak(str kind, int64_t repeats):
    cdef double operations
    cdef bint int8 = kind == "int8"
    with nogil:
        operations = cq_peak_i8(repeats) if int8 else cq_peak_f32(repeats)
    return operations
