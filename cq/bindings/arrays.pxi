# Pointers to the data of arrays, which stay valid while the caller holds the array; new arrays for results; errors.

cdef enum:
    ANY = -0x7fffffff   # in a shape: of any size
    FLAT = -0x7ffffffe  # in place of columns: one dimension

# Looked up once: a small product is done in the time that some look-ups take.
cdef object new_array = np.empty, ndarray = np.ndarray, INT8 = np.dtype(np.int8), UINT8 = np.dtype(np.uint8)
cdef object INT32 = np.dtype(np.int32), FLOAT32 = np.dtype(np.float32), FLOAT64 = np.dtype(np.float64)
cdef dict DTYPES = {c"f": FLOAT32, c"d": FLOAT64, c"i": INT32, c"B": UINT8, c"b": INT8}  # by buffer format
cdef dict ACTIVATIONS = {None: CQ_IDENTITY, "relu": CQ_RELU, "gelu": CQ_GELU, "gelu_tanh": CQ_GELU_TANH,
                         "silu": CQ_SILU}


cdef int refuse(array, str name, char format, int flags) except -1:
    """Says why an array's memory was not opened, of which an error is set."""
    try:
        raise_it()
    except (TypeError, ValueError, BufferError) as error:
        layout = "C-contiguous " if flags & PyBUF_C_CONTIGUOUS == PyBUF_C_CONTIGUOUS else ""
        what = f"{layout}{DTYPES[format]} array{' that can be written' if flags & PyBUF_WRITABLE else ''}"
        raise CqError(f"{name}: need a {what}, got {describe(array)} ({error})") from None


cdef int raise_it() except -1:
    """Raises the error that is set."""
    return -1


cdef void *pointer(array, str name, char format, int64_t rows, int64_t columns, int use) except? NULL:
    """The data of a C-contiguous array of this format and shape."""
    cdef Py_buffer view
    if array is None and use & CQ_MAYBE:
        return NULL
    cdef int flags = PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | (PyBUF_WRITABLE if use & CQ_WRITE else 0)
    if open_buffer(array, &view, flags) < 0:
        refuse(array, name, format, flags)
    cdef void *data = view.buf
    cdef bint good = view.format[0] == format and view.format[1] == 0
    good = good and view.ndim == (1 if columns == FLAT else 2) and (rows == ANY or view.shape[0] == rows)
    good = good and (columns == ANY or columns == FLAT or view.shape[1] == columns)
    PyBuffer_Release(&view)
    if not good:
        raise CqError(f"{name}: need a {DTYPES[format]} array of shape {sizes(rows, columns)}, got {describe(array)}")
    return data


cdef float *floats(array, str name, int64_t rows, int64_t columns=FLAT, int use=CQ_READ) except? NULL:
    return <float *>pointer(array, name, c"f", rows, columns, use)


cdef int32_t *int32s(array, str name, int64_t rows, int64_t columns=FLAT, int use=CQ_READ) except? NULL:
    return <int32_t *>pointer(array, name, c"i", rows, columns, use)


cdef int read_matrices(cq_matrices *to, array, str name, char format, int64_t rows, int64_t columns, int use=CQ_READ,
                       const int64_t *pairs=NULL) except -1:
    """The last two axes of an array as its memory is, whatever a class of its own may say. Of floats one of the two is
    contiguous, of a result the last one. pairs: the sizes of the axes before them, or 1 in their place."""
    cdef Py_buffer view
    cdef int flags = PyBUF_STRIDED_RO | PyBUF_FORMAT | (PyBUF_WRITABLE if use & CQ_WRITE else 0)
    if open_buffer(array, &view, flags) < 0:
        refuse(array, name, format, flags)
    cdef bint good = view.format[0] == format and view.format[1] == 0
    cdef int i, last = view.ndim - 1, before = CQ_PAIR_AXES - last + 1
    good = good and last >= 1 and before >= 0
    if good:
        to.data, to.rows, to.columns = view.buf, view.shape[last - 1], view.shape[last]
        # of one row or column, what reads best
        to.row = view.strides[last - 1] // view.itemsize if to.rows > 1 else to.columns
        to.column = view.strides[last] // view.itemsize if to.columns > 1 else 1
        good = format == c"b" or view.len == 0 or to.column == 1 or (use == CQ_READ and (to.row == 1 or to.rows == 1))
        good = good and (rows == ANY or to.rows == rows) and (columns == ANY or to.columns == columns)
        for i in range(CQ_PAIR_AXES):
            to.pairs[i] = view.shape[i - before] if i >= before else 1
            to.steps[i] = view.strides[i - before] // view.itemsize if to.pairs[i] != 1 else 0
            good = good and (pairs == NULL or to.pairs[i] == 1 or to.pairs[i] == pairs[i])
    PyBuffer_Release(&view)
    if not good:
        raise CqError(f"{name}: need {DTYPES[format]} matrices of shape {sizes(rows, columns)} with a contiguous axis, "
                      f"got {describe(array)}")


cdef str sizes(int64_t rows, int64_t columns):
    """A shape in words."""
    return f"({', '.join(['any' if size == ANY else str(size) for size in (rows, columns) if size != FLAT])})"


cdef object empty(int64_t rows, int64_t columns, dtype):
    """A new array (rows, columns), or (rows,), with room for as many rows as a recording tape asks for. A large one
    begins with a cache line, so that no vector lies across two."""
    tape = tapes.get(PyThread_get_thread_ident()) if tapes else None
    cdef int64_t room = rows if tape is None else max(rows, (<Tape>tape).capacity)
    cdef tuple shape = (room, columns)[:1 if columns == FLAT else 2]
    cdef int64_t size = room * (1 if columns == FLAT else columns) * dtype.itemsize
    if size < 4096:
        found = new_array(shape, dtype)
    else:
        memory = new_array(size + CQ_LINE, UINT8)
        skipped = -<int64_t>pointer(memory, "memory", c"B", ANY, FLAT, CQ_READ) % CQ_LINE
        found = ndarray(shape, dtype, memory, skipped)
    return found if room == rows else found[:rows]


cdef object new_floats(float **data, int64_t rows, int64_t columns=FLAT):
    """A new float32 array, and where its data lie."""
    found = empty(rows, columns, FLOAT32)
    data[0] = floats(found, "result", rows, columns, CQ_WRITE)
    return found


cdef str describe(array):
    if hasattr(array, "dtype") and hasattr(array, "shape"):
        return f"{array.dtype} of shape {tuple(array.shape)}"
    return type(array).__name__


cdef cq_activation activation_of(name) except *:
    if not isinstance(name, (str, type(None))) or name not in ACTIVATIONS:
        raise CqError(f"activation: {name!r} is not known; choose one of {', '.join(map(str, ACTIVATIONS))}")
    return <cq_activation><int>ACTIVATIONS[name]
