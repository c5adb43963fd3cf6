"""Writes the pages' tables from the JSON of `python bench/run.py`, between their markers. Measures nothing, rounds
only.

    python bench/tables.py
"""

import json
import math
import re
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import products
import targets
from render import by_threads, cell, contestants, is_cq, joined, machine, machine_slug, markdown

from cq.report.plot import plot
from cq.report.record import Report, Row

ROOT = Path(__file__).resolve().parent.parent
PAGES, RESULTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ROOT / "bench" / "results"
# <!-- table:NAME MACHINE -->, a table of one suite, or <!-- machines -->, all tables of all machines
MARKED = re.compile(r"(<!-- (?:table:(\S+) (\S+)|(machines)) -->\n)(.*?)(<!-- /(?:table|machines) -->)", re.S)
PICTURE = "intel-6-167-avx512vnni/compare_minilm.json"
STREAM, SORTED = "stream of sentences", ", sorted by length"
NEIGHBOUR = "One process keeps one of two cores busy, and the model runs on one thread or on two."
MINILM = "Calibrated on STS 2012, judged on STS 2014; the mix was found on STS 2013."
LM = "Peers get what the file's codes dequantize to: llama.cpp quantizes it to Q8_0 itself, CTranslate2 to int8."


def main() -> int:
    try:
        for page in PAGES:
            page.write_text(filled(page.read_text(encoding="utf-8"), RESULTS), encoding="utf-8")
        draw(RESULTS / PICTURE, ROOT / "docs" / "compare.svg")
    except (OSError, ValueError) as error:
        print(f"tables: {error}", file=sys.stderr)
        return 1
    return 0


def filled(text: str, results: Path) -> str:
    """`text` with every table made anew. Raises FileNotFoundError where a table's JSON is missing, ValueError for
    markers that stand for no table."""
    if text.count("<!-- table:") + text.count("<!-- machines") != len(MARKED.findall(text)):
        raise ValueError("a <!-- table:NAME MACHINE --> or <!-- machines --> has no end after it")

    def made(match: re.Match) -> str:
        body = machines(results) if match[4] else _table(match[2], results / match[3])
        return f"{match[1]}{body}\n{match[6]}"

    return MARKED.sub(made, text)


def machines(results: Path) -> str:
    """A section for each machine and instruction set: its yardsticks, then its tables."""
    return "\n\n".join(_machine(folder) for folder in sorted(results.iterdir()) if folder.is_dir())


def _machine(folder: Path) -> str:
    found = {file.stem: _result(file) for file in sorted(folder.glob("*.json"))}
    card = next(iter(next(iter(found.values()))["cards"].values()))
    if machine_slug(card) != folder.name:
        raise ValueError(f"{folder.name} holds results of {machine_slug(card)}")
    title = f"## {card['cpu']}, family {card['cpu_family_model'].replace('/', ', model ')}, {card['isa']}"
    parts = [title, "### Yardsticks", targets.table(found)]
    for name, table in TABLES.items():
        if table.suite in found and table.title:
            parts += [f"### {table.title}", *([table.lead] if table.lead else []), _table(name, folder)]
    return "\n\n".join(parts)


def _table(name: str, folder: Path) -> str:
    if name not in TABLES:
        raise ValueError(f"table:{name} is not known; these are: {', '.join(TABLES)}")
    source = folder / f"{TABLES[name].suite}.json"
    result = _result(source)
    where = f"`bench/results/{folder.name}/{source.name}`"
    return f"{TABLES[name].make(result)}  \nNumbers: {where}, made by `{result['command']}`."


def _result(path: Path) -> dict:
    if not path.exists():
        raise FileNotFoundError(f"no {path.name} in {path.parent.name}: run python bench/run.py first")
    return json.loads(path.read_text(encoding="utf-8"))


