"""The machine's card: what the numbers were measured on, and with how many threads each library runs. Measures
nothing."""

import ctypes
import datetime
import importlib.util
import json
import os
import subprocess
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PEERS = (
    "numpy",
    "onnxruntime",
    "onnx",
    "openvino",
    "nncf",
    "ctranslate2",
    "torch",
    "transformers",
    "llama-cpp-python",
    "gguf",
    "pytest-benchmark",
)
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS")


def environment(threads: int) -> dict[str, str]:
    """Variables for a new process in which cq, BLAS and torch start with this many threads: BLAS reads its number only
    once, when it is loaded."""
    return dict(os.environ) | {name: str(threads) for name in THREAD_VARIABLES}


def is_held() -> bool:
    """Whether cq runs on fewer instructions than the CPU has."""
    import cq

    found = cq.info()
    return found["isa"] != found["isa_available"][-1]


def saturates() -> bool:
    """Whether the CPU multiplies int8 in int16 alone, where onnxruntime's kernels saturate."""
    import cq

    return not {"avxvnni", "avx512vnni"} & {*cq.info()["isa_available"]}


def card() -> dict:
    """CPU, ISA, compiler and versions; BLAS and its threads; load average and date."""
    import cq

    module = {"llama-cpp-python": "llama_cpp"}
    installed = [name for name in PEERS if importlib.util.find_spec(module.get(name, name.replace("-", "_")))]
    return cq.info() | {
        "cpu_family_model": _cpu_family_model(),
        "numpy_blas": blas(),
        "versions": {name: version(name) for name in installed},
        "commit": _commit(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def blas() -> dict:
    """Name, version and build of NumPy's BLAS, the core it chose its kernels for and its number of threads (where it is
    OpenBLAS; None elsewhere)."""
    import numpy as np

    built = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    return {
        "name": built.get("name"),
        "version": built.get("version"),
        "build": built.get("openblas configuration"),
        "core": _openblas("get_corename", ctypes.c_char_p),
        "threads": _openblas("get_num_threads", ctypes.c_int),
    }


def _openblas(function: str, result):
    """What a function of the OpenBLAS in this process returns, under any of the names that builds give it."""
    maps = Path("/proc/self/maps").read_text().split() if Path("/proc/self/maps").exists() else []
    for path in sorted({word for word in maps if "openblas" in word and word.startswith("/")}):
        library = ctypes.CDLL(path)
        for name in (f"{prefix}openblas_{function}{suffix}" for prefix in ("scipy_", "") for suffix in ("64_", "")):
            if hasattr(library, name):
                call = getattr(library, name)
                call.restype, call.argtypes = result, []
                value = call()
                return value.decode() if isinstance(value, bytes) else value
    return None


def _cpu_family_model() -> str:
    """ "26/2": a virtual machine may hide its CPU's name, but not these."""
    lines = Path("/proc/cpuinfo").read_text().replace("\t", "").splitlines()
    facts = dict(line.split(":", 1) for line in lines if ":" in line)
    return "/".join(facts.get(key, "?").strip() for key in ("cpu family", "model"))


def _commit() -> str | None:
    """Of the working tree, "+" if it was changed."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True).stdout.strip()

    commit = git("rev-parse", "--short=12", "HEAD")
    return commit + ("+" if git("status", "--porcelain", "--", "cq", "src", "bench/*.py") else "") if commit else None


if __name__ == "__main__":
    print(json.dumps(card(), indent=1))
