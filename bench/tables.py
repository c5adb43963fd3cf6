"""Writes the pages' tables from the JSON of `python bench/run.py`, between their markers. Measures nothing, rounds
only.

    python bench/tables.py
"""

import json
import math
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import products
import tables_encoder
import tables_lm
import targets
from render import machine_slug

from cq.report.plot import plot
from cq.report.record import Report, Row

ROOT = Path(__file__).resolve().parent.parent
PAGES, RESULTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ROOT / "bench" / "results"
# <!-- table:NAME MACHINE -->, a table of one suite, or <!-- machines -->, all tables of all machines
MARKED = re.compile(r"(<!-- (?:table:(\S+) (\S+)|(machines)) -->\n)(.*?)(<!-- /(?:table|machines) -->)", re.S)
PICTURE = "intel-6-167-avx512vnni/compare_minilm.json"
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
    sources = [folder / f"{suite}.json" for suite in (TABLES[name].suite, *TABLES[name].beside)]
    results = [_result(source) for source in sources]
    made = "; ".join(
        f"`bench/results/{folder.name}/{source.name}`, made by `{result['command']}`"
        for source, result in zip(sources, results)
    )
    return f"{TABLES[name].make(*results)}  \nNumbers: {made}."


def _result(path: Path) -> dict:
    if not path.exists():
        raise FileNotFoundError(f"no {path.name} in {path.parent.name}: run python bench/run.py first")
    return json.loads(path.read_text(encoding="utf-8"))


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


class Table(NamedTuple):
    """How a suite's result is shown. title: of its section among a machine's tables; "" for what only the README has.
    lead: what a reader must know first. beside: other suites whose results it shows."""

    title: str
    suite: str
    make: Callable[..., str]
    lead: str = ""
    beside: tuple[str, ...] = ()


TABLES = {
    "gemm": Table("Matrix products", "gemm", products.gemm),
    "speedup": Table("Two threads over one, products", "gemm", products.speedup),
    "model": Table("all-MiniLM-L6-v2", "model", tables_encoder.model),
    "speed": Table("", "model", tables_encoder.speed),
    "stream": Table("all-MiniLM-L6-v2 on real sentences", "model", tables_encoder.stream),
    "efficiency": Table("all-MiniLM-L6-v2, percent of the peak", "model", tables_encoder.efficiency),
    "profile": Table("all-MiniLM-L6-v2, part by part", "profile", tables_encoder.profile),
    "scaling": Table("What grows with what", "scaling", tables_encoder.scaling),
    "neighbour": Table("Beside a busy process", "neighbour", tables_encoder.neighbour, NEIGHBOUR),
    "avx2": Table("AVX2 alone", "avx2", products.avx2),
    "float32": Table("float32 products", "float32", products.floats),
    "encoder_accuracy": Table("all-MiniLM-L6-v2, accuracy", "encoder_accuracy", tables_encoder.encoder_accuracy),
    "ranks": Table("A cross-encoder's ranks", "ranks", tables_encoder.ranks),
    "compare_minilm": Table("`cq compare` of all-MiniLM-L6-v2", "compare_minilm", comparison, MINILM),
    "compare_shakespeare": Table("`cq compare` of the bundled model", "compare_shakespeare", comparison),
    "lm": Table("SmolLM2-135M", "lm", tables_lm.lm, LM),
    "language": Table("", "lm_accuracy", tables_lm.language, beside=("lm_qat", "lm")),
    "lm_accuracy": Table("SmolLM2-135M, accuracy", "lm_accuracy", tables_lm.lm_accuracy),
    "lm_qat": Table("SmolLM2-135M after QAT", "lm_qat", tables_lm.lm_qat),
    "lm_long": Table("SmolLM2-135M, long windows", "lm_accuracy", tables_lm.lm_long),
    "lm_greedy": Table("SmolLM2-135M, greedy texts", "lm_accuracy", tables_lm.lm_greedy),
    "outlier_tokens": Table("Decoders with an outlier token", "outlier_tokens", tables_lm.outlier_tokens),
    "generate": Table("SmolLM2-135M, generation", "generate", tables_lm.generate),
    "large": Table("A model larger than memory allows in float32", "large", tables_lm.large),
    "onnx": Table("all-MiniLM-L6-v2 exported to ONNX", "onnx", tables_encoder.exported),
    "calibration": Table("Calibration", "calibration", tables_encoder.calibration),
    "preparation": Table("Preparing a decoder", "preparation", tables_lm.preparation),
    "train": Table("A step of training", "train", tables_encoder.train),
    "qat": Table("Quantization-aware training of all-MiniLM-L6-v2", "qat", tables_encoder.qat),
}

if __name__ == "__main__":
    sys.exit(main())
