"""Teams, forks, Python's threads and the import: none of them hangs, changes a bit of a result, or leaves a trace
outside."""

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import cq
from cq import _core

# Python warns of every fork of a process with threads from 3.12 on; that cq's team survives one is what is tested here.
QUIET_FORK = "-Wignore:This process:DeprecationWarning"


def python(code: str, **environment: str | None) -> subprocess.CompletedProcess:
    """Runs a script in a new process, for as long as pytest lets the test run; None takes a variable away."""
    inherited = {
        name: value for name, value in os.environ.items() if name not in environment and not name.startswith("OMP_")
    }
    given = {name: value for name, value in environment.items() if value is not None}
    command = [sys.executable, QUIET_FORK, "-c", code]
    return subprocess.run(command, env=inherited | given, text=True, capture_output=True)


def output(code: str, **environment: str | None) -> str:
    run = python(code, **environment)
    assert run.returncode == 0 and not run.stderr, run.stderr
    return run.stdout.removesuffix("\n")


WORK = """
import os, sys, threading
import numpy as np
import cq
from cq import _core
from cq.model.forms import PerHead, PerToken
from cq.model.norm import Norm
rng = np.random.default_rng(0)
x, w = rng.standard_normal((200, 64), np.float32), cq.pack(cq.quantize_tensor(rng.standard_normal((64, 198))))
def work():  # every driver, large enough for a team
    q, norm = _core.quantize(x, PerToken("uint8", False)), Norm(np.ones(198, np.float32), None, 1e-5, False)
    y = _core.linear(q, w, activation="gelu") + cq.linear(x, w)
    results = []
    for form in (None, PerHead("int8", True, 11)):  # few rows and many: two ways to share them out
        for m in (33, 200):
            qkv, _ = _core.linear(x[:m].copy(), w, form=form, norm=norm, keep="sum", coding=PerToken("uint8", False))
            results.append(_core.attention(qkv, np.int32([0, 25, m]), 6, 6, False, 0.1).tobytes())
    return _core.norm(y, norm)[0].tobytes() + b"".join(results)
"""


# --- forks ------------------------------------------------------------------------------------------------------------

FORK = (
    WORK
    + """
cq.set_num_threads(THREADS)
before = work()
child = os.fork()
if child == 0:
    same = all(work() == before for _ in range(3))
    grandchild = os.fork()
    if grandchild == 0:
        os._exit(0 if work() == before else 2)
    os._exit(0 if same and os.waitpid(grandchild, 0)[1] == 0 else 1)
assert work() == before  # the parent's team goes on
print(os.waitpid(child, 0)[1])
"""
)


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_a_forked_child_computes(threads):
    """The parent's team does not exist in the child; nobody would answer."""
    assert output(FORK.replace("THREADS", str(threads))) == "0"


def test_a_child_forked_from_another_thread_in_the_middle_of_work_computes():
    code = (
        WORK
        + """
cq.set_num_threads(2)
before, stop = work(), threading.Event()
def run():
    while not stop.is_set(): work()
busy = threading.Thread(target=run)
busy.start()
for _ in range(5):
    child = os.fork()
    if child == 0:
        os._exit(0 if work() == before else 1)
    assert os.waitpid(child, 0)[1] == 0
stop.set(), busy.join()
print("done")
"""
    )
    assert output(code) == "done"


def test_multiprocessing_by_fork():
    code = (
        WORK
        + """
import multiprocessing
def job(_): return work()
before = work()
with multiprocessing.get_context("fork").Pool(2) as pool:
    print(all(y == before for y in pool.map(job, range(4))))
"""
    )
    assert output(code, OMP_NUM_THREADS="2") == "True"


# --- Python's threads -------------------------------------------------------------------------------------------------


@pytest.fixture
def team():
    """Sets the size of the team, for one test."""
    before = cq.info()["threads"]
    yield cq.set_num_threads
    cq.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 2])
def test_calls_from_many_threads_at_once(threads, team):
    team(threads)
    space = {}
    exec(WORK, space)
    expected = space["work"]()
    with ThreadPoolExecutor(4) as pool:
        assert all(result == expected for result in pool.map(lambda _: space["work"](), range(60)))


def test_the_size_of_the_team_may_change_meanwhile(team):
    space = {}
    exec(WORK, space)
    expected = space["work"]()
    with ThreadPoolExecutor(3) as pool:
        results = [pool.submit(space["work"]) for _ in range(40)]
        for i in range(200):
            team(1 + i % 3)
        assert all(result.result() == expected for result in results)


def test_the_lock_of_python_is_free_during_a_call(team):
    """A thread that ticks goes on ticking while another is inside one call. If the lock were held, it could not tick at
    all, however long the call. A busy machine may keep it from ticking for a while, so calls become longer until it has
    ticked."""
    team(1)
    rng = np.random.default_rng(0)
    w = cq.pack(rng.integers(-127, 128, (1024, 1024)).astype(np.int8))
    done, ticks = threading.Event(), []

    def tick():
        while not done.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.001)

    ticking = threading.Thread(target=tick)
    ticking.start()
    try:
        for rows in (2**n for n in range(8, 16)):
            x = _core.Coded(rng.integers(0, 256, (rows, 1024)).astype(np.uint8), 1.0, 0)
            begin = time.perf_counter()
            _core.matmul_integer(x, w)
            end = time.perf_counter()
            inside = sum(begin < at < end for at in ticks)
            if inside >= 10:
                return
    finally:
        done.set(), ticking.join()
    pytest.fail(f"{inside} ticks in a call of {end - begin:.3f} seconds")


