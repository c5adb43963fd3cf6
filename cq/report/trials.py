"""The record of a search for a mix: what was measured so far, in a JSON file that is whole after every step, and how it
is shown. Measures nothing."""

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from rich import box
from rich.table import Table
from rich.text import Text

from ..errors import CqError, FormatError
from ..formats.files import write_whole
from ..formats.untrusted import as_file, as_name, parse_json
from ..strategies import Mixed, from_dict
from .record import METRICS, number

VERSION = 1


@dataclass(frozen=True)
class Trial:
    """One candidate, measured whole. loss: of the metric beside float32, in the metric's units, positive is worse
    (infinite where it has no value); time: of a pass, over the reference strategy's, both timed in turns."""

    strategy: Mixed
    loss: float
    time: float

    def to_dict(self) -> dict:
        return {
            "strategy": self.strategy.to_dict(),
            "loss": self.loss if math.isfinite(self.loss) else None,
            "time": self.time,
        }

    @classmethod
    def from_dict(cls, values: dict) -> "Trial":
        loss = math.inf if values["loss"] is None else float(values["loss"])
        strategy = from_dict(values["strategy"])
        if not isinstance(strategy, Mixed):
            raise ValueError(f"a trial of {strategy.name}, which is no mix")
        return cls(strategy, loss, float(values["time"]))


@dataclass(frozen=True)
class Mix:
    """What cq.mix found. strategy: what cq.quantize takes; best: its trial; trials: all, in order, those without a
    place in the budget too. metric, float32: its name and its value without quantization; reference: the strategy whose
    time is 1."""

    metric: str
    float32: float
    budget: float
    reference: str
    best: Trial
    trials: tuple[Trial, ...]

    @property
    def strategy(self) -> Mixed:
        return self.best.strategy

    def table(self) -> Table:
        """The trials for the terminal: a rich renderable."""
        heading, form = METRICS.get(self.metric, (self.metric, "{:.4g}"))
        caption = f"Budget: {self.budget:g} of {heading.splitlines()[0]}; float32 has {form.format(self.float32)}. "
        table = Table(
            title=Text("Trials"),
            caption=Text(caption + f"Speed: of a batch, over all {self.reference}."),
            caption_justify="left",
            box=box.SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
            show_edge=False,
        )
        for i, name in enumerate(("", f"loss\n{heading.splitlines()[0]}", "speed", "layers")):
            table.add_column(Text(name), justify="right" if i in (1, 2) else "left", overflow="fold")
        for trial in self.trials:
            mark = "" if trial.loss <= self.budget else "over budget"
            table.add_row(
                "best" if trial == self.best else mark,
                number(form.replace(":", ":+"), trial.loss),
                f"{1 / trial.time:.3f}×",
                Text(in_words(trial.strategy)),
            )
        return table


def in_words(strategy: Mixed) -> str:
    """The mix in a line: "layers.1.ffn.down: dynamic; *: static"."""
    return "; ".join(f"{pattern}: {part.name if part else 'float32'}" for pattern, part in strategy.choices)


class _Record(TypedDict):
    """What the file of a search holds."""

    subject: dict
    best: Trial | None
    values: dict[str, float]
    trials: list[Trial]


class Search:
    """Measurements by name, kept in the file `path` (None: only here). subject: what they hold for; a file of another
    subject is refused with CqError, and one that is no record of a search with FormatError. budget: of the best so
    far."""

    def __init__(self, path: str | os.PathLike | None, subject: dict, budget: float):
        subject = json.loads(json.dumps(subject))  # as it comes back from a file
        self.path, self.subject, self.budget = None if path is None else as_name(path), subject, budget
        self.values: dict[str, float] = {}
        self.trials: list[Trial] = []
        if self.path is None or not self.path.exists():
            return
        record = _read(self.path)
        other = [key for key in subject if record["subject"].get(key) != subject[key]]
        if other:
            raise CqError(
                f"{self.path} is the record of another search (its {', '.join(other)} differ); name another file or "
                "delete it"
            )
        self.values, self.trials = record["values"], record["trials"]

    def value(self, name: str, measure: Callable[[], float]) -> float:
        """The measurement of that name, made where it is not known."""
        if name not in self.values:
            self.values[name] = float(measure())
            self._save()
        return self.values[name]

    def trial(self, strategy: Mixed, measure: Callable[[], tuple[float, float]]) -> Trial:
        """The trial of that candidate; measure() gives (loss, time) where there was none."""
        for trial in self.trials:
            if trial.strategy == strategy:
                return trial
        self.trials.append(Trial(strategy, *measure()))
        self._save()
        return self.trials[-1]

    def best(self) -> Trial | None:
        """The fastest within the budget; of equally fast ones the more accurate."""
        return min((t for t in self.trials if t.loss <= self.budget), key=lambda t: (t.time, t.loss), default=None)

    def _save(self) -> None:
        if self.path is None:
            return
        best = self.best()
        record = {
            "version": VERSION,
            "subject": self.subject,
            "budget": self.budget,
            "best": best and best.to_dict(),
            "values": self.values,
            "trials": [trial.to_dict() for trial in self.trials],
        }
        write_whole(self.path, (json.dumps(record, indent=1) + "\n").encode())


def best_of(path: str | os.PathLike) -> Mixed:
    """The best mix that a search's file holds. Raises FormatError, FileNotFoundError; CqError where there is none
    yet."""
    best = _read(as_file(path))["best"]
    if best is None:
        raise CqError(f"{path}: the search has found no mix within its budget yet; let it go on")
    return best.strategy


def _read(path: Path) -> _Record:
    record = parse_json(path.read_bytes(), str(path), dict)
    try:
        if record["version"] != VERSION:
            raise FormatError(f"{path}: record of a search of version {record['version']!r}, this cq reads {VERSION}")
        return {
            "subject": dict(record["subject"]),
            "best": None if record["best"] is None else Trial.from_dict(record["best"]),
            "values": {str(key): float(value) for key, value in record["values"].items()},
            "trials": [Trial.from_dict(trial) for trial in record["trials"]],
        }
    except FormatError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise FormatError(f"{path}: not the record of a search for a mix ({type(error).__name__}: {error})") from None
