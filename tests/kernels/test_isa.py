"""The same bits from every instruction set, any number of threads and every run; and how CQ_ISA chooses among them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cq import _core

HERE = Path(__file__).parent
ISAS = [name for name in _core.ISAS if name not in _core.ISAS_MISSING]
ALL = ("scalar", "avx2", "avx512bw", "avxvnni", "avx512vnni", "amx")


def python(*arguments, isa: str | None = None, **environment) -> subprocess.CompletedProcess:
    """Runs them in a new process, for as long as pytest's own limit lets the test run, which sanitizers have longer."""
    inherited = {name: value for name, value in os.environ.items() if name != "CQ_ISA"}
    chosen = {} if isa is None else {"CQ_ISA": isa}
    return subprocess.run(
        [sys.executable, *map(str, arguments)], env=inherited | chosen | environment, text=True, capture_output=True
    )


@pytest.mark.parametrize("isa, threads", [(isa, threads) for isa in ISAS for threads in (1, 2, 5)][1:])
def test_same_bits(kernel_bits, isa, threads):
    expected, got = kernel_bits("scalar", 1), kernel_bits(isa, threads)
    assert len(expected) > 5600 and list(got) == list(expected)
    assert not [call for call in expected if got[call] != expected[call]]


def test_same_bits_in_every_run(kernel_bits):
    again = python(HERE / "kernel_worker.py", 2, isa=ISAS[-1])
    assert again.stdout.splitlines()[1::2] == list(kernel_bits(ISAS[-1], 2).values())


def test_every_function_is_compared(kernel_bits):
    names = {call.split()[0] for call in kernel_bits("scalar", 1)}
    covered = names | {
        "linear",
        "attention",
        "multiply",  # by functions.matmul
        "run_pass",  # by the functions of train.passes, and cq.functions
        "aligned",  # memory's
        "get_threads",
        "set_threads",
        "peak",
        "code_form",  # every instruction set has its own
        "keep_freed",
    }
    public = {
        name for name in vars(_core) if name.islower() and not name.startswith("_") and callable(getattr(_core, name))
    }
    assert public <= covered, "a function of the core is missing from kernel_cases.py"


OTHERS = [isa for isa in ISAS if isa != _core.ISA]


def run_again(isa: str, marks: str, *names: str) -> None:
    files = [HERE / f"test_{name}.py" for name in names]
    run = python("-m", "pytest", *files, "-m", marks, "-p", "no:cacheprovider", isa=isa)
    assert run.returncode == 0, f"CQ_ISA={isa}\n{run.stdout[-5000:]}{run.stderr[-2000:]}"


@pytest.mark.parametrize("isa", OTHERS)
def test_other_instruction_sets_compute_right(isa):
    """The tests of products and attention again, whose kernels every instruction set has of its own, in a process that
    is forced to it; under scalar those of rows, codes and epilogues too, whose bits all others have."""
    run_again(
        isa, "not sweep", "gemm", "clipping", "attention", *("rows", "codes", "epilogue", "onnx") * (isa == "scalar")
    )


@pytest.mark.sweep
@pytest.mark.parametrize("isa", OTHERS)
def test_other_instruction_sets_multiply_every_shape(isa):
    run_again(isa, "sweep", "gemm", "clipping")


# --- the choice -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("isa", ISAS)
def test_forced(isa):
    run = python("-c", "import cq; print(cq.info()['isa'], *cq.info()['isa_available'])", isa=isa)
    assert run.stdout.split() == [isa, *ISAS], run.stderr


@pytest.mark.parametrize("isa", [*ISAS, None])
def test_info_says_why(isa):
    run = python("-c", "import cq, json; print(json.dumps(cq.info()))", isa=isa)
    facts = json.loads(run.stdout)
    assert facts["isa_reason"] == (f"CQ_ISA={isa}" if isa else "the fastest of isa_available")
    assert [*facts["isa_available"], *(missing.split()[0] for missing in facts["isa_missing"])] == [
        *ISAS,
        *(name for name in ALL if name not in ISAS),
    ]


@pytest.mark.parametrize("isa", [None, ""])
def test_the_best_is_taken_where_nothing_is_said(isa):
    assert python("-c", "import cq; print(cq.info()['isa'])", isa=isa).stdout.strip() == ISAS[-1]


@pytest.mark.parametrize("isa", ["foo", "AVX2", "avx2 ", "avx512", "scalar,avx2"])
def test_unknown_is_refused(isa):
    run = python("-c", "import cq; print('ran')", isa=isa)
    assert run.returncode == 1 and run.stdout == ""
    last = run.stderr.splitlines()[-1]
    assert "UnsupportedError" in last and f"CQ_ISA={isa!r}" in last and all(name in last for name in ALL)


@pytest.mark.parametrize("isa", [isa for isa in ALL if isa not in ISAS])
def test_missing_is_refused(isa):
    run = python("-c", "import cq; print('ran')", isa=isa)
    assert run.returncode == 1 and run.stdout == ""
    last = run.stderr.splitlines()[-1]
    assert "UnsupportedError" in last and f"CQ_ISA={isa!r}" in last and ", ".join(ISAS) in last


def test_missing_is_refused_on_a_lesser_cpu():
    """valgrind's CPU has no AVX-512, whatever the real one has."""
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        pytest.skip("no valgrind, which plays the lesser CPU")
    run = subprocess.run(
        [valgrind, "--tool=none", "-q", sys.executable, "-c", "import cq._core"],
        text=True,
        env=dict(os.environ, CQ_ISA="avx512vnni"),
        capture_output=True,
    )
    last = run.stderr.splitlines()[-1]
    assert run.returncode == 1 and "UnsupportedError" in last and "this CPU has only scalar" in last
