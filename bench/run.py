"""Runs every benchmark and leaves its numbers as JSON, with the machine's card and this command. Writes no Markdown.

    python bench/run.py [--threads 1 2] [--out bench/results] [--only gemm model lm lm_accuracy …]

Each number of threads gets its own process, because BLAS reads its own only at start. Needs the extras of
cquant[bench], and the STS data for models; some 40 minutes on two cores, which should have nothing else to do. qat
trains for half an hour, with the last number of threads, and only where it is named. Then `python bench/tables.py`.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import minilm
from card import ROOT, environment

AVX2 = {"CQ_ISA": "avx2", "OPENBLAS_CORETYPE": "Haswell"}
SUITES = {
    "gemm": {},
    "float32": {},
    "float32_avx2": AVX2,
    "model": {},
    "scaling": {},
    "avx2": AVX2,
    "calibration": {},
    "neighbour": {},
    "encoder_accuracy": {},
    "train": {},
    "lm": {},
    "lm_accuracy": {},
    "generate": {},
    "large": {},
    "qat": {},
}  # and variables
LONG = ("qat",)
FILES = {"float32_avx2": "float32"}  # suites that another one's file makes
# suites of one run, with the most threads
ONCE = ("calibration", "neighbour", "encoder_accuracy", "lm_accuracy", "large", "qat")
REPORTS = ("compare", "profile")
PROFILED = ("--strategy", "dynamic", "--strategy", "static", "--shape", "8x128", "--shape", "1x16")
MIX_BUDGET = 0.1  # of Spearman ×100
LOW_PEAK = 0.9  # of the best one of a run


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], metavar="N")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results")
    usual = [name for name in (*SUITES, *REPORTS) if name not in LONG]
    parser.add_argument("--only", nargs="+", choices=(*SUITES, *REPORTS), default=usual)
    options = parser.parse_args()
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    os.chdir(ROOT)
    command = shlex.join(["python", "bench/run.py", *sys.argv[1:]])
    for suite in SUITES:
        if suite in options.only:
            threads = [max(options.threads)] if suite in ONCE else options.threads
            save(out / f"{suite}.json", {"command": command} | run_suite(suite, threads))
    calibration = ["--calibration", minilm.CALIBRATION]
    if "compare" in options.only:
        report = run_cq(["compare"], options.threads[0], "shakespeare")
        save(out / "compare_shakespeare.json", {"command": command} | report)
        with tempfile.TemporaryDirectory() as folder:
            record = mixed(Path(folder), calibration, options.threads[0])
            report = run_cq(
                ["compare", minilm.folder(), "--data", minilm.EVALUATION, *calibration, "--mix", record],
                options.threads[0],
            )
        save(out / "compare_minilm.json", {"command": command} | report)
    if "profile" in options.only:
        report = run_cq(["bench", minilm.folder(), "--profile", *PROFILED, *calibration], options.threads[0])
        save(out / "profile.json", {"command": command} | report)
    return 0


def run_suite(suite: str, thread_counts: list[int]) -> dict:
    """Cards by number of threads, and all rows."""
    cards, rows = {}, []
    for threads in thread_counts:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "benchmark.json"
            subprocess.run(
                [
                    sys.executable,
                    "-m",
                    "pytest",
                    "-rs",
                    "-o",
                    "timeout=0",
                    f"bench/test_{FILES.get(suite, suite)}.py",
                    "--benchmark-json",
                    str(file),
                    "--benchmark-columns=median,rounds",
                ],
                env=environment(threads) | SUITES[suite],
                check=True,
            )
            result = json.loads(file.read_text())
        found = [row for benchmark in result["benchmarks"] for row in benchmark["extra_info"]["rows"]]
        if not found:
            sys.exit(f"run: nothing was measured for {suite}; the test says above why")
        warn_of_disturbance(found)
        cards[str(threads)], rows = result["machine_info"]["card"], rows + found
    return {"cards": cards, "rows": rows}


def warn_of_disturbance(rows: list[dict]) -> None:
    """Tells of cases whose register-only peak is low: somebody else had the cores."""
    peaks = [row for row in rows if row["work"] == "peak" and row["kind"] == "int8"]
    best = max((row["gops"] for row in peaks), default=0)
    low = [f"{row['case']} ({row['gops'] / best:.0%})" for row in peaks if row["gops"] < LOW_PEAK * best]
    if low:
        print(
            f"run: busy machine, measure again: the peak was below {best:,.0f} GOPS in {', '.join(low)}",
            file=sys.stderr,
        )


def mixed(folder: Path, calibration: list[str], threads: int) -> Path:
    """The record of a mix of strategies, chosen on other data than what is reported."""
    record = folder / "mix.json"
    arguments = [
        "quantize",
        minilm.folder(),
        folder / "mixed.safetensors",
        "--strategy",
        "mixed",
        "--data",
        minilm.DEVELOPMENT,
        *calibration,
        "--budget",
        MIX_BUDGET,
        "--record",
        record,
    ]
    subprocess.run(
        [sys.executable, "-c", "from cq.cli import main; main()", *map(str, arguments)],
        env=environment(threads),
        check=True,
    )
    return record


def run_cq(arguments: list, threads: int, model: str = "all-MiniLM-L6-v2") -> dict:
    """The report of a command of cq, under the name of its model."""
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "report.json"
        cq = [sys.executable, "-c", "from cq.cli import main; main()", *map(str, arguments)]
        subprocess.run([*cq, "--json", str(found)], env=environment(threads), check=True)
        report = json.loads(found.read_text())
    report["model"] = model
    shown = [
        argument if not isinstance(argument, Path) else model if argument.is_dir() else argument.name
        for argument in arguments
    ]
    card = json.loads(
        subprocess.run(
            [sys.executable, "bench/card.py"], env=environment(threads), check=True, stdout=subprocess.PIPE, text=True
        ).stdout
    )
    return {"cq": shlex.join(["cq", *map(str, shown)]), "cards": {str(threads): card}, "report": report}


def save(path: Path, result: dict) -> None:
    """Whole or not at all."""
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    unfinished.replace(path)
    print(f"wrote {os.path.relpath(path)}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
