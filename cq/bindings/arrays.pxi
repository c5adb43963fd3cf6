# Pointers to the data of arrays, which stay valid while the caller holds the array; new arrays for results; errors.

cdef enum:
    ANY = -1   # in a shape: of any size
    FLAT = -2  # in place of columns: one dimension
    ALL = -3   # in place of columns: any dimensions
    READ = 0, WRITE = 1, MAYBE = 2  # what an array is for; MAYBE: read, and None gives NULL

# by buffer format
cdef dict NAMES = {c"f": "float32", c"d": "float64", c"i": "int32", c"l": "int64", c"B": "uint8", c"b": "int8"}
cdef dict ACTIVATIONS = {None: CQ_IDENTITY, "relu": CQ_RELU, "gelu": CQ_GELU, "gelu_tanh": CQ_GELU_TANH,
                         "silu": CQ_SILU}
cdef dict FAILURES = {
    CQ_NOT_FINITE: "NaN or Inf in row {}",
    CQ_NO_ROOM: "sequence {} has kept no room, no angles or no scales for its new tokens, or is longer than the bias "
                "or the relative positions reach",
    CQ_OUT_OF_RANGE: "an id, position, type or offset of row or sequence {} is out of range",
    CQ_OVERFLOW: "a result does not fit int32, as it may with a weight's zero points and K above 33,025; split K and "
                 "add, or pack with zero_point=0"}
# Looked up once: a small product is done in the time that some look-ups take.
cdef object new_array = np.empty, ndarray = np.ndarray, INT8 = np.dtype(np.int8), UINT8 = np.dtype(np.uint8)
cdef object INT32 = np.dtype(np.int32), FLOAT32 = np.dtype(np.float32), FLOAT64 = np.dtype(np.float64)


cdef void *pointer(array, str name, char format, int64_t rows, int64_t columns, int use) except? NULL:
    """The data of a C-contiguous array of this format and shape."""
    cdef Py_buffer view
    cdef bint good
    if array is None and use == MAYBE:
        return NULL
    try:
        PyObject_GetBuffer(array, &view, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | (PyBUF_WRITABLE if use == WRITE else 0))
    except (TypeError, ValueError, BufferError) as error:
        what = " that can be written" if use == WRITE else ""
        raise CqError(f"{name}: need a C-contiguous {NAMES[format]} array{what}, got {describe(array)} "
                      f"({error})") from None
    cdef void *data = view.buf
    good = view.format[0] == format and view.format[1] == 0
    if columns != ALL:
        good = good and view.ndim == (1 if columns == FLAT else 2) and (rows < 0 or view.shape[0] == rows)
        good = good and (columns < 0 or view.shape[1] == columns)
    PyBuffer_Release(&view)
    if not good:
        shape = ", ".join(["any" if size < 0 else str(size) for size in (rows, columns) if size != FLAT])
        raise CqError(f"{name}: need a {NAMES[format]} array of shape ({shape}), got {describe(array)}")
    return data


cdef float *floats(array, str name, int64_t rows, int64_t columns=FLAT, int use=READ) except? NULL:
    return <float *>pointer(array, name, c"f", rows, columns, use)


cdef int32_t *int32s(array, str name, int64_t rows, int64_t columns=FLAT, int use=READ) except? NULL:
    return <int32_t *>pointer(array, name, c"i", rows, columns, use)


cdef object empty(int64_t rows, int64_t columns, dtype):
    """A new array (rows, columns), or (rows,), with room for as many rows as a recording tape asks for. A large one
    begins with a cache line, so that no vector lies across two."""
    tape = tapes.get(PyThread_get_thread_ident()) if tapes else None
    cdef int64_t room = rows if tape is None else max(rows, (<Tape>tape).capacity)
    cdef tuple shape = (room, columns)[:1 if columns == FLAT else 2]
    cdef int64_t size = room * (1 if columns == FLAT else columns) * dtype.itemsize
    cdef void *start
    if size < 4096:
        found = new_array(shape, dtype)
    else:
        memory = new_array(size + CQ_LINE, UINT8)
        start = pointer(memory, "memory", c"B", ANY, FLAT, READ)
        found = ndarray(shape, dtype, memory, -<int64_t><size_t>start % CQ_LINE)
    return found if room == rows else found[:rows]


cdef object new_floats(float **data, int64_t rows, int64_t columns=FLAT):
    """A new float32 array, and where its data lie."""
    found = empty(rows, columns, FLOAT32)
    data[0] = floats(found, "result", rows, columns, WRITE)
    return found


cdef str describe(array):
    if hasattr(array, "dtype") and hasattr(array, "shape"):
        return f"{array.dtype} of shape {tuple(array.shape)}"
    return type(array).__name__


cdef int check(cq_status status, int64_t bad, str what) except -1:
    """Raises where a call failed; bad: the row or sequence that it named."""
    if status == CQ_NO_MEMORY:
        raise MemoryError(f"{what}: no memory for work arrays")
    if status != CQ_OK:
        raise CqError(f"{what}: {FAILURES[status].format(bad)}")
    return 0


cdef cq_activation activation_of(name) except *:
    if not isinstance(name, (str, type(None))) or name not in ACTIVATIONS:
        raise CqError(f"activation: {name!r} is not known; choose one of {', '.join(map(str, ACTIVATIONS))}")
    return <cq_activation><int>ACTIVATIONS[name]
