"""How fast a model runs, and how much that is of what the machine can do: milliseconds, tokens per second, percent of
the register-only peak. Quantizes nothing."""

import copy
import json
import time
import tracemalloc
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from .. import _core
from ..errors import CqError
from ..model import Transformer
from ..system import info
from .profile import Profile, profile
from .samples import Progress
from .timing import in_turns

_ROUNDS = 7
_PEAK_REPEATS, _PEAK_TRIES = 2000, 5


@dataclass(frozen=True)
class Speed:
    """One model on one batch. shape: (sequences, tokens of each); seconds: median of a forward pass; percent_of_peak:
    of the register-only loop in "int8" or "float32", which `kind` says; profile: where the time goes, if that was asked
    for."""

    name: str
    shape: tuple[int, int]
    seconds: float
    tokens_per_s: float
    gops: float
    percent_of_peak: float
    kind: str
    profile: Profile | None = None


@dataclass(frozen=True)
class Bench:
    """Speeds of one model under several strategies. machine: as `cq.info` gives it; peak_gops: kind → of all
    threads."""

    model: str
    machine: dict
    peak_gops: dict[str, float]
    rows: tuple[Speed, ...]

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1, ensure_ascii=False)

    def show(self) -> Group:
        """For the terminal: the speeds, then a table for each profile."""
        return Group(self._speeds(), *(_profile_table(row, row.profile) for row in self.rows if row.profile))

    def _speeds(self) -> Table:
        machine = self.machine
        peaks = ", ".join(f"{kind} {gops:,.0f} GOPS" for kind, gops in self.peak_gops.items())
        table = _table(
            self.model,
            f"Medians of {_ROUNDS} interleaved rounds. Peak of the registers: {peaks}.\n{machine['cpu']}, "
            f"threads: {machine['threads']}, {machine['isa']}, cq {machine['version']}.",
            "",
            "batch",
            "ms",
            "tokens\nper s",
            "GOPS",
            "% of\npeak",
        )
        for row in self.rows:
            table.add_row(
                row.name,
                f"{row.shape[0]}×{row.shape[1]}",
                f"{row.seconds * 1e3:.2f}",
                f"{row.tokens_per_s:,.0f}",
                f"{row.gops:,.0f}",
                f"{row.percent_of_peak:.1f}",
            )
        return table


def bench(
    name: str,
    models: dict[str, Transformer],
    shapes: Iterable[tuple[int, int]],
    profiled: bool = False,
    progress: Progress | None = None,
) -> Bench:
    """Times `models` (name → Transformer) in turns on random token ids of each shape (sequences, tokens of each).

    profiled: also where each pass spends its time. progress: called with (what, done, total). Raises CqError for a
    shape that the model cannot run."""
    progress = progress or (lambda what, done, total: None)
    peaks, rows, shapes = peak_speeds(), [], list(shapes)
    for done, shape in enumerate(shapes):
        progress("time", done, len(shapes))
        tokens = _tokens(next(iter(models.values())), shape)
        for (label, model), seconds in zip(models.items(), _timed(models.values(), tokens)):
            speed, kind = operations(model, tokens) / seconds, _kind(model)
            rows.append(
                Speed(
                    label,
                    shape,
                    seconds,
                    shape[0] * shape[1] / seconds,
                    speed / 1e9,
                    100 * speed / peaks[kind],
                    kind,
                    profile(model, tokens) if profiled else None,
                )
            )
    progress("time", len(shapes), len(shapes))
    return Bench(name, info(), {kind: speed / 1e9 for kind, speed in peaks.items()}, tuple(rows))


def operations(model: Transformer, tokens: Iterable[np.ndarray]) -> float:
    """Of one forward pass without padding, a multiply-add being two: linear layers, and attention's two products, of
    which a causal model needs those up to the diagonal."""
    config, lengths = model.config, [len(ids) for ids in tokens]
    weights = sum(
        place.shape[0] * place.shape[1]
        for place in model.coverage()
        if place.name.startswith("layers.") and place.shape
    )
    pairs = sum(n * (n + 1) // 2 if config.causal else n * n for n in lengths)
    return 2.0 * (weights * sum(lengths) + 2 * config.num_layers * config.num_heads * config.head_dim * pairs)


def peak_speeds() -> dict[str, float]:
    """Kind → operations per second of multiply-adds that never leave the registers, on as many threads as cq uses; the
    best of several tries."""
    threads, found = info()["threads"], {}
    with ThreadPoolExecutor(threads) as team:
        for kind in ("int8", "float32"):
            seconds = []
            for _ in range(_PEAK_TRIES):
                start = time.perf_counter()
                operations = sum(team.map(_core.peak, [kind] * threads, [_PEAK_REPEATS] * threads))
                seconds.append(time.perf_counter() - start)
            found[kind] = operations / min(seconds)
    return found


def activation_bytes(model: Transformer, tokens: list[np.ndarray]) -> int:
    """The most that a model's first forward pass holds at once beside the weights and its float32 result: what NumPy
    allocates, what few tokens keep for those that follow included."""
    model.forward(tokens[:1])  # weights are laid side by side once
    model = copy.copy(model)
    tracemalloc.start()
    try:
        result = model.forward(tokens)
        return tracemalloc.get_traced_memory()[1] - sum(hidden.nbytes for hidden in result)
    finally:
        tracemalloc.stop()


def _timed(models: Iterable[Transformer], tokens: list[np.ndarray]) -> list[float]:
    """Median seconds of each model's forward pass; they take turns."""
    seconds = in_turns([partial(model.forward, tokens) for model in models], _ROUNDS, warm=True)
    return [float(np.median(found)) for found in seconds]


def _tokens(model: Transformer, shape: tuple[int, int]) -> list[np.ndarray]:
    """Random ids, the same for every call."""
    sequences, length = shape
    if sequences < 1 or not 1 <= length <= model.config.max_positions:
        raise CqError(
            f"shape {sequences}x{length}: need at least one sequence of 1 to {model.config.max_positions} tokens"
        )
    return list(np.random.default_rng(0).integers(0, model.config.vocab_size, shape).astype(np.int32))


def _kind(model: Transformer) -> str:
    """The peak that a model is held against: float32 products or int8 ones."""
    return "float32" if model.strategy is None or model.strategy.name == "weight-only" else "int8"


def _profile_table(row: Speed, found: Profile) -> Table:
    table = _table(
        f"{row.name}, {row.shape[0]}×{row.shape[1]}: one pass by parts",
        f"Parts together {found.seconds * 1e3:.3f} ms; an unwatched pass {found.forward_s * 1e3:.3f} ms.",
        "",
        "ms",
        "% of\npass",
        "ms per\nlayer",
        "slowest\nlayer",
    )
    for part in found.parts:
        layers = part.by_layer
        slowest = max(layers, key=lambda layer: layers[layer]) if layers else 0
        table.add_row(
            part.name,
            f"{part.seconds * 1e3:.3f}",
            f"{part.percent:.1f}",
            f"{np.median(list(layers.values())) * 1e3:.3f}" if layers else "–",
            f"{layers[slowest] * 1e3:.3f} ({slowest})" if layers else "–",
        )
    return table


def _table(title: str, caption: str, *headers: str) -> Table:
    table = Table(
        title=Text(title),
        caption=Text(caption),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
    )
    for i, header in enumerate(headers):
        table.add_column(Text(header), justify="right" if i else "left", no_wrap=i > 0, overflow="fold")
    return table
