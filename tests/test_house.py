"""The house of DESIGN: what lies where, which way the arrows point, who may include what."""

import ast
import re
import shutil
import subprocess
import sys
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOP = {
    "pyproject.toml",
    "CMakeLists.txt",
    "README.md",
    "LICENSE",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "mkdocs.yml",
    "src",
    "cq",
    "tests",
    "bench",
    "docs",
    "examples",
    ".ci",
}
# A room imports rooms above it here, those named, and its own.
MAY_IMPORT = {
    "interrupt": set(),
    "errors": set(),
    "memory": set(),
    "door": {"errors"},
    "_core": {"errors", "memory"},
    "core": {"_core"},
    "weights": {"errors", "_core"},
    "affine": {"errors"},
    "strategies": {"errors"},
    "qtensor": {"errors", "affine"},
    "functions": {"errors", "_core"},
    "system": {"errors", "_core"},
    "observers": {"errors", "affine", "functions"},
    "model": {"errors", "memory", "door", "_core", "weights", "affine", "qtensor", "functions"},
    "coding": {"errors", "_core", "weights", "affine", "qtensor", "model"},
    "ops": {"errors", "_core", "weights", "affine", "qtensor", "model", "coding"},
    "plan": {"strategies", "model"},
    "plan_json": {"errors", "affine", "strategies", "model", "plan"},
    "convert": {"errors", "weights", "affine", "qtensor", "model", "coding", "plan"},
    "formats": {
        "errors",
        "door",
        "_core",
        "weights",
        "affine",
        "strategies",
        "qtensor",
        "model",
        "plan",
        "plan_json",
        "convert",
    },
    "calibrate": {"errors", "observers", "model"},
    "prepare": {
        "errors",
        "_core",
        "weights",
        "affine",
        "functions",
        "observers",
        "qtensor",
        "model",
        "coding",
        "calibrate",
    },
    "train": {
        "errors",
        "door",
        "_core",
        "weights",
        "affine",
        "strategies",
        "functions",
        "observers",
        "model",
        "plan",
        "formats",
    },
    "quantize": {
        "errors",
        "_core",
        "affine",
        "strategies",
        "functions",
        "observers",
        "model",
        "coding",
        "plan",
        "convert",
        "calibrate",
        "prepare",
        "train",
    },
    "report": {
        "errors",
        "door",
        "_core",
        "strategies",
        "functions",
        "system",
        "model",
        "convert",
        "formats",
        "calibrate",
        "quantize",
    },
    "cli": {
        "interrupt",
        "errors",
        "door",
        "strategies",
        "system",
        "model",
        "formats",
        "calibrate",
        "prepare",
        "train",
        "quantize",
        "report",
    },
}


def tracked() -> list[str]:
    files = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    if files.returncode:
        return [str(p.relative_to(ROOT)) for p in ROOT.rglob("*") if p.is_file() and "build" not in p.parts[:1]]
    return [name for name in files.stdout.splitlines() if (ROOT / name).exists()]


def room(path: Path) -> str:
    first = path.relative_to(ROOT / "cq").parts[0].removesuffix(".py").removesuffix(".pyx")
    return "cli" if first == "__main__" else first


