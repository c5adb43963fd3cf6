"""What each layer of a model costs when it alone is quantized, and how that is shown: JSON, Markdown, a table and
sentences. Measures nothing."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from .record import METRICS, Record, described, markdown, number

_A_SCREEN, _TOLD = 10, 5  # layers of the table, and sentences below it, of a short answer


@dataclass(frozen=True)
class Alone:
    """One layer under one strategy while all others are float32. sqnr_db and cosine: of the model's outputs (cosine: of
    the embeddings, where it pools) against float32's; accuracy: metric name → value; share: of the noise that all
    layers' own add up to under this strategy, 0 … 1 (of attention's scores: what they add to their query's, key's and
    value's)."""

    sqnr_db: float
    cosine: float
    accuracy: dict[str, float]
    share: float = 0.0


@dataclass(frozen=True)
class Layer:
    """alone: name of a strategy → Alone. clipped: share of the input's values that the static range cuts; unused_codes:
    of its 256 or 255, those that no value of the data takes (both None without static). outliers: (input channel, how
    many times the median channel's largest magnitude its own is), the largest first. unused_weight_codes: those of the
    narrowest strategy's weights; weight_spread: the largest magnitude of the widest output channel over that of the
    median one. help: what would lessen the noise, empty where there is little to gain."""

    name: str
    alone: dict[str, Alone]
    clipped: float | None = None
    unused_codes: int | None = None
    outliers: tuple[tuple[int, float], ...] = ()
    unused_weight_codes: int | None = None
    weight_spread: float | None = None
    help: tuple[str, ...] = ()

    def explained(self) -> str:
        """In words."""
        last = list(self.alone)[-1]
        facts = [f"{self.alone[last].share:.1%} of {last}'s noise"]
        if self.clipped is not None:
            facts.append(f"{_percent(self.clipped)} of its input clipped, {self.unused_codes} of 256 codes unused")
        if self.outliers:
            facts.append(
                "outlier channels "
                + ", ".join(f"{channel} ({times:.0f}× the median)" for channel, times in self.outliers)
            )
        if self.unused_weight_codes:
            facts.append(f"{self.unused_weight_codes} of 255 weight codes unused")
        if self.weight_spread is not None:
            facts.append(f"widest weight channel {self.weight_spread:.1f}× the median")
        helps = "would help: " + ", or ".join(self.help) if self.help else "fine as it is"
        return f"{self.name}: {'; '.join([*facts, helps])}"


@dataclass(frozen=True)
class Sensitivity(Record):
    """Every layer alone, in the order of work. metrics: names of the accuracies; float32: their values without
    quantization; strategies: name → the strategy in full; data and calibration: as in a comparison's Report."""

    model: str
    metrics: tuple[str, ...]
    float32: dict[str, float]
    strategies: dict[str, str]
    layers: tuple[Layer, ...]
    data: dict
    calibration: dict | None

    def to_markdown(self) -> str:
        """A title, the table, a line about the data, and a sentence for each layer."""
        header, *rows = self._cells()
        sentences = "\n".join(f"- {layer.explained()}" for layer in self.layers)
        return f"### {self.model}: each layer alone\n\n{markdown(header, rows)}\n\n{self._note()}\n\n{sentences}\n"

    def show(self, every: bool = False) -> Group:
        """For the terminal: the layers by their share of the noise, the largest first, and a sentence for each of those
        that are worth a change; not `every` one: as many as a screen holds."""
        shown = replace(self, layers=tuple(sorted(self.layers, key=self._share, reverse=True)))
        left = 0
        if not every:
            left = len(shown.layers) - _A_SCREEN
            shown = replace(shown, layers=shown.layers[:_A_SCREEN])
        header, *rows = shown._cells(brief=True)
        more = f" The {left} others make less noise: --layers all shows them." if left > 0 else ""
        table = Table(
            title=Text(f"{self.model}: each layer alone"),
            caption=Text(self._note() + more),
            caption_justify="left",
            box=box.SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
            show_edge=False,
        )
        for i, name in enumerate(header):
            table.add_column(Text(name), justify="right" if i else "left", no_wrap=not i, overflow="fold")
        for row in rows:
            table.add_row(*map(Text, row))
        told = shown.layers if every else [layer for layer in shown.layers if layer.help][:_TOLD]
        return Group(table, *(Text(layer.explained()) for layer in told))

    def _share(self, layer: Layer) -> float:
        last = list(self.strategies)[-1]
        return layer.alone[last].share if last in layer.alone else -1.0

    def _cells(self, brief: bool = False) -> Iterator[list[str]]:
        """The header, then one line per layer; a metric as its change from float32. brief: all numbers of the last
        strategy, of the others the SQNR."""
        every = [(name, *METRICS.get(name, (name, "{:.4g}"))) for name in self.metrics if name != "cosine"]
        last = list(self.strategies)[-1]
        metrics = {kind: every[:1] if brief else every for kind in self.strategies if kind == last or not brief}
        header = ["layer"]
        for kind in self.strategies:
            header.append(f"{kind}\nSQNR dB")
            header += ["cosine\n↑", *(f"Δ {title}" for _, title, _ in metrics[kind])] if kind in metrics else []
        yield [*header, "share of\nnoise"]
        for layer in self.layers:
            line = [layer.name]
            for kind in self.strategies:
                alone, shown = layer.alone.get(kind), metrics.get(kind)
                line.append("–" if alone is None else number("{:.1f}", alone.sqnr_db))
                if alone is None or shown is None:
                    line += ["–"] * (0 if shown is None else 1 + len(shown))
                    continue
                line.append(number("{:.5f}", alone.cosine))
                line += [
                    number(form.replace(":", ":+"), alone.accuracy[name] - self.float32[name])
                    for name, _, form in shown
                ]
            yield [*line, f"{layer.alone[last].share:.1%}" if last in layer.alone else "–"]

    def _note(self) -> str:
        last = list(self.strategies)[-1]
        note = (
            f"One layer at a time quantized, all others float32; share of noise: of {last}'s. "
            f"On {described(self.data)}."
        )
        return note + (f" Static calibrated on {described(self.calibration)}." if self.calibration else "")


def _percent(share: float) -> str:
    if share == 0:
        return "none"
    return f"{share:.2%}" if share >= 5e-5 else "less than 0.01%"
