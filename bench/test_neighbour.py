"""MiniLM on one thread and on two, alone and beside a process that keeps one of the cores busy."""

import subprocess
import sys
import time
from contextlib import contextmanager, nullcontext

import pytest

import cq

from . import encoder
from .measure import Entry, contest
from .test_model import SHAPES

BUSY = "import time\nend = time.time() + 600\nwhile time.time() < end: pass"
ALONE, BESIDE = "alone", "beside a busy process"
STRATEGIES = "float32", "dynamic", "static"
ROUNDS, TURN_S = 5, 0.3  # a turn is longer than the scheduler's


@contextmanager
def busy_neighbour():
    process = subprocess.Popen([sys.executable, "-c", BUSY])
    try:
        time.sleep(0.5)
        yield
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def models(float_model, calibration) -> dict:
    return encoder.strategies(float_model, calibration)


@pytest.mark.parametrize("where", [ALONE, BESIDE], ids=["alone", "beside"])
@pytest.mark.parametrize("case", ["1×16", "8×128"], ids=["1x16", "8x128"])
def test_neighbour(benchmark, threads, models, float_model, case, where):
    tokens = encoder.random(float_model, *SHAPES[case])

    def on(count: int, model):
        def call():
            cq.set_num_threads(count)
            model.forward(tokens)

        return call

    entries = [
        Entry(where, f"cq {name}, {count} thread{'s' * (count > 1)}", on(count, models[name]), 0.0, "float32")
        for name in STRATEGIES
        for count in (1, 2)
    ]
    with nullcontext() if where == ALONE else busy_neighbour():
        contest(benchmark, case, entries, threads, ROUNDS, TURN_S)
    cq.set_num_threads(threads)
