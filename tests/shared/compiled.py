"""C for tests that reach what Python cannot."""

import shutil
import subprocess
from pathlib import Path


def compiled(folder: Path, text: str, *options: str) -> Path | None:
    """A shared library in `folder`, or None where there is no C compiler. options: what the compiler gets besides."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return None
    source = folder / "source.c"
    source.write_text(text)
    library = source.with_suffix(".so")
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", library, source, *options], check=True)
    return library
