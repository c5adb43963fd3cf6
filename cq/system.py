"""What cq runs on: instruction set, threads, versions. Knows nothing of models."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from numbers import Integral
from pathlib import Path

from . import _core
from .errors import CqError

MAX_THREADS = 1024
_CHOSEN = os.environ.get("CQ_ISA", "")  # as the core read it


def set_num_threads(n: int) -> None:
    """Sets the number of threads that cq runs on, for the whole process. It changes no bit of any result.

    Args:
        n: 1 to 1,024. The default is `OMP_NUM_THREADS` where that is set, else the number of processors that this
            process may use.

    Raises:
        CqError: `n` is something else.
    """
    if isinstance(n, bool) or not isinstance(n, Integral) or not 1 <= n <= MAX_THREADS:
        raise CqError(f"n: need a whole number of threads from 1 to {MAX_THREADS}, got {n!r}")
    _core.set_threads(int(n))


def info() -> dict:
    """Describes the machine as cq sees it.

    Returns:
        A dictionary: `version`; `isa`, the instruction set in use, and `isa_reason`, why; `isa_available`, all that
        this machine runs, and `isa_missing`, the others and why; `threads`, `cpu`, `cores`, `compiler`, `python`,
        `system`.
    """
    return {
        "version": _version(),
        "isa": _core.ISA,
        "isa_reason": f"CQ_ISA={_CHOSEN}" if _CHOSEN else "the fastest of isa_available",
        "isa_available": [name for name in _core.ISAS if name not in _core.ISAS_MISSING],
        "isa_missing": [f"{name} ({why})" for name, why in _core.ISAS_MISSING.items()],
        "threads": _core.get_threads(),
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "compiler": _core.COMPILER,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def usable_threads() -> int:
    """OMP_NUM_THREADS if set, else the processors that this process may use: affinity, then the cgroup's quota."""
    wanted = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if wanted.isdigit() and int(wanted) > 0:
        return min(int(wanted), MAX_THREADS)
    return max(1, min(len(os.sched_getaffinity(0)), _cgroup_processors(), MAX_THREADS))


def _cgroup_processors() -> int:
    """The processor quota of the control group (version 2, then 1), rounded up; a large number where there is none."""
    for quota, period in (("cpu.max", None), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            parts = Path("/sys/fs/cgroup", quota).read_text().split()
            parts += Path("/sys/fs/cgroup", period).read_text().split() if period else []
            if int(parts[0]) > 0:
                return -(-int(parts[0]) // int(parts[1]))
        except (OSError, ValueError, IndexError):
            continue
    return MAX_THREADS


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def _version() -> str:
    try:
        return version("cquant")
    except PackageNotFoundError:
        return "unknown"


_core.set_threads(usable_threads())
