"""What all tables share: finding rows in results, cells with a number for each number of threads, Markdown. Measures
nothing."""

import statistics
from collections.abc import Callable

BUSY = 0.5  # load average above the number of cores, which the suite that ran before may have kept busy


def isa(result: dict) -> str | None:
    """The instruction set that the suite ran on: the machine's best, or the one it was limited to."""
    return next(iter(result.get("cards", {}).values()), {}).get("isa")


def is_cq(row: dict) -> bool:
    return row["name"].startswith("cq")


def contestants(result: dict) -> list[dict]:
    """The rows of a result without the limits that were measured beside them."""
    return [row for row in result["rows"] if row["work"] not in ("peak", "read")]


def by_threads(rows: list[dict]) -> dict[int, list[dict]]:
    found: dict[int, list[dict]] = {}
    for row in rows:
        found.setdefault(row["threads"], []).append(row)
    return found


def ahead(row: dict) -> float | None:
    """The best peer's time over this row's; None where it had no peer."""
    peers = [ratio for name, ratio in row["ahead_of"].items() if not name.startswith("cq")]
    return min(peers) if peers else None


def best_of(rows: list[dict], names: tuple[str, ...]) -> dict | None:
    """The fastest row of these contestants."""
    rows = [row for row in rows if row["name"] in names]
    return min(rows, key=lambda row: row["seconds"]) if rows else None


def cell(rows: list[dict], work: str, name: str, key: str, form: str, best, factor: float = 1.0) -> str:
    """One contestant's number for each number of threads, bold where it is the best of its work; "–" where it was not
    there."""
    parts = []
    for there in by_threads(rows).values():
        shown = {row["name"]: form.format(row[key] * factor) for row in there if row["work"] == work}
        value = shown.get(name, "–")
        won = value != "–" and value == best(shown.values(), key=lambda text: float(text.replace(",", "")))
        parts.append(f"**{value}**" if won else value)
    return " / ".join(parts)


def joined(values, form: str = "{:.0f}") -> str:
    """A number for each number of threads; "–" for None."""
    return " / ".join("–" if value is None else form.format(value) for value in values)


def peaks(result: dict, kind: str) -> str:
    """For each number of threads, the median of the peaks that were measured with each case."""
    rows = [row for row in result["rows"] if row["work"] == "peak" and row["kind"] == kind]
    found = (
        statistics.median(row["gops"] for row in rows if str(row["threads"]) == threads) for threads in result["cards"]
    )
    return joined(found, "{:,.0f}")


def machine(result: dict, timed: bool = True) -> str:
    """CPU, libraries and their versions, date; and, of what was timed, a warning where others were using the
    machine."""
    card = next(iter(result["cards"].values()))
    peers = ("torch", "onnxruntime", "openvino", "nncf", "ctranslate2", "llama-cpp-python", "numpy")
    versions = {"cq": card["version"]} | {name: card["versions"].get(name) for name in peers}
    libraries = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    load = max(each["load_average"][0] for each in result["cards"].values())
    busy = (
        f"Measured on a busy machine (load average {load:.1f}): not to be relied on.  \n"
        if timed and load > card["cores"] + BUSY
        else ""
    )
    return (
        busy
        + f"{card['cpu']} (family/model {card['cpu_family_model']}), {card['cores']} cores, {card['isa']}; {libraries} "
        f"({card['numpy_blas']['name']}, {card['numpy_blas']['core']} kernels); {card['date'][:10]}."
    )


def machine_slug(card: dict) -> str:
    """The name of a machine's folder in bench/results, such as "amd-25-17-avx2": maker, CPU family and model, and the
    instruction set that was measured."""
    maker = card["cpu"].split()[0].split("(")[0].lower() or "cpu"
    return "-".join([maker, *card["cpu_family_model"].split("/"), card["isa"]])


def markdown(lines: list[list[str]], align: str = "---:") -> str:
    """The first line is the header. align: of all columns but the first."""
    header, *rows = lines
    lines = [header, ["---"] + [align] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(text.replace("|", "\\|") for text in line) + " |" for line in lines)


def by_case(
    result: dict, title: str, shown: Callable[[list[dict], str], str], label: Callable[[str], str] = str
) -> str:
    """A line per case, a column per contestant: shown(the case's rows, name)."""
    rows = contestants(result)
    names = list(dict.fromkeys(row["name"] for row in rows))
    lines = [[title, *names]]
    for case in dict.fromkeys(row["case"] for row in rows):
        here = [row for row in rows if row["case"] == case]
        lines.append([label(case), *(shown(here, name) for name in names)])
    return markdown(lines) + "\n\n" + machine(result)