def model(result: dict) -> str:
    """A line per contestant; a column per batch: milliseconds for each number of threads, the least one bold."""
    rows = [row for row in contestants(result) if row["case"] != STREAM]
    cases = list(dict.fromkeys(row["case"] for row in rows))
    tokens = {row["case"]: row["tokens"] for row in rows}
    padding = next((row["padding"] for row in rows if "padding" in row), None)
    lines = [["all-MiniLM-L6-v2", *(f"{case}<br>{tokens[case]:,} tokens" for case in cases), "SQNR dB"]]
    for name in dict.fromkeys(row["name"] for row in rows):
        cells = [
            cell([row for row in rows if row["case"] == case], rows[0]["work"], name, "seconds", "{:.2f}", min, 1e3)
            + ("†" if any(row["case"] == case and row["name"] == name and "padding" in row for row in rows) else "")
            for case in cases
        ]
        lines.append([name, *cells, _decibels(rows, cases[-1], name)])
    note = f"† Pads its batch to the longest sentence: {_padding(padding)}.  \n" if padding else ""
    return (
        f"Milliseconds for a batch with {joined(result['cards'], '{}')} threads; bold: the fastest. SQNR: of the "
        f"hidden states of {cases[-1]}, beside cq's float32.\n\n" + markdown(lines) + "\n\n" + note + machine(result)
    )


SHORT = ("1×16", "8×128", "32 sentences")
BEST_FORMS = (
    "cq float32",
    "cq dynamic",
    "cq static",
    "onnxruntime dynamic int8",
    "onnxruntime static int8",
    "OpenVINO static int8",
    "CTranslate2 int8",
    "torch dynamic int8 (x86)",
)


def speed(result: dict) -> str:
    """The model's table in short: the int8 forms, three batches, sentences per second."""
    rows = [row for row in contestants(result) if row["name"].removesuffix(SORTED) in BEST_FORMS]
    rated = [row | {"rate": row["sequences"] / row["seconds"]} for row in rows if row["case"] == STREAM]
    lines = [["all-MiniLM-L6-v2", *(f"{case}<br>ms" for case in SHORT), "sentences<br>per second"]]
    for name in (name for name in BEST_FORMS if any(row["name"] == name for row in rows)):
        cells = []
        for case in SHORT:
            here = [row for row in rows if row["case"] == case]
            cells.append(cell(here, here[0]["work"], name, "seconds", "{:.2f}", min, 1e3))
        cells.append(cell(rated, rated[0]["work"], name, "rate", "{:,.0f}", max))
        lines.append([name, *cells])
    threads = joined(result["cards"], "{}")
    return f"With {threads} threads; bold: the best.\n\n" + markdown(lines) + "\n\n" + machine(result)


def stream(result: dict) -> str:
    """A line per contestant: sentences per second in both orders, for each number of threads."""
    rows = [row for row in contestants(result) if row["case"] == STREAM]
    if not rows:
        return "Not measured yet."
    work, sentences, mean = rows[0]["work"], rows[0]["sequences"], rows[0]["tokens"] / rows[0]["sequences"]
    rated = [row | {"rate": row["sequences"] / row["seconds"]} for row in rows]
    lines = [["all-MiniLM-L6-v2", "as they come", "sorted by length", "tokens padded"]]
    for name in dict.fromkeys(row["name"].removesuffix(SORTED) for row in rows):
        both = [cell(rated, work, each, "rate", "{:,.0f}", max) for each in (name, name + SORTED)]
        pads = [
            next((row.get("padding", 0) for row in rows if row["name"] == each), None) for each in (name, name + SORTED)
        ]
        lines.append([name, both[0], "the same", "0"] if name.startswith("cq") else [name, *both, joined(pads, "{:,}")])
    return (
        f"Sentences per second with {joined(result['cards'], '{}')} threads: {sentences:,} sentences of STS 2014 in "
        "batches "
        f"of 32, {mean:.1f} tokens each on average; bold: the fastest.\n\n" + markdown(lines) + "\n\n" + machine(result)
    )


