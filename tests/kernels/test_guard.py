"""No byte outside a buffer is read or written: on every instruction set, all calls of kernel_cases.py with each array,
given or new, against a page that no one may touch, once behind it and once before it; and the kernels' own work arrays
likewise. Not proven: accesses inside a work array but beside the part that was meant, in the 64 bytes that a large new
array has for its alignment, and beside arrays on the stack."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from compiled import compiled

from cq import _core

WORKER = Path(__file__).parent / "kernel_worker.py"
ISAS = [name for name in _core.ISAS if name not in _core.ISAS_MISSING]
SHIM = r"""
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
extern void __libc_free(void *);
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct { char *pointer, *region; size_t size; } live[64];
static int count, at_end = 1;

void guard_at_end(int yes) { at_end = yes; }

void *aligned_alloc(size_t alignment, size_t size) {
    const size_t page = 4096, room = (size + page - 1) / page * page;
    char *region = mmap(NULL, room + 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), *pointer;
    memset(region + page, at_end ? 0xff : 0, room);
    mprotect(region, page, PROT_NONE), mprotect(region + page + room, page, PROT_NONE);
    pointer = region + page + (at_end ? (room - size) / alignment * alignment : 0);
    pthread_mutex_lock(&lock);
    int i = 0;
    while (live[i].pointer) i++;
    live[i].pointer = pointer, live[i].region = region, live[i].size = room + 2 * page, count++;
    pthread_mutex_unlock(&lock);
    return pointer;
}

void free(void *pointer) {
    if (pointer && count) {
        pthread_mutex_lock(&lock);
        for (int i = 0; i < 64; i++)
            if (live[i].pointer == pointer) {
                munmap(live[i].region, live[i].size);
                live[i].pointer = NULL, count--, pointer = NULL;
                break;
            }
        pthread_mutex_unlock(&lock);
    }
    __libc_free(pointer);
}
"""


@pytest.fixture(scope="session")
def shim(tmp_path_factory) -> Path | None:
    """A library that puts work arrays (aligned_alloc) between guard pages, where there is a compiler to make it."""
    return compiled(tmp_path_factory.mktemp("shim"), SHIM, "-lpthread")


def work(isa: str, *arguments: str, preload: Path | None = None) -> subprocess.CompletedProcess:
    environment = dict(os.environ, CQ_ISA=isa, OMP_NUM_THREADS="1") | ({"LD_PRELOAD": str(preload)} if preload else {})
    return subprocess.run(
        [sys.executable, "-X", "faulthandler", WORKER, "2", *arguments],
        env=environment,
        text=True,
        capture_output=True,
        timeout=200,
    )


@pytest.mark.parametrize("place, fill", [("end", "255"), ("start", "0")])
@pytest.mark.parametrize("isa", ISAS)
def test_nothing_beside_a_buffer_is_touched(isa, place, fill, shim, kernel_bits):
    """Arguments, results and work arrays end at, or start at, the edge of what may be touched; results and work arrays
    are made of bytes `fill` before."""
    run = work(isa, place, fill, preload=shim)
    lines = run.stdout.splitlines()
    assert run.returncode == 0, (
        f"died with {run.returncode} in {lines[-1] if lines else 'the start'}\n{run.stderr[-3000:]}"
    )
    if shim is not None:
        assert lines.pop(0) == "work arrays are guarded"
    found, expected = dict(zip((line.removeprefix("call ") for line in lines[::2]), lines[1::2])), kernel_bits(isa, 2)
    wrong = [call for call, bits in found.items() if bits != expected[call]]
    assert not wrong, f"results depend on bytes that no one wrote: {wrong[:5]}"
    assert list(found) == list(expected)


@pytest.mark.parametrize("how", ["crash-after", "crash-before"])
def test_guards_catch_one_byte(how):
    run = work(ISAS[-1], how)
    assert run.returncode == -signal.SIGSEGV and run.stdout.startswith(f"call {how}")


def test_guards_catch_one_byte_beside_a_work_array(shim):
    if shim is None:
        pytest.skip("no C compiler: work arrays were not guarded")
    run = work(ISAS[-1], "crash-scratch", preload=shim)
    assert run.returncode == -signal.SIGSEGV and run.stdout.startswith("call crash-scratch")
