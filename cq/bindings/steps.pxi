# Calls. Each is checked once and is a Step from then on, which can be made again without the Python in between.

cdef dict tapes = {}  # thread → the tape that records its calls


cdef int call(cq_call *function, str what, const cq_args *args, int64_t rows=0, int64_t sequences=0) except -1:
    """The only way into the team's work: without Python's lock, and with an error where it failed."""
    cdef int64_t bad = 0
    cdef cq_status status
    cdef int most = threads
    with nogil:
        status = function(most, args, rows, sequences, &bad)
    if status != CQ_OK:
        kind = MemoryError if status == CQ_NO_MEMORY else CqError
        raise kind(f"{what}: {cq_status_text(status).decode().format(bad)}")


@final
cdef class Step:
    """One call of C and all that it needs: the function, its arguments, what these point to, and the objects whose
    memory that is. rows, columns: of the float32 arrays that it works through, its results too."""
    cdef cq_call *function
    cdef str what
    cdef cq_args args
    cdef cq_codes codes, sum_codes, coding
    cdef cq_norm norm, inner
    cdef list held
    cdef int64_t rows, columns, sequences

    cdef float *matrix(self, array, str name, int use=CQ_READ) except? NULL:
        return floats(array, name, self.rows, self.columns, use)

    cdef object first(self, result):
        """Makes the call, keeps it where this thread records, and returns `result`, which it fills."""
        call(self.function, self.what, &self.args, self.rows, self.sequences)
        tape = tapes.get(PyThread_get_thread_ident()) if tapes else None
        if tape is not None:
            self.held.append(result)
            (<Tape>tape).steps.append(self)
        return result


cdef Step new_step(cq_call *function, str what, tuple shape, list held):
    """what: the call's name, in errors. shape: rows and columns. held: the objects whose memory it reads."""
    cdef Step step = Step()
    if len(shape) != 2:
        raise CqError(f"{what}: need an array of two dimensions, got shape {shape}")
    step.function, step.what, step.held = function, what, held
    step.rows, step.columns = shape
    return step


@final
cdef class Tape:
    cdef list steps
    cdef readonly int64_t capacity

    def __init__(self, int64_t capacity=0):
        self.steps, self.capacity = [], capacity

    def __enter__(self):
        tapes[PyThread_get_thread_ident()] = self
        return self

    def __exit__(self, *error):
        del tapes[PyThread_get_thread_ident()]

    def replay(self, int64_t rows=-1, int64_t sequences=-1):
        cdef Step step
        if rows > self.capacity or (rows < 0) != (self.capacity == 0):
            holds = self.capacity or "as many tokens as it was recorded with"
            raise CqError(f"rows: the tape holds {holds}, got {rows}")
        for step in self.steps:
            if rows >= 0:
                step.rows, step.sequences = rows, sequences
            call(step.function, step.what, &step.args, step.rows, step.sequences)


# --- passes, which say themselves what they take ---

def run_pass(str name, arrays, numbers=()):
    cdef cq_args args
    cdef cq_pass_args *a = &args.of_pass
    cdef const cq_pass_array *takes
    cdef int64_t rows, per_row, columns, i
    cdef list results = []
    shape, a.what = arrays[0].shape, cq_find_pass(name.encode())
    if a.what == NULL or len(shape) != 2 or len(numbers) != a.what.numbers:
        raise CqError(f"pass: none is called {name!r} and takes an array of shape {shape} and {len(numbers)} numbers")
    rows, a.columns = shape
    for i in range(a.what.numbers):
        a.numbers[i] = numbers[i]
    for i in range(CQ_PASS_ARRAYS):
        takes = &a.what.arrays[i]
        if takes.name == NULL:
            break
        array = arrays[i] if i < len(arrays) else None
        per_row = a.columns if takes.axes == CQ_PER_COLUMN else rows
        columns = a.columns if takes.axes == CQ_MATRIX else FLAT
        if takes.use == CQ_RESULT:
            array = empty(per_row, columns, DTYPES[takes.format]) if array is None else array
            results.append(array)
        a.arrays[i] = pointer(array, takes.name.decode(), takes.format, per_row, columns, takes.use)
    call(cq_run_pass, name, &args, rows)
    return results
