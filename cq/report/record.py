"""What a comparison found and how it is shown: as a dictionary, JSON, Markdown or a table for the terminal. Measures
nothing."""

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from .layers import Sensitivity

# How each metric is headed and written; another (a caller's own) goes by its name, in four digits.
METRICS = {
    "perplexity": ("perplexity\n↓", "{:.3f}"),
    "bits_per_token": ("bits per\ntoken ↓", "{:.4f}"),
    "spearman": ("Spearman\n×100 ↑", "{:.2f}"),
    "cosine": ("cosine\n↑", "{:.5f}"),
    "top1": ("top-1\n% ↑", "{:.2%}"),
    "kl": ("KL nats\n↓", "{:.5f}"),
    "flips": ("flips\n% ↓", "{:.2%}"),
}


@dataclass(frozen=True)
class Row:
    """One model of a comparison: float32 or a strategy.

    name: for reading ("static textbook"); strategy: "float32", "weight-only", "dynamic", "static", "qat", "mixed", or
    "file" for a model quantized before; scheme: "default", "textbook", "custom" or "" (float32); choices: the strategy
    in full. file_bytes: its saved checkpoint; weight_bytes: resident weights; latency_s: median seconds for one
    sequence; tokens_per_s: median over a batch; the speed-ups are over float32. accuracy: metric name → value; sqnr_db:
    mean decibels of the outputs against float32's, infinite where they are equal."""

    name: str
    strategy: str
    scheme: str
    choices: str
    file_bytes: int
    weight_bytes: int
    latency_s: float
    latency_speedup: float
    tokens_per_s: float
    throughput_speedup: float
    accuracy: dict[str, float]
    sqnr_db: float


@dataclass(frozen=True)
class Record:
    """What a dataclass of results is as plain data."""

    def to_dict(self) -> dict:
        """Plain JSON types only; NaN and infinite numbers become None."""
        return {field.name: plain(vars(self)[field.name]) for field in fields(self)}

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=1, ensure_ascii=False)


@dataclass(frozen=True)
class Report(Record):
    """float32 (the first row) and every strategy side by side, with what is needed to measure it again.

    metrics: names of the accuracies, the chosen one first. machine: CPU, cores, threads, ISA. data and calibration:
    names of files, number of samples and tokens (calibration is None where nothing was calibrated); of data also "of",
    how many samples there were, where not all were needed. timing: tokens of the one sequence, sequences and tokens of
    the batch, repeats. layers: what each layer alone costs, where that was
    asked for."""

    model: str
    metrics: tuple[str, ...]
    rows: tuple[Row, ...]
    machine: dict
    data: dict
    calibration: dict | None
    timing: dict
    layers: "Sensitivity | None" = None

    def named(self, model: str) -> "Report":
        """The same under this name of the model."""
        return replace(self, model=model, layers=self.layers and replace(self.layers, model=model))

    def to_markdown(self) -> str:
        """A title, the table and a line each about the timing, the data and the machine; then the layers."""
        header, *rows = self._cells()
        return (
            f"### {self.model}\n\n{markdown(header, rows)}\n\n"
            + "  \n".join(self._notes())
            + "\n"
            + (f"\n{self.layers.to_markdown()}" if self.layers else "")
        )

    def table(self) -> Table:
        """The same for the terminal, 80 columns where the numbers allow: a rich renderable."""
        header, *rows = self._cells()
        table = Table(
            title=Text(self.model),
            caption=Text("\n".join(self._notes())),
            caption_justify="left",
            box=box.SIMPLE_HEAD,
            padding=0,
            show_edge=False,
        )
        for i, name in enumerate(header):
            table.add_column(Text(name), justify="right" if i else "left", no_wrap=i > 0, overflow="fold")
        for row in rows:
            table.add_row(*map(Text, row))
        return table

    def _cells(self) -> Iterator[list[str]]:
        """The header, then one line per row."""
        formats = {name: METRICS.get(name, (name, "{:.4g}")) for name in self.metrics}
        yield [
            "",
            "file\nMB",
            "memory\nMB",
            "latency\nms",
            "speed\nup",
            "tokens\nper s",
            "speed\nup",
            *(header for header, _ in formats.values()),
            "SQNR\ndB",
        ]
        for row in self.rows:
            yield [
                row.name,
                f"{row.file_bytes / 1e6:.2f}",
                f"{row.weight_bytes / 1e6:.2f}",
                f"{row.latency_s * 1e3:.2f}",
                f"{row.latency_speedup:.2f}×",
                f"{row.tokens_per_s:,.0f}",
                f"{row.throughput_speedup:.2f}×",
                *(number(form, row.accuracy[name]) for name, (_, form) in formats.items()),
                number("{:.1f}", row.sqnr_db),
            ]

    def _notes(self) -> list[str]:
        timing, machine = self.timing, self.machine
        notes = [
            f"Latency: one sequence of {_count(timing['latency_tokens'], 'token')}; tokens/s: a batch of "
            f"{_count(timing['batch_sequences'], 'sequence')}, {_count(timing['batch_tokens'], 'token')}; medians of "
            f"{_count(timing['repeats'], 'interleaved round')}.",
            "Accuracy: " + described(self.data) + _part(self.data) + ".",
        ]
        if self.calibration:
            notes.append("Static calibrated on " + described(self.calibration) + ".")
        return notes + [
            f"{machine['cpu']}, {_count(machine['cores'], 'core')}, {_count(machine['threads'], 'thread')}, "
            f"{machine['isa']}, cq {machine['version']}."
        ]


def described(samples: dict) -> str:
    """Data in words."""
    text, files = f"{_count(samples['samples'], 'sequence')}, {_count(samples['tokens'], 'token')}", samples["files"]
    if files:
        text += f" of {files[0]}" + (f" and {_count(len(files) - 1, 'more file')}" if files[1:] else "")
    return text


def _part(samples: dict) -> str:
    """How much of the data they are, where that is not all."""
    if "of" not in samples:
        return ""
    return f"; of {samples['of']:,} evenly spread, enough for a standard error of 0.1 % (--full evaluates all)"


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def number(form: str, value: float) -> str:
    """The value as `form` writes it."""
    if math.isfinite(value):
        return form.format(value).replace("%", "")
    return "∞" if value == math.inf else "–"


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A table, its first column to the left."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("\n", " ").replace("|", "\\|") for cell in line) + " |" for line in lines
    )


def plain(value: object) -> object:
    """Nested dictionaries and sequences with every non-finite float replaced by None."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
