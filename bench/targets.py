"""The yardsticks: what the design aims at, beside what the benchmarks found on one machine. A row that is missed says
so. Measures nothing.

    python bench/targets.py MACHINE        prints those of a folder of bench/results as JSON
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import targets_models
import targets_products
from render import markdown
from yardstick import Yardstick

RESULTS = Path(__file__).resolve().parent / "results"
# suite → its yardsticks
OF_SUITE = {
    "gemm": targets_products.of_gemm,
    "float32": targets_products.of_floats,
    "avx2": targets_products.of_avx2,
    "model": targets_models.of_model,
    "scaling": targets_products.of_scaling,
    "neighbour": targets_models.of_neighbour,
    "lm": targets_models.of_lm,
    "lm_accuracy": targets_models.of_lm_accuracy,
    "lm_qat": targets_models.of_lm_qat,
    "encoder_accuracy": targets_models.of_encoder,
    "compare_minilm": targets_models.of_mix,
    "compare_shakespeare": targets_models.of_shipped,
    "qat": targets_models.of_qat,
    "train": targets_models.of_train,
    "calibration": targets_models.of_calibration,
}


def yardsticks(results: dict[str, dict]) -> list[Yardstick]:
    """Of a machine's results by suite."""
    return [row for suite, of in OF_SUITE.items() if suite in results for row in of(results[suite])]


def table(results: dict[str, dict]) -> str:
    """A line per yardstick, then what was lost."""
    rows = yardsticks(results)
    lines = [["", "target", "measured", ""]]
    lines += [
        [
            row.work,
            row.target,
            "<br>".join(_threads(each) + f": {words}" for each, words in row.measured.items()) or "–",
            row.verdict(),
        ]
        for row in rows
    ]
    lost = [
        f"{row.work}, {_threads(each)}: {', '.join(cases)}" for row in rows for each, cases in row.lost.items() if cases
    ]
    met = sum(row.verdict() == "met" for row in rows)
    text = f"{met} of {len(rows)} met.\n\n" + markdown(lines, "---")
    if lost:
        cases = "\n".join(f"- {line}" for line in lost)
        text += f"\n\n<details markdown><summary>The cases that miss</summary>\n\n{cases}\n\n</details>"
    return text


def _threads(count: str) -> str:
    return f"{count} thread{'' if count == '1' else 's'}"


if __name__ == "__main__":
    files = (RESULTS / sys.argv[1]).glob("*.json")
    given = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files}
    json.dump([asdict(row) for row in yardsticks(given)], sys.stdout, indent=1, ensure_ascii=False)
