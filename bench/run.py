"""Runs benchmarks and leaves their numbers as JSON in the folder of this machine, with its card and this command.
Writes no Markdown.

    python bench/run.py --missing            what this machine has not measured yet, and how long that takes
    python bench/run.py --only gemm model    these suites
    python bench/run.py --isa avx2 …         with cq, BLAS and the peers held to an instruction set

Each number of threads gets its own process, because BLAS reads its own only at start. Needs the extras of
cquant[bench] and the data for models, and cores that have nothing else to do. Then `python bench/tables.py`.
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
from render import machine_slug

# suite → minutes on two cores of some 3 GHz, all numbers of threads together
SUITES = {
    "gemm": 12,
    "float32": 8,
    "avx2": 6,
    "model": 12,
    "scaling": 2,
    "calibration": 2,
    "preparation": 15,
    "neighbour": 2,
    "encoder_accuracy": 6,
    "ranks": 4,
    "train": 3,
    "lm": 8,
    "lm_accuracy": 30,
    "lm_qat": 45,
    "outlier_tokens": 4,
    "generate": 4,
    "onnx": 2,
    "large": 6,
    "qat": 40,
}
REPORTS = {"compare": 8, "profile": 1}
FILES = {"compare": ("compare_shakespeare", "compare_minilm")}  # of what has not one of its own name
ONE_ISA = {"avx2": "avx2"}  # suites of one instruction set
# suites whose figures depend on the instruction set
HELD = ("gemm", "float32", "avx2", "model", "lm", "scaling")
# what holds cq, OpenBLAS, oneDNN (in torch and OpenVINO), CTranslate2, MKL and torch's own kernels to an instruction
# set; peers that choose for themselves stay away (peers/__init__.py)
LIMITS = {
    "avx2": {
        "CQ_ISA": "avx2",
        "OPENBLAS_CORETYPE": "Haswell",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "CT2_FORCE_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "ATEN_CPU_CAPABILITY": "avx2",
    },
    "avx512bw": {
        "CQ_ISA": "avx512bw",
        "OPENBLAS_CORETYPE": "SkylakeX",
        "ONEDNN_MAX_CPU_ISA": "AVX512_CORE",
        "CT2_FORCE_CPU_ISA": "AVX512",
        "MKL_ENABLE_INSTRUCTIONS": "AVX512",
        "ATEN_CPU_CAPABILITY": "avx512",
    },
}
LIMITS["avx512vnni"] = LIMITS["avx512bw"] | {
    "CQ_ISA": "avx512vnni",
    "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI",
    "MKL_ENABLE_INSTRUCTIONS": "AVX512_E1",
}
LIMITS["avxvnni"] = LIMITS["avx2"] | {"CQ_ISA": "avxvnni", "ONEDNN_MAX_CPU_ISA": "AVX2_VNNI"}
# how the names of a peer's rows begin → its package
PACKAGES = {
    "onnxruntime": "onnxruntime",
    "OpenVINO": "openvino",
    "CTranslate2": "ctranslate2",
    "torch": "torch",
    "llama.cpp": "llama-cpp-python",
}
# suites of one run, with the most threads
ONCE = (
    "calibration",
    "preparation",
    "neighbour",
    "encoder_accuracy",
    "ranks",
    "lm_accuracy",
    "lm_qat",
    "outlier_tokens",
    "large",
    "qat",
)
PROFILED = ("--strategy", "dynamic", "--strategy", "static", "--shape", "8x128", "--shape", "1x16")
MIX_BUDGET = 0.1  # of Spearman ×100
LOW_PEAK = 0.9  # of the best one of a run


def main() -> int:
    every = SUITES | REPORTS
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], metavar="N", help="[default: 1 2]")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results", help="[default: bench/results]")
    parser.add_argument("--isa", choices=tuple(LIMITS), help="[default: the best that cq has here]")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--only", nargs="+", choices=tuple(every))
    which.add_argument("--missing", action="store_true")
    options = parser.parse_args()
    os.chdir(ROOT)
    isa = options.isa or card(options.threads[0])["isa"]
    os.environ.update(LIMITS.get(isa, {}))
    machine = card(options.threads[0])
    out = options.out.resolve() / machine_slug(machine)
    wanted = missing(out, isa, HELD if options.isa else tuple(every)) if options.missing else options.only
    for file in (out / f"{name}.json" for suite in wanted for name in FILES.get(suite, (suite,))):
        if gone := peers_gone(file, machine):
            parser.error(f"{file.name} was measured beside {', '.join(gone)}, which would be lost: install them first")
    print(f"{', '.join(wanted) or 'nothing'}: some {sum(every[name] for name in wanted)} minutes", flush=True)
    out.mkdir(parents=True, exist_ok=True)
    command = shlex.join(["python", "bench/run.py", *sys.argv[1:]])
    for suite in wanted:
        if suite not in REPORTS:
            threads = [max(options.threads)] if suite in ONCE else options.threads
            save(out / f"{suite}.json", {"command": command} | run_suite(suite, threads))
    calibration = ["--calibration", minilm.CALIBRATION]
    if "compare" in wanted:
        report = run_cq(["compare"], options.threads[0], "shakespeare")
        save(out / "compare_shakespeare.json", {"command": command} | report)
        with tempfile.TemporaryDirectory() as folder:
            record = mixed(Path(folder), calibration, options.threads[0])
            report = run_cq(
                ["compare", minilm.folder(), "--data", minilm.EVALUATION, *calibration, "--mix", record],
                options.threads[0],
            )
        save(out / "compare_minilm.json", {"command": command} | report)
    if "profile" in wanted:
        report = run_cq(["bench", minilm.folder(), "--profile", *PROFILED, *calibration], options.threads[0])
        save(out / "profile.json", {"command": command} | report)
    return 0


def missing(out: Path, isa: str, suites: tuple[str, ...]) -> list[str]:
    """Those of the suites that the machine's folder has no file of, but for those of another instruction set."""
    return [
        suite
        for suite in suites
        if ONE_ISA.get(suite, isa) == isa
        and not all((out / f"{name}.json").exists() for name in FILES.get(suite, (suite,)))
    ]


