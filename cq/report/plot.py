"""A comparison as a picture: accuracy against speed and memory, and each layer's SQNR. Measures nothing."""

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import CqError, UnsupportedError
from .evaluate import LOWER_IS_BETTER
from .layers import Sensitivity
from .record import METRICS, Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SUFFIXES = (".svg", ".png", ".pdf")
_COLOURS = {
    "float32": "black",
    "weight-only": "tab:blue",
    "dynamic": "tab:orange",
    "static": "tab:green",
    "qat": "tab:red",
    "mixed": "tab:purple",
    "file": "tab:brown",
}
_MARKERS = {"": "*", "default": "o", "textbook": "s", "custom": "D"}
_PER_LAYER_INCHES, _NARROWEST_INCHES = 0.2, 9.0


def check_plot(path: str | os.PathLike) -> None:
    """Before the work is done: raises UnsupportedError without matplotlib, CqError where the name ends in no kind of
    picture."""
    if Path(path).suffix not in _SUFFIXES:
        raise CqError(f"{path}: a plot's name must end in {', '.join(_SUFFIXES)}")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UnsupportedError("a plot needs matplotlib, which is not installed: pip install 'cquant[plot]'") from None


def plot(report: Report, path: str | os.PathLike) -> None:
    """Draws `report` into the file `path`, .svg (whose text stays text), .png or .pdf: each row's accuracy (its SQNR
    where it has no metric) against its speed-up in tokens per second and its resident weights, better rows higher; and,
    where the report has layers, the SQNR with each layer alone quantized. Raises what check_plot raises; OSError."""
    check_plot(path)
    import matplotlib
    from matplotlib.figure import Figure

    layers = report.layers.layers if report.layers else ()
    figure = Figure(
        (max(_NARROWEST_INCHES, _PER_LAYER_INCHES * len(layers)), 8.0 if layers else 4.5), layout="constrained"
    )
    grid = figure.add_gridspec(2 if layers else 1, 2)
    speed, memory = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[0, 1])
    title, values = _accuracy(report)
    for row, value in zip(report.rows, values, strict=True):
        if not math.isfinite(value):
            continue
        for axes, x in ((speed, row.throughput_speedup), (memory, row.weight_bytes / 1e6)):
            colour, marker = _COLOURS[row.strategy], _MARKERS[row.scheme]
            axes.plot(x, value, color=colour, marker=marker, linestyle="none", label=row.name)
    for axes, label in ((speed, "speed-up over float32, tokens per second"), (memory, "weights in memory, MB")):
        axes.set_xlabel(label)
        axes.set_ylabel(title)
        axes.set_xlim(left=0)
        axes.grid(alpha=0.3)
        if report.metrics and report.metrics[0] in LOWER_IS_BETTER:
            axes.invert_yaxis()
    memory.legend(fontsize="small")
    if report.layers is not None:
        _draw_layers(figure.add_subplot(grid[1, :]), report.layers)
    figure.suptitle(report.model)
    svg = Path(path).suffix == ".svg"
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "cq"}):  # the same report, the same bytes
        figure.savefig(path, metadata={"Date": None} if svg else None)


def _accuracy(report: Report) -> tuple[str, list[float]]:
    """What the rows are judged by, and each row's value."""
    if not report.metrics:
        return "SQNR dB ↑", [row.sqnr_db for row in report.rows]
    name = report.metrics[0]
    return METRICS.get(name, (name, ""))[0].replace("\n", " "), [row.accuracy[name] for row in report.rows]


def _draw_layers(axes: "Axes", sensitivity: Sensitivity) -> None:
    names = [layer.name for layer in sensitivity.layers]
    for kind in sensitivity.strategies:
        found = [
            (place, layer.alone[kind].sqnr_db) for place, layer in enumerate(sensitivity.layers) if kind in layer.alone
        ]
        axes.plot(*zip(*found), color=_COLOURS[kind], marker="o", markersize=3, linewidth=0.8, label=kind)
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=6)
    axes.set_ylabel("SQNR dB, the layer alone quantized ↑")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
