# Calls. Each is checked once and is a Step from then on, which can be made again without the Python in between.

cdef dict tapes = {}  # thread → the tape that records its calls


@final
cdef class Step:
    """One call of C and all that it needs: the function, its arguments, what these point to, and the objects whose
    memory that is. rows, columns: of the float32 arrays that it works through, its results too."""
    cdef cq_call *function
    cdef str what
    cdef cq_args args
    cdef cq_codes codes, sum_codes, coding
    cdef cq_norm norm
    cdef list held
    cdef int64_t rows, columns, sequences

    cdef float *matrix(self, array, str name, int use=READ) except? NULL:
        return floats(array, name, self.rows, self.columns, use)

    cdef float *per_column(self, array, str name, int use=READ) except? NULL:
        return floats(array, name, self.columns, FLAT, use)

    cdef float *per_row(self, array, str name, int use=READ) except? NULL:
        return floats(array, name, self.rows, FLAT, use)

    cdef object new(self, float **data):
        """A new matrix for results."""
        return new_floats(data, self.rows, self.columns)

    cdef int run(self) except -1:
        cdef int64_t bad = 0
        cdef cq_status status
        cdef int most = threads
        with nogil:
            status = self.function(most, &self.args, self.rows, self.sequences, &bad)
        return check(status, bad, self.what)

    cdef object once(self, result):
        """Makes the call and returns `result`, which it fills."""
        self.run()
        return result

    cdef object first(self, result):
        """The same, and keeps the call where this thread records."""
        self.run()
        if tapes:
            tape = tapes.get(PyThread_get_thread_ident())
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
    """Records this thread's calls, `with` it, and makes them again. capacity: tokens that the results hold, or 0."""
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
        """rows, sequences: of this time, where there is a capacity; else as they were."""
        cdef Step step
        if rows > self.capacity or (rows < 0) != (self.capacity == 0):
            holds = self.capacity or "as many tokens as it was recorded with"
            raise CqError(f"rows: the tape holds {holds}, got {rows}")
        for step in self.steps:
            if rows >= 0:
                step.rows, step.sequences = rows, sequences
            step.run()