def peers_gone(file: Path, machine: dict) -> list[str]:
    """Packages of peers that a result has rows of, where there is a result, and that are not installed now."""
    rows = json.loads(file.read_text()).get("rows", ()) if file.exists() else ()
    return sorted(
        package
        for peer, package in PACKAGES.items()
        if package not in machine["versions"] and any(row["name"].startswith(peer) for row in rows)
    )


def card(threads: int) -> dict:
    """The card of a process with so many threads."""
    found = subprocess.run(
        [sys.executable, "bench/card.py"], env=environment(threads), check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(found.stdout)


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
                    f"bench/test_{suite}.py",
                    "--benchmark-json",
                    str(file),
                    "--benchmark-columns=median,rounds",
                ],
                env=environment(threads),
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
    subprocess.run([sys.executable, "-m", "cq", *map(str, arguments)], env=environment(threads), check=True)
    return record


def run_cq(arguments: list, threads: int, model: str = "all-MiniLM-L6-v2") -> dict:
    """The report of a command of cq, under the name of its model."""
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "report.json"
        cq = [sys.executable, "-m", "cq", *map(str, arguments)]
        subprocess.run([*cq, "--json", str(found)], env=environment(threads), check=True)
        report = json.loads(found.read_text())
    report["model"] = model
    shown = [
        argument if not isinstance(argument, Path) else model if argument.is_dir() else argument.name
        for argument in arguments
    ]
    return {"cq": shlex.join(["cq", *map(str, shown)]), "cards": {str(threads): card(threads)}, "report": report}


def save(path: Path, result: dict) -> None:
    """Whole or not at all."""
    unfinished = path.with_suffix(".part")
    unfinished.write_text(one_row_a_line(result), encoding="utf-8")
    unfinished.replace(path)
    print(f"wrote {os.path.relpath(path)}", flush=True)


def one_row_a_line(result: dict) -> str:
    """JSON in which each card, each row and each part of a report has a line of its own."""

    def lines(value: dict | list, depth: int) -> str:
        keyed = isinstance(value, dict)
        parts = []
        for key, each in value.items() if keyed else ((None, each) for each in value):
            rows = keyed and isinstance(each, list) and bool(each) and isinstance(each[0], dict)
            opens = rows or (depth == 0 and isinstance(each, dict))
            text = lines(each, depth + 1) if opens and depth < 2 else json.dumps(each, ensure_ascii=False)
            parts.append(f"{json.dumps(key, ensure_ascii=False)}: {text}" if keyed else text)
        start, end = "{}" if keyed else "[]"
        return f"{start}\n" + ",\n".join(parts) + f"\n{end}"

    return lines(result, 0) + "\n"


if __name__ == "__main__":
    sys.exit(main())
