"""A yardstick: what the design aims at beside what a benchmark found, in one case or in many. Measures nothing."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from render import by_threads

INT8_STREAM = "cq static, int8 stream"
FAST = ("cq dynamic", "cq static", INT8_STREAM)  # what the rows about a model are about: the fastest of them


@dataclass(frozen=True)
class Yardstick:
    """work; target in words; for each number of threads that was measured, what was found (in words) and whether that
    meets the target. lost: the cases that do not, where a yardstick is about many. threads: the numbers that it is
    about."""

    work: str
    target: str
    measured: dict[str, str]
    met: dict[str, bool]
    lost: dict[str, list[str]]
    threads: tuple[str, ...] = ("1", "2")

    def verdict(self) -> str:
        """One word where all numbers of threads agree, else one each."""
        words = [{True: "met", False: "**missed**", None: "not measured"}[self.met.get(each)] for each in self.threads]
        return words[0] if len(set(words)) == 1 else " / ".join(words)


def as_measured(row: Yardstick) -> Yardstick:
    """About the number of threads that was measured: accuracy knows none."""
    return replace(row, threads=tuple(row.met) or row.threads[:1])


def one(
    work: str,
    target: float | dict[int, float],
    rows: Iterable[dict],
    value: Callable,
    form: str = "{:.0f}",
    at_most: bool = False,
) -> Yardstick:
    """A yardstick about one case. target: the same for all, or by number of threads."""
    sign = "≤" if at_most else "≥"
    goals = target if isinstance(target, dict) else {1: target, 2: target}
    found = {row["threads"]: (row, value(row)) for row in rows if row["threads"] in goals and value(row) is not None}
    words = " / ".join(dict.fromkeys(f"{goal:,}" for goal in goals.values()))
    return Yardstick(
        work,
        f"{sign} {words}",
        {
            str(threads): form.format(number) + (f" ({row['name']})" if row["name"] in FAST else "")
            for threads, (row, number) in found.items()
        },
        {
            str(threads): number <= goals[threads] if at_most else number >= goals[threads]
            for threads, (row, number) in found.items()
        },
        {},
    )


def every(
    work: str, target: str, rows: Iterable[dict], value: Callable, goal: float, form: str, at_most: bool = False
) -> Yardstick:
    """A yardstick about many cases: all must meet it; shown is the worst."""
    measured, met, lost = {}, {}, {}
    for threads, there in by_threads([row for row in rows if value(row) is not None]).items():
        numbers = {row["case"]: value(row) for row in there}
        worst = (max if at_most else min)(numbers, key=numbers.get)
        lost[str(threads)] = [case for case, number in numbers.items() if (number > goal if at_most else number < goal)]
        met[str(threads)] = not lost[str(threads)]
        won = len(numbers) - len(lost[str(threads)])
        measured[str(threads)] = f"{won} of {len(numbers)}, worst {form.format(numbers[worst])} ({worst})"
    return Yardstick(work, target, measured, met, lost)
