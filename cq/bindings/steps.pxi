# Calls. Those that can be made again without the Python in between are checked once and are Steps from then on.

cdef int call(cq_call *function, cq_args *args, int64_t rows, str what, int64_t sequences=0) except -1:
    """what: the call's name, in errors."""
    cdef int64_t bad = 0
    cdef cq_status status
    cdef int most = threads
    with nogil:
        status = function(most, args, rows, sequences, &bad)
    return check(status, bad, what)


cdef dict tapes = {}  # thread → the tape that records its calls


@final
cdef class Step:
    """One call of C and all that it needs: the function, its arguments, what these point to, and the objects whose
    memory that is."""
    cdef cq_call *function
    cdef str what
    cdef cq_args args
    cdef cq_codes codes, sum_codes, coding
    cdef cq_norm norm
    cdef list held
    cdef int64_t rows, sequences

    cdef int run(self) except -1:
        return call(self.function, &self.args, self.rows, self.what, self.sequences)

    cdef object first(self, result):
        """Makes the call, keeps it where this thread records, and returns `result`, which it fills."""
        self.held.append(result)
        self.run()
        if tapes:
            tape = tapes.get(PyThread_get_thread_ident())
            if tape is not None:
                (<Tape>tape).steps.append(self)
        return result


cdef Step new_step(cq_call *function, str what, int64_t rows, list held):
    cdef Step step = Step()
    step.function, step.what, step.rows, step.held = function, what, rows, held
    return step


@final
cdef class Tape:
    """Records this thread's calls, `with` it, and makes them again: the same functions on the same arrays, whose
    contents may have changed meanwhile, without the Python in between. Recorded are embed, norm, linear, gate, rope,
    attention, attention_kept, quantize and dequantize; what else happened, NumPy's work included, is not. Results
    stand in the arrays that the recorded calls returned. capacity: tokens that these arrays hold and are recorded
    with, for calls that are made again with fewer, or 0."""
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