# --- the team's size --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [0, -1, 1025, 10**30, 1.0, 2.5, "2", None, True, [2], np.float32(2)])
def test_no_number_of_threads(n):
    before = cq.info()["threads"]
    with pytest.raises(cq.CqError, match="^n: need a whole number of threads from 1 to 1024"):
        cq.set_num_threads(n)
    assert cq.info()["threads"] == before


def test_the_number_of_threads_is_kept(team):
    for n in (1, 2, 1024):
        team(n)
        assert cq.info()["threads"] == n


@pytest.mark.parametrize(
    "value, expected",
    [("1", "1"), ("3", "3"), ("4,2", "4"), ("", None), ("many", None), ("0", None), (None, None), ("5000", "1024")],
)
def test_the_default_obeys_the_environment(value, expected):
    got = python("import cq; print(cq.info()['threads'])", OMP_NUM_THREADS=value).stdout.strip()
    assert got == expected if expected else 1 <= int(got) <= len(os.sched_getaffinity(0))


def test_the_default_obeys_the_affinity():
    one = min(os.sched_getaffinity(0))
    code = f"import os; os.sched_setaffinity(0, [{one}]); import cq; print(cq.info()['threads'])"
    assert output(code, OMP_NUM_THREADS=None) == "1"


def test_a_helper_that_gets_no_core_holds_nobody():
    """Three threads on one core: a call on two threads takes little longer than on one, since it waits for no helper
    that has not begun. Other programs disturb some of the five comparisons; a call that waits loses them all."""
    code = (
        WORK
        + """
import statistics, subprocess, sys, time
os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
try:
    for _ in range(5):
        spent = {1: [], 2: []}
        for n in (1, 2) * 4:
            cq.set_num_threads(n)
            start = time.perf_counter()
            for _ in range(5): work()
            spent[n].append(time.perf_counter() - start)
        one, two = (statistics.median(spent[n]) for n in (1, 2))
        if two < 2 * one: break
    print(two < 2 * one, one, two)
finally:
    busy.kill()
"""
    )
    assert output(code).startswith("True")


def test_one_call_has_the_team_at_a_time(team):
    """Others run alone meanwhile: no more threads than were asked for, whoever calls."""
    code = (
        WORK
        + """
cq.set_num_threads(3)
expected = work()
def run(): assert work() == expected
callers = [threading.Thread(target=run) for _ in range(8)]
for caller in callers: caller.start()
for caller in callers: caller.join()
import time
for _ in range(5000):  # a thread that has ended is listed for a moment
    threads = len(os.listdir("/proc/self/task"))
    if threads == 3: break
    time.sleep(0.01)
print(threads)
"""
    )
    assert output(code, OPENBLAS_NUM_THREADS="1") == "3"


def test_more_threads_than_rows_or_processors(team):
    space = {}
    exec(WORK, space)
    expected = space["work"]()
    team(24)
    assert space["work"]() == expected


# --- the import -------------------------------------------------------------------------------------------------------

IMPORT = """
import os, sys, threading
import numpy as np
def state():
    tiny = np.float32([1e-45, 1e-40]) * np.float32(1)
    threads = threading.active_count(), len(os.listdir("/proc/self/task"))
    return dict(os.environ), np.geterr(), tiny.tolist(), (tiny + tiny).tolist(), threads
# what cq stands on
import json, pathlib, platform, importlib.metadata, safetensors.numpy, tokenizers, rich.console, click
before = state()
import cq
after = state()
names = ("environment", "NumPy's errors", "denormals", "sums of denormals", "threads")
for name, a, b in zip(names, before, after):
    if a != b: print(name, a, b)
"""


def test_the_import_leaves_no_trace():
    """Nothing printed; the same environment, floating-point mode and threads."""
    run = python(IMPORT)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def test_the_environment_of_later_processes_is_unchanged():
    """os.environ could look unchanged while the C library's own differs."""
    code = (
        "import subprocess; a = subprocess.check_output('env'); import cq; print(a == subprocess.check_output('env'))"
    )
    assert output(code) == "True"


def test_denormals_live_through_a_call():
    code = WORK + "work(); a = np.float32([1e-45]); print((a * np.float32(1))[0] != 0 and float(a[0] + a[0]) > 0)"
    assert output(code, OMP_NUM_THREADS="2") == "True"


@pytest.mark.parametrize("mode", ["0x8040", "0x6000"])
def test_kernels_work_in_the_mode_they_find(mode):
    """Another library may have set flush-to-zero or a rounding mode on this thread: a call leaves it so."""
    code = (
        WORK
        + f"""
import ctypes, ctypes.util
libm = ctypes.CDLL(ctypes.util.find_library("m"))
environment = (ctypes.c_uint32 * 8)()
libm.fegetenv(environment); environment[7] |= {mode}; libm.fesetenv(environment)
work()
libm.fegetenv(environment)
print(environment[7] & {mode} == {mode})
"""
    )
    assert output(code) == "True"