def lm(result: dict) -> str:
    """A line per contestant: tokens per second of a prefill and of decoding, for each number of threads, the most
    bold."""
    rows = [row | {"rate": row["tokens"] / row["seconds"]} for row in contestants(result)]
    cases = {row["work"]: row["case"] for row in rows}
    lines = [
        [
            "SmolLM2-135M-Instruct",
            *(f"{case}<br>tokens/s" for case in cases.values()),
            "prefill,<br>% of peak",
            "decode, % of<br>read bandwidth",
            "top-1 as<br>float32 %",
        ]
    ]
    for name in dict.fromkeys(row["name"] for row in rows):
        prefills, decodes = ([row for row in rows if row["work"] == work and row["name"] == name] for work in cases)
        lines.append(
            [
                name,
                *(cell(rows, work, name, "rate", "{:,.0f}", max) for work in cases),
                joined(row["percent_of_peak"] for row in prefills),
                joined(row.get("percent_of_read") for row in decodes),
                f"{100 * prefills[0]['top1']:.1f}",
            ]
        )
    return (
        f"Tokens per second with {joined(result['cards'], '{}')} threads; bold: the fastest. A prefill runs its "
        "tokens anew and scores the next one; decoding goes on one token at a time from a prompt of one. Top-1: of "
        "the prompt's "
        "512 positions.\n\n" + markdown(lines) + "\n\n" + machine(result)
    )


def lm_accuracy(result: dict) -> str:
    """A line per contestant: perplexity, and how far its scores are from float32's."""
    rows = [row for row in contestants(result) if row["work"] == "accuracy"]
    base = rows[0]["perplexity"]
    lines = [
        ["SmolLM2-135M-Instruct", "perplexity", "over float32 %", "KL nats", "top-1 as float32 %", "flips %", "SQNR dB"]
    ]
    for row in rows:
        error = f" ± {100 * row['over_error']:.2f}" if row.get("over_error") else ""
        lines.append(
            [
                row["name"],
                f"{row['perplexity']:.3f}",
                f"{100 * (row['perplexity'] / base - 1):+.2f}{error}",
                f"{row['kl']:.5f}",
                f"{100 * row['top1']:.2f}",
                f"{100 * row['flips']:.2f}",
                "∞" if row["sqnr_db"] is None else f"{row['sqnr_db']:.1f}",
            ]
        )
    return (
        f"{rows[0]['windows']} windows of 512 tokens of WikiText-2's validation text; static calibrated on 16 "
        "others. ±: the "
        "standard error of the difference, window by window. KL: of the next token's distribution from float32's. "
        "Flips: "
        "predictions that changed between right and wrong. int8 cache: every token reads keys and values as they are "
        "kept, its "
        "own included; dynamic's and static's attention does so anyway.\n\n"
        + markdown(lines)
        + "\n\n"
        + machine(result)
    )


def lm_greedy(result: dict) -> str:
    """A line per contestant: where each text first differs from float32's."""
    rows = [row for row in contestants(result) if row["work"] == "greedy"]
    if not rows:
        return "Not measured yet."
    lines = [
        [
            "SmolLM2-135M-Instruct",
            f"texts equal, of {rows[0]['prompts']}",
            "first other token, from 0",
            "float32's preference there, median of logits",
        ]
    ]
    for row in rows:
        gaps = [gap for gap in row["gaps"] if gap is not None]
        lines.append(
            [
                row["name"],
                f"{row['equal']}",
                ", ".join("–" if at is None else str(at) for at in row["first"]),
                f"{statistics.median(gaps):.3f}" if gaps else "–",
            ]
        )
    return (
        f"Greedy texts of {rows[0]['tokens']} tokens after {rows[0]['prompts']} prompts, beside float32's. –: equal "
        "to the "
        "end.\n\n" + markdown(lines) + "\n\n" + machine(result)
    )


