"""Times contestants in turns, so that whatever else the machine does hits all alike. Knows no models and no peers."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

import cq
from cq import _core
from cq.report.timing import rest, turn

ROUNDS, TURN_S = 6, 0.03
PEAK_REPEATS = 1000  # of the register-only loop: some 5 ms
READ_BYTES = 2**28  # read in one call, over and over where an array is smaller: some 5 ms


@dataclass(frozen=True)
class Entry:
    """A contestant. work: what it computes; entries of the same work are rivals. operations: of a call, a multiply-add
    is 2. kind: "int8" or "float32", the peak that it is held against. more: what else its row says. weight_bytes: what
    a call must read of its weight, where that bounds it. steps: of the work, in one call, one after another; all else
    is of one step."""

    work: str
    name: str
    call: Callable[[], object]
    operations: float
    kind: str
    more: dict = field(default_factory=dict)
    weight_bytes: int = 0
    steps: int = 1


def contest(
    benchmark,
    case: str,
    entries: list[Entry],
    threads: int,
    rounds: int = ROUNDS,
    turn_s: float = TURN_S,
    warm: bool = True,
) -> list[dict]:
    """Runs every entry, the register-only loops and, for each size of weight, a bare read, once a round; leaves a row
    for each in the benchmark's extra_info, and returns them. `benchmark` (pytest-benchmark's fixture) times whole
    rounds. turn_s and warm: see `turn`."""
    with ThreadPoolExecutor(threads) as team:
        entries = [
            *entries,
            *(_peak(kind, threads, team) for kind in ("int8", "float32")),
            *(_read(size, threads, team) for size in sorted({e.weight_bytes for e in entries} - {0})),
        ]
        seconds: list[list[list[float]]] = [[] for _ in entries]  # of each entry, each round, each call

        def one_round() -> None:
            for entry, found in zip(entries, seconds):
                rest()
                found.append([call / entry.steps for call in turn(entry.call, turn_s, warm)])

        benchmark.pedantic(one_round, rounds=rounds, iterations=1)
    rows = _rows(case, entries, seconds, threads, min if turn_s else np.median)
    benchmark.extra_info["rows"] = rows
    return rows


def sqnr_db(reference: list[np.ndarray], outputs: list[np.ndarray]) -> float:
    """Signal to error of outputs beside the reference, in decibels, over all their elements; infinite where equal."""
    signal = sum(float(np.square(r, dtype=np.float64).sum()) for r in reference)
    error = sum(float(np.square(r.astype(np.float64) - o).sum()) for r, o in zip(reference, outputs))
    return round(10 * np.log10(signal / error), 1) if error else np.inf


def _peak(kind: str, threads: int, team: ThreadPoolExecutor) -> Entry:
    """The register-only loop on so many threads at once."""
    operations, kinds, repeats = (
        threads * _core.peak(kind, 1) * PEAK_REPEATS,
        [kind] * threads,
        [PEAK_REPEATS] * threads,
    )
    return Entry(
        "peak", f"register-only peak {kind}", lambda: list(team.map(_core.peak, kinds, repeats)), operations, kind
    )


def _read(size: int, threads: int, team: ThreadPoolExecutor) -> Entry:
    """Reads as many bytes as a weight has, each thread its part: NumPy's maximum of int8, which waits for nothing but
    memory. A weight that fits a cache is thus held against that cache."""
    repeats, weight = -(-READ_BYTES // size), np.ones(size, np.int8)  # zeros would all be one page
    parts = [np.broadcast_to(part, (repeats, len(part))) for part in np.array_split(weight, threads)]
    return Entry(
        "read",
        f"read of {size} bytes",
        lambda: list(team.map(lambda part: part.max(axis=1), parts)),
        0.0,
        "read",
        {"size": size},
        size * repeats,
    )


def _rows(
    case: str,
    entries: list[Entry],
    seconds: list[list[list[float]]],
    threads: int,
    over_rounds: Callable[[list[float]], float],
) -> list[dict]:
    """One dictionary per entry. "seconds": over_rounds of each round's median call. The least round counts, for others
    may have had the cores in some; where a round is one long call, whose least is luck, the median does. "best": the
    least call, which of limits (peaks, reads) counts. Of cq's: "ahead_of", rival → its time over this, and
    "ahead_of_best_peer", the least of those that are not cq."""
    times = [
        float(min(map(min, s)) if e.work in ("peak", "read") else over_rounds([float(np.median(calls)) for calls in s]))
        for e, s in zip(entries, seconds)
    ]
    peak = {e.kind: e.operations / t for e, t in zip(entries, times) if e.work == "peak"}
    read = {e.more["size"]: e.weight_bytes / t for e, t in zip(entries, times) if e.work == "read"}
    rows = []
    for entry, time_s, calls in zip(entries, times, [sum(rounds, []) for rounds in seconds]):
        row = {
            "case": case,
            "threads": threads,
            "isa": cq.info()["isa"],
            "work": entry.work,
            "name": entry.name,
            "kind": entry.kind,
            "seconds": time_s,
            "best": min(calls),
            "calls": len(calls),
        }
        if entry.operations:
            speed = entry.operations / time_s
            row |= {"gops": round(speed / 1e9, 2), "percent_of_peak": round(100 * speed / peak[entry.kind], 1)}
        if entry.weight_bytes:
            speed = entry.weight_bytes / time_s
            row |= {"gb_per_s": round(speed / 1e9, 2)}
            row |= {} if entry.work == "read" else {"percent_of_read": round(100 * speed / read[entry.weight_bytes], 1)}
        row |= {key: None if value == np.inf else value for key, value in entry.more.items()}
        if entry.name.startswith("cq"):
            rivals = {
                e.name: round(t / time_s, 3) for e, t in zip(entries, times) if e.work == entry.work and e is not entry
            }
            peers = [ratio for name, ratio in rivals.items() if not name.startswith("cq")]
            row |= {"ahead_of": rivals} | ({"ahead_of_best_peer": min(peers)} if peers else {})
        rows.append(row)
    return rows
