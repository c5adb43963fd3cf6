"""Times contestants in turns, so that whatever else the machine does hits all alike. Knows no models and no peers."""
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from cq import _core
from cq.report.timing import rest

ROUNDS, TURN_S = 6, 0.03
PEAK_REPEATS = 3000  # of the register-only loop: some 10 ms


@dataclass(frozen=True)
class Entry:
    """A contestant. work: what it computes; entries of the same work are rivals. operations: of a call, a multiply-add is 2.
    kind: "int8" or "float32", the peak that it is held against. more: what else its row says."""
    work: str
    name: str
    call: Callable[[], object]
    operations: float
    kind: str
    more: dict = field(default_factory=dict)


def contest(benchmark, case: str, entries: list[Entry], threads: int, rounds: int = ROUNDS) -> list[dict]:
    """Runs every entry, and the register-only loops, once a round; leaves a row for each in the benchmark's extra_info, and
    returns them. `benchmark` (pytest-benchmark's fixture) times whole rounds."""
    with ThreadPoolExecutor(threads) as team:
        entries = [*entries, *(_peak(kind, threads, team) for kind in ("int8", "float32"))]
        seconds: list[list[float]] = [[] for _ in entries]

        def one_round() -> None:
            for entry, found in zip(entries, seconds):
                rest()
                found += turn(entry.call)

        benchmark.pedantic(one_round, rounds=rounds, iterations=1)
    rows = _rows(case, entries, seconds, threads)
    benchmark.extra_info["rows"] = rows
    return rows


def turn(call: Callable[[], object]) -> list[float]:
    """Seconds of each call in a row for TURN_S, and at least of two; the first, with cold caches, does not count."""
    call()
    seconds, end = [], time.perf_counter() + TURN_S
    while len(seconds) < 2 or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return seconds


def sqnr_db(reference: list[np.ndarray], outputs: list[np.ndarray]) -> float:
    """Signal to error of outputs beside the reference, in decibels, over all their elements; infinite where equal."""
    signal = sum(float(np.square(r, dtype=np.float64).sum()) for r in reference)
    error = sum(float(np.square(r.astype(np.float64) - o).sum()) for r, o in zip(reference, outputs))
    return round(10 * np.log10(signal / error), 1) if error else np.inf


def _peak(kind: str, threads: int, team: ThreadPoolExecutor) -> Entry:
    """The register-only loop on so many threads at once."""
    operations, kinds, repeats = threads * _core.peak(kind, 1) * PEAK_REPEATS, [kind] * threads, [PEAK_REPEATS] * threads
    return Entry("peak", f"register-only peak {kind}", lambda: list(team.map(_core.peak, kinds, repeats)), operations, kind)


def _rows(case: str, entries: list[Entry], seconds: list[list[float]], threads: int) -> list[dict]:
    """One dictionary per entry; times are medians, "best" the least. "ahead_of", of cq's: rival → its time over this."""
    median = [float(np.median(s)) for s in seconds]
    peak = {e.kind: e.operations / m for e, m in zip(entries, median) if e.work == "peak"}
    rows = []
    for entry, time_s, all_s in zip(entries, median, seconds):
        speed = entry.operations / time_s
        rivals = {e.name: round(m / time_s, 3) for e, m in zip(entries, median) if e.work == entry.work and e is not entry}
        rows.append({"case": case, "threads": threads, "work": entry.work, "name": entry.name, "kind": entry.kind,
                     "seconds": time_s, "best": min(all_s), "calls": len(all_s),
                     "gops": round(speed / 1e9, 2), "percent_of_peak": round(100 * speed / peak[entry.kind], 1)}
                    | {key: None if value == np.inf else value for key, value in entry.more.items()}
                    | ({"ahead_of": rivals} if entry.name.startswith("cq") else {}))
    return rows