def generate(result: dict) -> str:
    """A line per length: what a prompt of it costs, and a token behind it, for each number of threads."""

    def shown(here: list[dict], name: str) -> str:
        mine = [row for row in here if row["name"] == name]
        if not mine:
            return "–"
        shares = f"<br>{joined(row['percent_of_read'] for row in mine)} %" if mine[0]["what"] == "decode" else ""
        return joined((1e3 * row["seconds"] for row in mine), "{:.2f}") + shares

    def label(case: str) -> str:
        return case.replace("prefill", "prompt of").replace("decode", "one token behind")

    return (
        f"Milliseconds with {joined(result['cards'], '{}')} threads; under a token's, the percent of read bandwidth "
        "that its "
        "weights and kept keys and values make of it.\n\n" + _by_case(result, "SmolLM2-135M-Instruct", shown, label)
    )


def train(result: dict) -> str:
    """A line per batch: a step's milliseconds."""
    return f"Milliseconds with {joined(result['cards'], '{}')} threads; bold: the fastest.\n\n" + _by_case(
        result,
        "all-MiniLM-L6-v2, step of QAT",
        lambda here, name: cell(here, here[0]["work"], name, "seconds", "{:,.0f}", min, 1e3),
    )


def _by_case(
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


def qat(result: dict) -> str:
    """A line per way, for each scheme: accuracy, and what training took."""
    rows, parts = result["rows"], []
    for scheme in dict.fromkeys(row["scheme"] for row in rows):
        cost = next(row for row in rows if row["scheme"] == scheme and "steps" in row)
        parts.append(
            _pairs(rows, scheme)
            + f"\n\nTrained for {cost['steps']:,} steps on {cost['samples']:,} unlabeled sentences: "
            f"{cost['cpu_seconds']:,} seconds of CPU."
        )
    return "\n\n".join(parts) + "\n\n" + machine(result)


def _pairs(rows: list[dict], scheme: str) -> str:
    """A line per way: accuracy on each set of pairs."""
    data = [key for key, value in rows[0].items() if isinstance(value, dict)]
    lines = [
        [
            f"all-MiniLM-L6-v2, {scheme} scheme",
            *(f"{name}<br>{what}" for name in data for what in ("Spearman ×100", "cosine")),
        ]
    ]
    for row in (row for row in rows if row["scheme"] == scheme):
        lines.append(
            [
                row["name"],
                *(
                    f"{row[name][key]:{form}}"
                    for name in data
                    for key, form in (("spearman", ".3f"), ("cosine", ".5f"))
                ),
            ]
        )
    return markdown(lines)


def encoder_accuracy(result: dict) -> str:
    return (
        "Cosine: with float32's embeddings, in the mean. Compensated: `cq.compensate` first, on static's "
        "calibration.\n\n" + _pairs(result["rows"], "default") + "\n\n" + machine(result)
    )


def calibration(result: dict) -> str:
    """A line per set of samples."""
    lines = [["Static on a random BERT-base", "tokens", "seconds", "longest pause of the progress bar, s"]]
    lines += [
        [row["case"], f"{row['tokens']:,}", f"{row['seconds']:.1f}", f"{row['longest_pause']:.1f}"]
        for row in contestants(result)
    ]
    return f"With {joined(result['cards'], '{}')} threads.\n\n" + markdown(lines) + "\n\n" + machine(result)


def neighbour(result: dict) -> str:
    """A line per contestant, a column per batch and place: milliseconds."""
    rows = contestants(result)
    columns = list(dict.fromkeys((row["case"], row["work"]) for row in rows))
    lines = [["all-MiniLM-L6-v2", *(f"{case}<br>{where}" for case, where in columns)]]
    for name in dict.fromkeys(row["name"] for row in rows):
        lines.append([name, *(f"{1e3 * row['seconds']:.2f}" for row in rows if row["name"] == name)])
    return "Milliseconds.\n\n" + markdown(lines) + "\n\n" + machine(result)


def exported(result: dict) -> str:
    """A line per contestant: milliseconds for each batch and number of threads, and cosines of embeddings."""
    rows = contestants(result)
    timed = [row for row in rows if "seconds" in row]
    judged = {row["name"]: row for row in rows if row["work"] == "accuracy"}
    cases = list(dict.fromkeys(row["case"] for row in timed))
    lines = [["all-MiniLM-L6-v2", *cases, "cosine to float32", "to cq's kernels"]]
    for name in dict.fromkeys(row["name"] for row in timed):
        own = [row for row in timed if row["name"] == name]
        times = [
            " / ".join(f"{1e3 * row['seconds']:.2f}" for row in own if row["case"] == case and "seconds" in row)
            for case in cases
        ]
        found = judged.get(name, {})
        lines.append([name, *times, *(f"{found[k]:.4f}" if k in found else "" for k in ("cosine", "cosine_to_own"))])
    return (
        f"Milliseconds with {joined(result['cards'], '{}')} threads, in onnxruntime, and for comparison in cq; "
        f"embeddings of sentences of STS 2014.\n\n{markdown(lines)}\n\n{machine(result)}"
    )


def large(result: dict) -> str:
    """A line per strategy: a model of 1.5 billion parameters, quantized tensor by tensor."""
    rows = contestants(result)
    lines = [
        [
            f"{rows[0]['parameters'] / 1e9:.2f} billion parameters, {rows[0]['file_bytes'] / 1e9:.2f} GB in float32",
            "result GB",
            "seconds",
            "peak memory GB",
            "allowed GB",
            "load ms",
            "first token s",
            "a token ms",
        ]
    ]
    for row in rows:
        lines.append(
            [
                row["name"],
                *(
                    f"{row[key] / 1e9:.2f}" if key.endswith("bytes") else f"{row[key]:.1f}"
                    for key in ("result_bytes", "seconds", "peak_bytes", "allowed_bytes")
                ),
                f"{1e3 * row['load_seconds']:.0f}",
                f"{row['first_token_seconds']:.1f}",
                f"{1e3 * row['token_seconds']:.0f}",
            ]
        )
    return (
        f"`cq quantize` with {joined(result['cards'], '{}')} threads. Allowed: the result and twice the largest "
        "tensor, the "
        "interpreter included. The first token packs the weights.\n\n" + markdown(lines) + "\n\n" + machine(result)
    )


def efficiency(result: dict) -> str:
    """A line per strategy of cq: percent of the peak of its kind, and what a pass holds beside the weights."""
    rows = [row for row in contestants(result) if is_cq(row)]
    cases = list(dict.fromkeys(row["case"] for row in rows))
    lines = [["", *cases]]
    for name in dict.fromkeys(row["name"] for row in rows):
        cells = []
        for case in cases:
            here = [row for row in rows if row["name"] == name and row["case"] == case]
            memory = here[0].get("activation_bytes") if here else None
            cells.append(
                joined(row["percent_of_peak"] for row in here) + (f"<br>{memory / 1e6:.2f} MB" if memory else "")
            )
        lines.append([name, *cells])
    return (
        "Percent of the register-only peak (int8 for dynamic and static, float32 for the others) with "
        f"{joined(result['cards'], '{}')} threads, padding and all else that is not a matrix product counted as "
        "nothing; "
        "under it the most memory that a pass holds beside the weights and its float32 result.\n\n"
        + markdown(lines)
        + "\n\n"
        + machine(result)
    )


def scaling(result: dict) -> str:
    """A line per size; microseconds per token, and over the least of its column."""
    rows = contestants(result)
    names = list(dict.fromkeys(row["name"] for row in rows))
    columns = [(name, threads) for name in names for threads in by_threads(rows)]
    parts = []
    for series in dict.fromkeys(row["series"] for row in rows):
        here = [row for row in rows if row["series"] == series]
        cost = {(row["work"], row["name"], row["threads"]): 1e6 * row["seconds"] / row["tokens"] for row in here}
        least = {column: min(value for key, value in cost.items() if key[1:] == column) for column in columns}
        lines = [[series, "tokens", *(f"{name}<br>{threads} thread{'s' * (threads > 1)}" for name, threads in columns)]]
        for size, tokens in dict.fromkeys((row["work"], row["tokens"]) for row in here):
            lines.append(
                [
                    size,
                    f"{tokens:,}",
                    *(
                        f"{cost[(size, *column)]:.2f} ({cost[(size, *column)] / least[column]:.2f}×)"
                        for column in columns
                    ),
                ]
            )
        parts.append(markdown(lines))
    return (
        "Microseconds per token of all-MiniLM-L6-v2; in brackets, over the least of the column.\n\n"
        + "\n\n".join(parts)
        + "\n\n"
        + machine(result)
    )


def avx2(result: dict) -> str:
    """A line per shape: how many times faster than float32 BLAS; then the strategies over the float32 model."""
    rows = contestants(result)
    threads = joined(result["cards"], "{}")
    lines = [
        [
            "M×K×N",
            "BLAS float32<br>GFLOPS",
            "cq codes → int32<br>GOPS",
            "over BLAS",
            "cq float32, int8 inside<br>over BLAS",
        ]
    ]
    for case in dict.fromkeys(row["case"] for row in rows if row["work"] == "product"):
        here = {
            name: [row for row in rows if row["case"] == case and row["name"] == name]
            for name in ("NumPy float32", "cq matmul_integer", "cq dynamic layer")
        }
        blas, product, inside = here.values()
        lines.append(
            [
                case,
                joined(row["gops"] for row in blas),
                joined(row["gops"] for row in product),
                *(joined((row["ahead_of"]["NumPy float32"] for row in each), "{:.2f}×") for each in (product, inside)),
            ]
        )
    spread = [["codes' standard deviation", "GOPS", "percent of peak"]]
    for case in dict.fromkeys(row["case"] for row in rows if row["work"] == "spread"):
        here = [row for row in rows if row["case"] == case]
        spread.append(
            [
                str(here[0]["deviation"] or "even"),
                joined(row["gops"] for row in here),
                joined(row["percent_of_peak"] for row in here),
            ]
        )
    whole = [row for row in rows if row["work"] not in ("product", "spread")]
    passes = [["all-MiniLM-L6-v2 8×128", "ms", "over float32"]]
    for name in dict.fromkeys(row["name"] for row in whole):
        here = [row for row in whole if row["name"] == name]
        passes.append(
            [
                name,
                joined((1e3 * row["seconds"] for row in here), "{:.1f}"),
                joined((row["ahead_of"].get("cq float32", 1.0) for row in here), "{:.2f}×"),
            ]
        )
    return (
        f"With {threads} threads, cq and BLAS both held to AVX2.\n\n"
        + markdown(lines)
        + "\n\n"
        + markdown(passes)
        + "\n\nExact products of codes of different spread, 32×768×3072:\n\n"
        + markdown(spread)
        + "\n\n"
        + machine(result)
    )


def profile(result: dict) -> str:
    """A table per batch: a line per part, milliseconds and percent for each strategy."""
    report, parts = result["report"], []
    for shape in dict.fromkeys(tuple(row["shape"]) for row in report["rows"]):
        rows = [row for row in report["rows"] if tuple(row["shape"]) == shape]
        lines = [
            ["×".join(map(str, shape)), *(head for row in rows for head in (f"{row['name']}<br>ms", "% of<br>pass"))]
        ]
        found = [{part["name"]: part for part in row["profile"]["parts"]} for row in rows]
        for name in dict.fromkeys(name for each in found for name in each):
            there = [each.get(name) for each in found]
            lines.append(
                [
                    name,
                    *(
                        text
                        for part in there
                        for text in ((f"{1e3 * part['seconds']:.3f}", f"{part['percent']:.1f}") if part else ("–", "–"))
                    ),
                ]
            )
        lines.append(
            ["together", *(text for row in rows for text in (f"{1e3 * row['profile']['seconds']:.3f}", "100"))]
        )
        lines.append(
            [
                "a pass that nobody watches",
                *(text for row in rows for text in (f"{1e3 * row['profile']['forward_s']:.3f}", "")),
            ]
        )
        parts.append(markdown(lines))
    return (
        f"One forward pass of {report['model']} by parts, {report['machine']['threads']} thread(s), as "
        f"`{result['cq']}` shows it.\n\n" + "\n\n".join(parts) + "\n\n" + machine(result)
    )


def comparison(result: dict) -> str:
    """The report as `cq compare --markdown` writes it, without its title."""
    return _report(result).to_markdown().split("\n\n", 1)[1].rstrip("\n")


def _report(result: dict) -> Report:
    report = dict(result["report"])
    rows = [row | {"sqnr_db": math.inf} if row["sqnr_db"] is None else row for row in report["rows"]]
    report |= {"rows": tuple(Row(**row) for row in rows), "metrics": tuple(report["metrics"])}
    return Report(**report)


def draw(results: Path, path: Path) -> None:
    """The README's picture: a comparison by the cosine with float32's embeddings."""
    plot(replace(_report(_result(results)), metrics=("cosine",)), path)


def _decibels(rows: list[dict], case: str, name: str) -> str:
    found = next(row["sqnr_db"] for row in rows if row["case"] == case and row["name"] == name)
    return "∞" if found is None else f"{found:.1f}"


def _padding(padding) -> str:
    return f"{padding:,} more tokens" if isinstance(padding, int) else padding


class Table(NamedTuple):
    """How a suite's result is shown. title: of its section among a machine's tables; "" for what only the README has.
    lead: what a reader must know first."""

    title: str
    suite: str
    make: Callable[[dict], str]
    lead: str = ""


TABLES = {
    "gemm": Table("Matrix products", "gemm", products.gemm),
    "speedup": Table("Two threads over one, products", "gemm", products.speedup),
    "model": Table("all-MiniLM-L6-v2", "model", model),
    "speed": Table("", "model", speed),
    "stream": Table("all-MiniLM-L6-v2 on real sentences", "model", stream),
    "efficiency": Table("all-MiniLM-L6-v2, percent of the peak", "model", efficiency),
    "profile": Table("all-MiniLM-L6-v2, part by part", "profile", profile),
    "scaling": Table("What grows with what", "scaling", scaling),
    "neighbour": Table("Beside a busy process", "neighbour", neighbour, NEIGHBOUR),
    "avx2": Table("AVX2 alone", "avx2", avx2),
    "float32": Table("float32 products", "float32", products.floats),
    "encoder_accuracy": Table("all-MiniLM-L6-v2, accuracy", "encoder_accuracy", encoder_accuracy),
    "compare_minilm": Table("`cq compare` of all-MiniLM-L6-v2", "compare_minilm", comparison, MINILM),
    "compare_shakespeare": Table("`cq compare` of the bundled model", "compare_shakespeare", comparison),
    "lm": Table("SmolLM2-135M", "lm", lm, LM),
    "lm_accuracy": Table("SmolLM2-135M, accuracy", "lm_accuracy", lm_accuracy),
    "lm_greedy": Table("SmolLM2-135M, greedy texts", "lm_accuracy", lm_greedy),
    "generate": Table("SmolLM2-135M, generation", "generate", generate),
    "large": Table("A model larger than memory allows in float32", "large", large),
    "onnx": Table("all-MiniLM-L6-v2 exported to ONNX", "onnx", exported),
    "calibration": Table("Calibration", "calibration", calibration),
    "train": Table("A step of training", "train", train),
    "qat": Table("Quantization-aware training of all-MiniLM-L6-v2", "qat", qat),
}

if __name__ == "__main__":
    sys.exit(main())
