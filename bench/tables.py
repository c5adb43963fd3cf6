"""Writes the READMEs' tables from the JSON of `python bench/run.py`, between their markers. Measures nothing, rounds only.

    python bench/tables.py
"""
import json
import math
import re
import statistics
import sys
from pathlib import Path

from cq.report.record import Report, Row

ROOT = Path(__file__).resolve().parent.parent
PAGES, RESULTS = (ROOT / "README.md", ROOT / "bench" / "README.md"), ROOT / "bench" / "results"
MARKED = re.compile(r"(<!-- table:(\w+) -->\n)(.*?)(<!-- /table -->)", re.S)


def main() -> int:
    try:
        for page in PAGES:
            page.write_text(filled(page.read_text(encoding="utf-8"), RESULTS), encoding="utf-8")
    except (OSError, ValueError) as error:
        print(f"tables: {error}", file=sys.stderr)
        return 1
    return 0


def filled(text: str, results: Path) -> str:
    """`text` with every table made anew. Raises FileNotFoundError where a table's JSON is missing, ValueError for markers
    that stand for no table."""
    if text.count("<!-- table:") != len(MARKED.findall(text)):
        raise ValueError("a <!-- table:… --> has no <!-- /table --> after it")

    def table(match: re.Match) -> str:
        name, path = match[2], results / f"{match[2]}.json"
        if name not in TABLES:
            raise ValueError(f"table:{name} is not known; these are: {', '.join(TABLES)}")
        if not path.exists():
            raise FileNotFoundError(f"no {path.name} in {path.parent.name}: run python bench/run.py first")
        result = json.loads(path.read_text(encoding="utf-8"))
        source = f"Numbers: `bench/results/{path.name}`, made by `{result['command']}`."
        return f"{match[1]}{TABLES[name](result)}  \n{source}\n{match[4]}"
    return MARKED.sub(table, text)


def gemm(result: dict) -> str:
    """A line per shape; a column per work and contestant: % of peak for each number of threads, the best one bold."""
    rows = [row for row in result["rows"] if row["work"] != "peak"]
    works = list(dict.fromkeys(row["work"] for row in rows))
    columns = sorted(dict.fromkeys((row["work"], row["name"]) for row in rows), key=lambda column: works.index(column[0]))
    lines = [["M×K×N", *(f"{work}<br>{_short(name)}" for work, name in columns)]]
    for case in dict.fromkeys(row["case"] for row in rows):
        here = [row for row in rows if row["case"] == case]
        lines.append([case, *(_cell(here, work, name, "percent_of_peak", "{:.0f}", max) for work, name in columns)])
    threads, int8, float32 = " / ".join(result["cards"]), _peaks(result, "int8"), _peaks(result, "float32")
    return (f"Percent of the register-only peak with {threads} threads (int8 {int8} GOPS, float32 {float32} GFLOPS, found "
            "in the same run); bold: the fastest at this work.\n\n" + _markdown(lines) + "\n\n"
            "Codes are uint8, weights int8 with a scale per column. \"int8 inside\" quantizes its float32 input on the fly; "
            "the last two columns compute in float32.  \n" + _machine(result))


def model(result: dict) -> str:
    """A line per contestant; a column per batch: milliseconds for each number of threads, the least one bold."""
    rows = [row for row in result["rows"] if row["work"] != "peak"]
    cases = list(dict.fromkeys(row["case"] for row in rows))
    tokens = {row["case"]: row["tokens"] for row in rows}
    pads = {row["name"] for row in rows if "padding" in row}
    lines = [["all-MiniLM-L6-v2", *(f"{case}<br>{tokens[case]:,} tokens" for case in cases), "SQNR dB"]]
    for name in dict.fromkeys(row["name"] for row in rows):
        cells = [_cell([row for row in rows if row["case"] == case], rows[0]["work"], name, "seconds", "{:.2f}", min, 1e3)
                 + ("†" if any(row["case"] == case and row["name"] == name and "padding" in row for row in rows) else "")
                 for case in cases]
        accuracy = next(row["sqnr_db"] for row in rows if row["case"] == cases[-1] and row["name"] == name)
        lines.append([name, *cells, "∞" if accuracy is None else f"{accuracy:.1f}"])
    padding = next((row["padding"] for row in rows if "padding" in row), "")
    return (f"Milliseconds for a batch, medians with {' / '.join(result['cards'])} threads; bold: the fastest. SQNR: of the "
            f"hidden states of {cases[-1]}, beside cq's float32.\n\n" + _markdown(lines) + "\n\n"
            + (f"† Pads its batch to the longest sentence: {padding}.  \n" if pads else "") + _machine(result))


def comparison(result: dict) -> str:
    """The report as `cq compare --markdown` writes it, without its title."""
    report = dict(result["report"])
    rows = [row | {"sqnr_db": math.inf} if row["sqnr_db"] is None else row for row in report["rows"]]
    report |= {"rows": tuple(Row(**row) for row in rows), "metrics": tuple(report["metrics"])}
    text = Report(**report).to_markdown()
    return text.split("\n\n", 1)[1].rstrip("\n")


TABLES = {"gemm": gemm, "model": model, "compare_shakespeare": comparison, "compare_minilm": comparison}


def _cell(rows: list[dict], work: str, name: str, key: str, form: str, best, factor: float = 1.0) -> str:
    """One contestant's number for each number of threads, "–" where it was not there."""
    parts = []
    for threads in dict.fromkeys(row["threads"] for row in rows):
        rivals = [row for row in rows if row["work"] == work and row["threads"] == threads]
        shown = {row["name"]: form.format(row[key] * factor) for row in rivals}
        winner = best(shown.values(), key=float)
        value = shown.get(name, "–")
        parts.append(f"**{value}**" if value == winner else value)
    return " / ".join(parts)


def _short(name: str) -> str:
    """A contestant's name for the head of a column."""
    if name.startswith("cq"):
        return "cq weight-only" if "weight-only" in name else "cq"
    return "ORT" if name.startswith("onnxruntime") else name.replace("torch dynamic int8", "torch")


def _peaks(result: dict, kind: str) -> str:
    """For each number of threads, the median of the peaks that were measured with each case."""
    rows = [row for row in result["rows"] if row["work"] == "peak" and row["kind"] == kind]
    found = (statistics.median(row["gops"] for row in rows if str(row["threads"]) == threads) for threads in result["cards"])
    return " / ".join(f"{peak:,.0f}" for peak in found)


def _machine(result: dict) -> str:
    card = next(iter(result["cards"].values()))
    versions = {"cq": card["version"]} | {name: card["versions"].get(name) for name in ("torch", "onnxruntime", "numpy")}
    libraries = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    return (f"{card['cpu']} (family/model {card['cpu_family_model']}), {card['cores']} cores, {card['isa']}; {libraries} "
            f"({card['numpy_blas']['name']}, {card['numpy_blas']['core']} kernels); {card['date'][:10]}.")


def _markdown(lines: list[list[str]]) -> str:
    header, *rows = lines
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