def imports(path: Path) -> set[str]:
    """The rooms of cq that a module imports; what only type checkers see is left out."""
    package = ("cq", *path.relative_to(ROOT / "cq").parts[:-1])
    tree, found = ast.parse(path.read_text()), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {tuple(name.name.split(".")) for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            base += tuple(node.module.split(".")) if node.module else ()
            found |= {base + (name.name,) for name in node.names}
    return {name[1] for name in found if name[0] == "cq" and len(name) > 1}


CORE = [ROOT / "cq" / "_core.pyx", ROOT / "cq" / "_core.pxd", *sorted((ROOT / "cq" / "bindings").glob("*.pxi"))]
MODULES = sorted(p for p in (ROOT / "cq").rglob("*.py") if p.name != "__init__.py" or p.parent != ROOT / "cq")


def test_top_level():
    assert {name.split("/")[0] for name in tracked()} <= TOP | {
        ".gitignore",
        ".clang-format",
        ".pre-commit-config.yaml",
    }


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_arrows_point_one_way(path):
    own = room(path)
    assert own in MAY_IMPORT, f"{own}: a new room needs its place in the house"
    assert imports(path) - {own} <= MAY_IMPORT[own]


def test_no_arrow_points_down():
    rooms = list(MAY_IMPORT)
    for place, (own, allowed) in enumerate(MAY_IMPORT.items()):
        assert allowed <= set(rooms[:place]), own


def test_no_arrow_is_left_over():
    used = {}
    for path in MODULES:
        used.setdefault(room(path), set()).update(imports(path))
    assert {
        own: allowed - used[own] for own, allowed in MAY_IMPORT.items() if own in used and allowed - used[own]
    } == {}


def arguments(signature: str) -> list[str]:
    """The names in "def __init__(self, Packed w, str keep='result'):"."""
    inside = signature.partition("(")[2].rpartition(")")[0]
    return [re.split("[=:]", part)[0].split()[-1] for part in inside.split(",") if part.strip()]


def test_constructors_of_the_core_are_as_its_types_say():
    """Those that Cython's classes do not show, by the source; all else .ci/check compares with the compiled core."""
    stub = {
        node.name: node
        for node in ast.parse((ROOT / "cq" / "_core.pyi").read_text()).body
        if isinstance(node, ast.ClassDef)
    }
    source = "".join(path.read_text() for path in CORE)
    for name, body in re.findall(r"^cdef class (\w+).*?:\n(.*?)(?=^\S)", source, re.S | re.M):
        made = re.search(r"def (__c?init__\(self.*?\)):", body, re.S)
        typed = [f for f in stub[name].body if isinstance(f, ast.FunctionDef) and f.name in ("__init__", "__new__")]
        assert (arguments(made.group(1))[1:] if made else []) == [a.arg for f in typed for a in f.args.args[1:]], name


def test_forms_are_told_apart_by_kind():
    """No length of a tuple says what a form is; equal fields do not make two kinds equal."""
    from cq.model import forms

    for path in [*MODULES, *CORE]:
        assert not re.search(r"\blen\((\w*form|coding)\)", path.read_text()), path
    kinds = [forms.PerToken, forms.PerHead, forms.PerTensor, forms.Fixed, forms.Smoothed]
    assert len({kind.kind for kind in kinds}) == len(kinds)
    assert forms.PerToken("int8", True) == forms.PerToken("int8", True) != forms.PerTensor("int8", True)
    assert len({forms.PerToken("int8", True), forms.PerTensor("int8", True), forms.PerToken("int8", True)}) == 2


def test_no_conditional_expression_inside_another():
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.IfExp):
                inside = [n for part in ast.iter_child_nodes(node) for n in ast.walk(part) if isinstance(n, ast.IfExp)]
                assert not inside, f"{path}:{node.lineno}: {ast.unparse(node)}"


def test_every_module_says_what_it_is_for():
    for path in MODULES:
        assert ast.get_docstring(ast.parse(path.read_text())), path
    for path in (ROOT / "src").glob("*.[ch]"):
        assert path.read_text().startswith("/*"), path


def test_comments_name_files_that_there_are():
    """Comments and docstrings send readers to files by name, or by a pattern."""
    sources = [*(ROOT / "src").glob("*.[ch]")]
    there = {"/" + name for name in tracked()}
    there |= {"/" + name for path in sources for name in re.findall(r"#include <(.*)>", path.read_text())}
    pages = [ROOT / "CONTRIBUTING.md", ROOT / "src" / "README.md"]
    for path in [*MODULES, *CORE, *sources, *pages]:
        for word in re.findall(r"(?<![^\s(\"'`])[\w*/-]+\.(?:py|pyx|pxd|pxi|c|h|md)\b", said_in(path)):
            assert any(fnmatchcase(name, f"*/{word}") for name in there), f"{path}: {word}"


