"""Loads the compiled core, with its resting threads told to sleep soon. Knows nothing else; must be imported first.

libgomp's threads wait for work by spinning some 300,000 turns. Beside them BLAS's own threads, or any busy neighbour, get no
core: measured on two cores, a float32 forward pass took 448 ms instead of 115, and a dynamic one beside two busy processes 528
instead of 54. libgomp reads its setting once, when it is loaded, so the variable exists only for that moment."""
import os
from pathlib import Path

_SETTING, _TURNS = "GOMP_SPINCOUNT", "2000"


def _load() -> None:
    chosen = any(name in os.environ for name in (_SETTING, "OMP_WAIT_POLICY"))
    if not chosen:
        os.environ[_SETTING] = _TURNS
    try:
        from . import _core  # noqa: F401
    except ImportError as error:
        if any(Path(__file__).parent.glob("_core.*.so")):
            raise
        raise ImportError("this is cq's source folder, without the compiled core: start Python elsewhere, or work in it after "
                          "pip install -e .") from error
    finally:
        if not chosen:
            del os.environ[_SETTING]


_load()
