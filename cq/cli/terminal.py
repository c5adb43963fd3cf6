"""What the command line needs of a terminal: every failure as one sentence, progress, a shape as an argument, a table
of layers. Knows no command."""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from .. import interrupt
from ..door import translated
from ..errors import CqError, one_line
from ..model import Coverage
from ..report.samples import Progress


class Group(click.Group):
    """Turns every failure into one sentence on stderr and an exit code: 1, 2 for bad usage, 130 for Ctrl-C, 143 for
    SIGTERM, after which unfinished files are removed as well."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        interrupt.loaded()
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="replace")  # a terminal without × or … still gets its table
        if standalone_mode and threading.current_thread() is threading.main_thread():  # no other may set it
            signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
        try:
            code: Any = super().main(
                args, prog_name, complete_var, standalone_mode=False, windows_expand_args=windows_expand_args, **extra
            )
        except click.exceptions.NoArgsIsHelpError as error:
            click.echo(error.format_message(), err=True)
            code = 2
        except click.ClickException as error:
            code = fail(error.format_message(), error.exit_code)
        except (CqError, MemoryError) as error:
            code = fail(str(error) or "not enough memory")
        except OSError as error:
            code = fail(f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error))
        except (click.Abort, KeyboardInterrupt):
            code = fail("interrupted", 130)
        except Exception as error:
            code = fail(str(translated(error, f"unexpected {type(error).__name__}")))
        if not standalone_mode:
            return code
        sys.exit(code if isinstance(code, int) else 0)


def fail(message: str, code: int = 1) -> int:
    click.echo("cq: " + one_line(" ".join(message.split())), err=True)
    return code


class Shape(click.ParamType):
    """SEQUENCESxLENGTH, as in 8x128."""

    name = "shape"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        parts = value.lower().replace("×", "x").split("x")
        if len(parts) != 2 or not all(part.isdecimal() and int(part) for part in parts):
            self.fail(f"wanted SEQUENCESxLENGTH, like 8x128, got {value!r}", param, ctx)
        return int(parts[0]), int(parts[1])


def console() -> Console:
    """For results: as wide as the terminal, wide enough for any table where there is none."""
    return Console(width=None if sys.stdout.isatty() else 160, markup=False, highlight=False, emoji=False)


@contextlib.contextmanager
def progress(hidden: bool = False) -> Iterator[Progress]:
    """A function (what, done, total) that draws one bar per kind of work, on stderr where that is a terminal."""
    columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    hidden = hidden or not sys.stderr.isatty()
    with Bars(*columns, console=Console(stderr=True), transient=True, disable=hidden) as bars:
        tasks = {}

        def show(what: str, done: int, total: int | None) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield show


def placements(coverage: Coverage, headroom: dict[str, float] | None = None) -> Table:
    """Where each part runs: shape (in, out), bytes, share of the multiply-adds, bits by which int32 is larger than any
    of its sums, and why one stayed in float32."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    names = ["layer", "runs in", "shape", "bytes", "mult-adds"] + ["headroom"] * bool(headroom) + ["why"]
    for name in names:
        table.add_column(name, justify="left" if name in ("layer", "runs in", "why") else "right", overflow="fold")
    for place in coverage:
        cells = [
            place.name,
            place.runs_in,
            " × ".join(map(str, place.shape or ())),
            f"{place.nbytes:,}" * bool(place.nbytes),
            f"{place.multiply_adds / coverage.multiply_adds:.2%}" * bool(place.multiply_adds),
        ]
        if headroom:
            cells.append(f"{headroom[place.name]:.1f} bits" if place.name in headroom else "")
        table.add_row(*map(Text, (*cells, place.reason)))
    return table