def said_in(path: Path) -> str:
    """The comments and docstrings of a source, or all of a page."""
    text = path.read_text()
    if path.suffix == ".md":
        return text
    if path.suffix in (".c", ".h"):
        return "\n".join(re.findall(r"/\*.*?\*/", text, re.S))
    return "\n".join(re.findall(r'"""(?:.|\n)*?"""|# .*', text))


def test_c_doors():
    """immintrin.h only in kernels, threads and futexes only in threads.c, CPU detection only in cpu.c, cimport only in
    the core."""
    sources = {p.name: p.read_text() for p in (ROOT / "src").glob("*.[ch]")}
    kernels = {f"kernel_{isa}.c" for isa in ("avx2", "avx512bw", "avxvnni", "avx512vnni")}  # AMX is assembly
    assert {name for name, text in sources.items() if "immintrin.h" in text} == kernels
    assert {name for name, text in sources.items() if re.search("omp.h|#pragma omp|pthread|futex", text)} == {
        "threads.c"
    }
    assert {name for name, text in sources.items() if "cpuid.h" in text} == {"cpu.c"}
    assert {name for name, text in sources.items() if "getenv" in text} == {"dispatch.c"}
    for name, text in sources.items():
        assert not re.search(r"\bPython\.h|\bprintf\(|\babort\(|\bexit\(", text), name
    assert {p.name for p in [*MODULES, *CORE] if "cimport " in p.read_text()} == {"_core.pyx", "_core.pxd"}
    assert {p.name for p in (ROOT / "cq").rglob("*.p[xy][dix]")} == {p.name for p in CORE} | {"_core.pyi"}


def test_drivers_reach_kernels_only_through_dispatch():
    """No driver names an instruction set; no kernel calls a driver."""
    for path in (ROOT / "src").glob("*.c"):
        text = path.read_text()
        if not path.name.startswith(("kernel_", "dispatch", "cpu")):
            assert not re.search(
                r"_(scalar|avx2|avx512bw|avxvnni(_vex|_evex)?|avx512vnni|amx)\b|__m(128|256|512)", text
            ), path
        if path.name.startswith("kernel_"):
            assert '#include "threads.h"' not in text, path


def test_flags():
    build = (ROOT / "CMakeLists.txt").read_text()
    assert "-ffp-contract=off" in build
    assert "-march=native" not in build and "-ffast-math" not in build


def test_mutable_globals():
    """Only the chosen table of kernels and the team: every other file-scope variable in C is const."""
    found = set()
    for path in (ROOT / "src").glob("*.c"):
        for line in path.read_text().splitlines():
            if re.match(
                r"(static |_Atomic |volatile )*"
                r"(cq_kernels|cq_team|int|int64_t|float|void|unsigned)\b[^(){}]*;",
                line,
            ):
                found.add(line.split(";")[0].split()[-1].lstrip("*"))
    assert found == {"chosen", "team"}


def test_run_time_dependencies():
    text = (ROOT / "pyproject.toml").read_text()
    needed = re.search(r"^dependencies = \[(.*?)\]", text, re.S | re.M).group(1)
    assert not re.search("torch|onnx|transformers|scipy", needed)


def test_files_fit_a_sitting():
    files = [*(ROOT / "src").glob("*.[ch]"), *(ROOT / "cq").rglob("*.py"), *CORE, ROOT / "cq" / "_core.pyi"]
    for path in [*files, *(ROOT / "bench").rglob("*.py")]:
        lines = path.read_text().splitlines()
        assert len(lines) <= 400, path
        assert max(map(len, lines)) <= 120, path


def test_the_door_to_c_stays_short():
    assert sum(len(path.read_text().splitlines()) for path in CORE if path.suffix != ".pxd") < 800


def test_public_names_have_docstrings():
    import cq

    for name in cq.__all__:
        assert getattr(getattr(cq, name), "__doc__", None), name


def test_sources_without_the_core_say_so(tmp_path):
    shutil.copytree(ROOT / "cq", tmp_path / "cq", ignore=shutil.ignore_patterns("*.so", "data"))
    run = subprocess.run([sys.executable, "-S", "-c", "import cq"], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode and "source folder" in run.stderr and "pip install -e ." in run.stderr
