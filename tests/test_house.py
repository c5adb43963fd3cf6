"""The house of DESIGN: what lies where, which way the arrows point, who may include what."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOP = {"pyproject.toml", "CMakeLists.txt", "README.md", "LICENSE", "src", "cq", "tests", "bench", ".ci"}
# Each room may import the rooms to its right, and those in its own. "leaf" rooms import only errors and each other's
# data.
MAY_IMPORT = {
    "errors": set(),
    "core": {"_core"},
    "affine": {"errors"},
    "strategies": {"errors"},
    "functions": {"_core"},
    "observers": {"functions", "affine", "errors"},
    "qtensor": {"affine", "errors"},
    "_core": {"errors"},
    "system": {"_core", "errors"},
    "model": {"functions", "qtensor", "affine", "_core", "errors"},
    "coding": {"model", "qtensor", "affine", "_core", "errors"},
    "ops": {"coding", "model", "qtensor", "affine", "_core", "errors"},
    "plan": {"model"},
    "plan_json": {"plan", "model", "strategies", "affine", "errors"},
    "convert": {"plan", "coding", "model", "qtensor", "affine", "_core", "errors"},
    "formats": {"convert", "plan", "plan_json", "model", "strategies", "qtensor", "_core", "errors"},
    "calibrate": {"model", "observers", "errors"},
    "prepare": {"functions", "calibrate", "coding", "model", "observers", "affine", "_core", "errors"},
    "train": {"functions", "formats", "plan", "model", "observers", "strategies", "affine", "_core", "errors"},
    "quantize": {
        "train",
        "prepare",
        "convert",
        "plan",
        "coding",
        "functions",
        "calibrate",
        "observers",
        "model",
        "strategies",
        "affine",
        "_core",
        "errors",
    },
    "report": {"functions", "quantize", "convert", "calibrate", "formats", "model", "strategies", "system", "errors"},
    "cli": {
        "report",
        "quantize",
        "train",
        "prepare",
        "calibrate",
        "formats",
        "model",
        "strategies",
        "system",
        "errors",
    },
}


def tracked() -> list[str]:
    files = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    if files.returncode:
        return [str(p.relative_to(ROOT)) for p in ROOT.rglob("*") if p.is_file() and "build" not in p.parts[:1]]
    return [name for name in files.stdout.splitlines() if (ROOT / name).exists()]


def room(path: Path) -> str:
    return path.relative_to(ROOT / "cq").parts[0].removesuffix(".py").removesuffix(".pyx")


def imports(path: Path) -> set[str]:
    """The rooms of cq that a module imports."""
    package = ("cq", *path.relative_to(ROOT / "cq").parts[:-1])
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {tuple(name.name.split(".")) for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            base += tuple(node.module.split(".")) if node.module else ()
            found |= {base + (name.name,) for name in node.names}
    return {name[1] for name in found if name[0] == "cq" and len(name) > 1}


MODULES = sorted(p for p in (ROOT / "cq").rglob("*.py") if p.name != "__init__.py" or p.parent != ROOT / "cq")


def test_top_level():
    assert {name.split("/")[0] for name in tracked()} <= TOP | {".gitignore"}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_arrows_point_one_way(path):
    own = room(path)
    assert own in MAY_IMPORT, f"{own}: a new room needs its place in the house"
    assert imports(path) - {own} <= MAY_IMPORT[own]


def test_no_arrow_is_left_over():
    used = {}
    for path in MODULES:
        used.setdefault(room(path), set()).update(imports(path))
    assert {
        own: allowed - used[own] for own, allowed in MAY_IMPORT.items() if own in used and allowed - used[own]
    } == {}


def arguments(signature: str) -> list[str]:
    """The names in "linear(x, Packed w, str keep='result') -> object"."""
    inside = signature.partition("(")[2].rpartition(")")[0]
    return [re.split("[=:]", part)[0].split()[-1] for part in inside.split(",") if part.strip()]


def test_the_core_is_as_its_types_say():
    """Every name that cq takes from the core has a type, and every typed function takes the arguments that it says."""
    from cq import _core

    typed = {
        node.name: node
        for node in ast.parse((ROOT / "cq" / "_core.pyi").read_text()).body
        if isinstance(node, (ast.FunctionDef, ast.ClassDef))
    }
    taken = {
        node.attr
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "_core"
    }
    assert taken - {"MAX_K", "PANEL", "COMPILER"} <= typed.keys()
    for name, node in typed.items():
        functions = (
            [node] if isinstance(node, ast.FunctionDef) else [f for f in node.body if isinstance(f, ast.FunctionDef)]
        )
        owner = _core if isinstance(node, ast.FunctionDef) else getattr(_core, name)
        for function in functions:
            if function.decorator_list or function.name.startswith("__"):
                assert hasattr(owner, function.name), f"{name}.{function.name}"
            else:
                signature = getattr(owner, function.name).__doc__.splitlines()[0].replace(" not None", "")
                assert arguments(signature) == [a.arg for a in function.args.args], f"{name}.{function.name}"


def test_every_module_says_what_it_is_for():
    for path in MODULES:
        assert ast.get_docstring(ast.parse(path.read_text())), path
    for path in (ROOT / "src").glob("*.[ch]"):
        assert path.read_text().startswith("/*"), path


def test_c_doors():
    """immintrin.h only in kernels, threads and futexes only in threads.c, CPU detection only in cpu.c, cimport only in
    _core.pyx."""
    sources = {p.name: p.read_text() for p in (ROOT / "src").glob("*.[ch]")}
    assert {name for name, text in sources.items() if "immintrin.h" in text} == {"kernel_avx2.c", "kernel_avx512vnni.c"}
    assert {name for name, text in sources.items() if re.search("omp.h|#pragma omp|pthread|futex", text)} == {
        "threads.c"
    }
    assert {name for name, text in sources.items() if "cpuid.h" in text} == {"cpu.c"}
    assert {name for name, text in sources.items() if "getenv" in text} == {"dispatch.c"}
    for name, text in sources.items():
        assert not re.search(r"\bPython\.h|\bprintf\(|\babort\(|\bexit\(", text), name
    assert {p.name for p in (ROOT / "cq").rglob("*.py*") if p.suffix != ".pyc" and "cimport " in p.read_text()} == {
        "_core.pyx"
    }


def test_drivers_reach_kernels_only_through_dispatch():
    """No driver names an instruction set; no kernel calls a driver."""
    for path in (ROOT / "src").glob("*.c"):
        text = path.read_text()
        if not path.name.startswith(("kernel_", "dispatch", "cpu")):
            assert not re.search(r"_(scalar|avx2|avx512vnni)\b|__m(128|256|512)", text), path
        if path.name.startswith("kernel_"):
            assert '#include "threads.h"' not in text, path


def test_flags():
    build = (ROOT / "CMakeLists.txt").read_text()
    assert "-ffp-contract=off" in build
    assert "-march=native" not in build and "-ffast-math" not in build


def test_mutable_globals():
    """Only the dispatch pointer and the team: every other file-scope variable in C is const."""
    found = set()
    for path in (ROOT / "src").glob("*.c"):
        for line in path.read_text().splitlines():
            if re.match(
                r"(static |_Atomic |volatile )*"
                r"(const cq_kernels \*|cq_team|int|int64_t|float|void|unsigned)\b[^(){}]*;",
                line,
            ):
                found.add(line.split(";")[0].split()[-1].lstrip("*"))
    assert found == {"cq_active", "team"}


def test_run_time_dependencies():
    text = (ROOT / "pyproject.toml").read_text()
    needed = re.search(r"^dependencies = \[(.*?)\]", text, re.S | re.M).group(1)
    assert not re.search("torch|onnx|transformers|scipy", needed)


def test_files_fit_a_sitting():
    for path in [*(ROOT / "src").glob("*.[ch]"), *(ROOT / "cq").rglob("*.py")]:
        lines = path.read_text().splitlines()
        assert len(lines) <= 400, path
        assert max(map(len, lines)) <= (120 if path.suffix == ".py" else 130), path


def test_public_names_have_docstrings():
    import cq

    for name in cq.__all__:
        assert getattr(getattr(cq, name), "__doc__", None), name


def test_sources_without_the_core_say_so(tmp_path):
    shutil.copytree(ROOT / "cq", tmp_path / "cq", ignore=shutil.ignore_patterns("*.so", "data"))
    run = subprocess.run([sys.executable, "-S", "-c", "import cq"], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode and "source folder" in run.stderr and "pip install -e ." in run.stderr
