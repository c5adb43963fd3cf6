"""The yardsticks: what the design aims at, beside what the benchmarks found. A row that is missed says so. Measures
nothing.

    python bench/targets.py        prints them as JSON
"""

import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from products import large, sizes
from render import ahead, best_of, by_threads, contestants, is_cq, machine, markdown

RESULTS = Path(__file__).resolve().parent / "results"
SOURCES = (
    "gemm",
    "model",
    "scaling",
    "avx2",
    "lm",
    "lm_accuracy",
    "encoder_accuracy",
    "compare_minilm",
    "compare_shakespeare",
    "qat",
    "train",
    "float32",
    "float32_avx2",
    "calibration",
    "neighbour",
)
INT8 = ("codes → int32", "codes → float32", "codes → codes", "float32, int8 inside")
PRODUCT, WEIGHT_ONLY = INT8[0], "float32"
INT8_STREAM = "cq static, int8 stream"
FAST = ("cq dynamic", "cq static", INT8_STREAM)  # what the model's rows are about: the fastest of them
STREAM, MANY = "stream of sentences", ("8×128", "32×64", "16×256", "32 sentences", "stream of sentences")


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


def yardsticks(
    gemm: dict,
    model: dict,
    scaling: dict,
    avx2: dict,
    lm: dict,
    lm_accuracy: dict,
    encoder: dict,
    minilm: dict,
    shipped: dict,
    qat: dict,
    train: dict,
    float32: dict,
    float32_avx2: dict,
    calibration: dict,
    neighbour: dict,
) -> list[Yardstick]:
    """All rows, from the results that SOURCES name."""
    products = [row for row in contestants(gemm) if is_cq(row)]
    many = [row for row in products if row["work"] == PRODUCT and sizes(row)[0] >= 128]
    single = [row for row in products if row["work"] == PRODUCT and sizes(row)[0] == 1]
    floats = [row for row in products if row["work"] == WEIGHT_ONLY]
    rows = [
        _every(
            "int8 product, 128 rows and more: percent of peak",
            "≥ 97 on every shape",
            many,
            lambda row: row["percent_of_peak"],
            97,
            "{:.1f}",
        )
    ]
    rows += [
        _every(
            f"{work}: the best peer's time over cq's",
            "≥ 1 on every shape",
            [row for row in products if row["work"] == work],
            ahead,
            1,
            "{:.2f}",
        )
        for work in INT8
    ]
    rows += [
        _one(
            "int8 product 8×768×3072, GOPS",
            {1: 400, 2: 760},
            _case(products, "8×768×3072", PRODUCT),
            lambda row: row["gops"],
        ),
        _one(
            "int8 product 1×4096×4096, percent of read bandwidth", 90, _case(products, "1×4096×4096", PRODUCT), _of_read
        ),
        _every("int8 product, 1 row: percent of read bandwidth", "≥ 90 on every shape", single, _of_read, 90, "{:.1f}"),
        _every(
            "weight-only, 1 row: float32 BLAS's time over cq's",
            "≥ 3.5 on every shape",
            [row for row in floats if sizes(row)[0] == 1],
            ahead,
            3.5,
            "{:.2f}",
        ),
        _every(
            "weight-only, 128 rows and more: float32 BLAS's time over cq's",
            "≥ 1 on every shape",
            [row for row in floats if sizes(row)[0] >= 128],
            ahead,
            1,
            "{:.2f}",
        ),
    ]
    return (
        rows
        + _of_model(model)
        + _of_two_threads(gemm, model)
        + _of_scaling(scaling)
        + _of_avx2(avx2)
        + _of_lm(lm)
        + _of_lm_accuracy(lm_accuracy)
        + _of_encoder(encoder)
        + _of_mix(minilm)
        + _of_qat(qat)
        + [
            _every(
                "MiniLM-L6, a step of QAT: torch's time over cq's",
                "≥ 1.2 on every batch",
                [row for row in contestants(train) if is_cq(row)],
                ahead,
                1.2,
                "{:.2f}",
            )
        ]
        + _of_shipped(shipped)
        + _of_floats("AVX-512", float32)
        + _of_floats("AVX2", float32_avx2)
        + _of_calibration(calibration)
        + _of_neighbour(neighbour)
    )


def _of_floats(isa: str, floats: dict) -> list[Yardstick]:
    rows = [row for row in contestants(floats) if is_cq(row)]
    of_weights = [row for row in rows if row["work"] == "x wᵀ"]
    of_gradients = [row | {"case": f"{row['case']} {row['work']}"} for row in rows if row["work"] != "x wᵀ"]
    return [
        _every(
            f"float32 products {what}, {isa}: BLAS's time over cq's", "≥ 1 on every shape", there, ahead, 1, "{:.2f}"
        )
        for what, there in (("with packed weights, 8 rows and more", of_weights), ("of gradients", of_gradients))
    ]


def _of_calibration(calibration: dict) -> list[Yardstick]:
    rows = {row["samples"]: row for row in contestants(calibration)}
    return [
        _as_measured(row)
        for row in (
            _one(
                "Static on BERT-base, 100 samples of 64 tokens, seconds",
                20,
                [rows[100]] if rows else [],
                lambda row: row["seconds"],
                "{:.1f}",
                at_most=True,
            ),
            _one(
                "Static on BERT-base, 500 samples, times 100 samples' seconds",
                4,
                [rows[500]] if rows else [],
                lambda row: row["seconds"] / rows[100]["seconds"],
                "{:.2f}",
                at_most=True,
            ),
        )
    ]


def _of_neighbour(neighbour: dict) -> list[Yardstick]:
    """The rows of two threads, each beside that of one."""
    seconds = {(row["case"], row["work"], row["name"]): row["seconds"] for row in contestants(neighbour)}
    rows = [
        {
            "case": f"{case} {name.removesuffix(', 2 threads')}",
            "threads": 2,
            "over": spent / seconds[case, where, name.replace("2 threads", "1 thread")],
        }
        for (case, where, name), spent in seconds.items()
        if where != "alone" and name.endswith("2 threads")
    ]
    found = _every(
        "MiniLM-L6 beside a busy process: two threads' time over one's",
        "≤ 1.1 on every batch",
        rows,
        lambda row: row["over"],
        1.1,
        "{:.2f}",
        at_most=True,
    )
    return [replace(found, threads=("2",))]


def _of_model(model: dict) -> list[Yardstick]:
    rows = contestants(model)
    fastest = {
        case: [
            best
            for there in by_threads([row for row in rows if row["case"] == case]).values()
            if (best := best_of(there, FAST))
        ]
        for case in ("8×128", "1×16", STREAM)
    }
    milliseconds = lambda row: 1e3 * row["seconds"]
    return [
        _one("MiniLM-L6 8×128, ms", {1: 58, 2: 31}, fastest["8×128"], milliseconds, "{:.1f}", at_most=True),
        _one("MiniLM-L6 8×128: the best peer's time over cq's", 1.5, fastest["8×128"], ahead, "{:.2f}"),
        _one("MiniLM-L6 8×128, percent of peak", 75, fastest["8×128"], lambda row: row["percent_of_peak"], "{:.1f}"),
        _one("MiniLM-L6 1×16, ms", {1: 1.0, 2: 0.7}, fastest["1×16"], milliseconds, "{:.2f}", at_most=True),
        _one("MiniLM-L6 1×16: the best peer's time over cq's", 1.6, fastest["1×16"], ahead, "{:.2f}"),
        _one(
            "MiniLM-L6 on real sentences as they come, sentences per second",
            {1: 1000, 2: 1900},
            fastest[STREAM],
            lambda row: row["sequences"] / row["seconds"],
            "{:,.0f}",
        ),
        _one(
            "MiniLM-L6 on real sentences: the best peer's time, in its best order, over cq's",
            1.7,
            fastest[STREAM],
            ahead,
            "{:.2f}",
        ),
        *(
            _every(
                f"{slow}'s time over {fast}'s, 8 sequences and more",
                "> 1 on every batch",
                [row for row in rows if row["case"] in MANY and row["name"] == f"cq {fast}"],
                lambda row, slow=slow: row["ahead_of"][f"cq {slow}"],
                1.001,
                "{:.3f}",
            )  # three digits: more than 1
            for fast, slow in (("static", "dynamic"), ("dynamic", "weight-only"))
        ),
        _one(
            "static's activation memory, all in int8, over float32's, 8×128",
            0.25,
            _memory(rows, INT8_STREAM, "cq float32"),
            lambda row: row["share"],
            "{:.2f}",
            at_most=True,
        ),
        _one(
            "static's activation memory over dynamic's, 8×128",
            1,
            _memory(rows, "cq static", "cq dynamic"),
            lambda row: row["share"],
            "{:.2f}",
            at_most=True,
        ),
    ]


def _of_two_threads(gemm: dict, model: dict) -> list[Yardstick]:
    found = []
    for what, ratios in zip(("products of 128 rows and more", "MiniLM-L6 8×128, 32×64, 16×256"), large(gemm, model)):
        rows = [
            {"case": f"{case} ({name if name in FAST else work})", "threads": 2, "ratio": ratio}
            for (case, work, name), ratio in ratios.items()
            if name in FAST or work in INT8
        ]
        all_of = _every(
            f"two threads over one, int8 {what}",
            "≥ 1.85 on every shape",
            rows,
            lambda row: row["ratio"],
            1.85,
            "{:.2f}",
        )
        found.append(replace(all_of, threads=("2",)))
    return found


def _of_scaling(scaling: dict) -> list[Yardstick]:
    rows = [row for row in contestants(scaling) if row["tokens"] >= 256]
    cost = lambda row: row["seconds"] / row["tokens"]
    found = []
    for row in rows:
        same = [cost(each) for each in rows if (each["name"], each["threads"]) == (row["name"], row["threads"])]
        found.append(
            {"case": f"{row['work']} ({row['name']})", "threads": row["threads"], "over": cost(row) / min(same)}
        )
    return [
        _every(
            "cost of a token, 256 to 4,096 of them, over the least",
            "≤ 1.1 at every size",
            found,
            lambda row: row["over"],
            1.1,
            "{:.2f}",
            at_most=True,
        )
    ]


def _of_avx2(avx2: dict) -> list[Yardstick]:
    rows = [row for row in contestants(avx2) if is_cq(row)]
    over_blas = lambda row: row["ahead_of"]["NumPy float32"]
    named = {"exact int8 product": "cq matmul_integer", "float32 in and out, int8 inside": "cq dynamic layer"}
    found = [
        _every(
            f"AVX2 alone, {what}: float32 BLAS's time over cq's",
            "≥ 1.4 on every shape",
            [row for row in rows if row["name"] == name and row["work"] == "product"],
            over_blas,
            1.4,
            "{:.2f}",
        )
        for what, name in named.items()
    ]
    fastest = [best for there in by_threads(rows).values() if (best := best_of(there, FAST))]
    return found + [
        _one(
            "AVX2 alone, MiniLM-L6 8×128: float32's time over cq's",
            1.4,
            fastest,
            lambda row: row["ahead_of"]["cq float32"],
            "{:.2f}",
        )
    ]


def _of_lm(lm: dict) -> list[Yardstick]:
    rows = contestants(lm)
    prefill, decode = (
        [
            best
            for there in by_threads([row for row in rows if row["work"] == work and is_cq(row)]).values()
            if (best := best_of(there, names))
        ]
        for work, names in (("prefill", FAST), ("decode", ("cq weight-only", *FAST)))
    )
    over = lambda peer: lambda row: row["ahead_of"].get(peer)
    return [
        _one(
            "SmolLM2-135M prefill of 512, tokens per second",
            {1: 1400, 2: 2600},
            prefill,
            lambda row: row["tokens"] / row["seconds"],
            "{:,.0f}",
        ),
        _one(
            "SmolLM2-135M prefill of 512: CTranslate2's time over cq's", 2, prefill, over("CTranslate2 int8"), "{:.2f}"
        ),
        _one("SmolLM2-135M prefill of 512: llama.cpp's time over cq's", 4, prefill, over("llama.cpp Q8_0"), "{:.2f}"),
        _one("SmolLM2-135M decode: llama.cpp's time over cq's", 1.3, decode, over("llama.cpp Q8_0"), "{:.2f}"),
        _one("SmolLM2-135M decode, percent of read bandwidth", 85, decode, _of_read),
    ]


def _of_lm_accuracy(lm_accuracy: dict) -> list[Yardstick]:
    every = contestants(lm_accuracy)
    rows, texts = ({row["name"]: row for row in every if row["work"] == work} for work in ("accuracy", "greedy"))
    mixed = "cq static", "cq static, rotated", "cq mix, rotated", "cq mix, compensated"

    def over(base: str) -> Callable:
        return lambda row: 100 * (row["perplexity"] / rows[base]["perplexity"] - 1)

    def lost(what: str, percent: float, names: Iterable[str], base: str = "cq float32") -> Yardstick:
        best = sorted((rows[name] for name in names if name in rows), key=lambda row: row["perplexity"])[:1]
        return _one(f"SmolLM2-135M {what}, %", percent, best, over(base), "{:.2f}", at_most=True)

    same = sorted(
        (texts[name] for name in ("cq weight-only", "cq weight-only, compensated") if name in texts),
        key=lambda row: -row["equal"],
    )[:1]
    found = [
        lost("weight-only, perplexity over float32's", 0.2, ("cq weight-only", "cq weight-only, compensated")),
        lost(
            "dynamic, perplexity over float32's", 0.7, ("cq dynamic", "cq dynamic, rotated", "cq dynamic, compensated")
        ),
        lost("static, or a mix that is so by 90 %, perplexity over float32's", 3, mixed),
        lost(
            "int8 cache, weight-only's perplexity over that without",
            0.2,
            ("cq weight-only, int8 cache",),
            "cq weight-only",
        ),
        _one(
            "SmolLM2-135M weight-only, greedy texts of 200 tokens that are float32's, of 10",
            8,
            same,
            lambda row: row["equal"],
        ),
    ]
    return [_as_measured(row) for row in found]


def _compared(result: dict) -> tuple[dict[str, dict], Callable[[str, str], float]]:
    """Rows of a `cq compare` by name, and a function (name, metric) → how far its value lies from float32's."""
    threads = int(next(iter(result.get("cards", {})), 1))
    rows = {row["name"]: row | {"threads": threads} for row in result.get("report", {"rows": []})["rows"]}
    return rows, lambda name, metric: rows[name]["accuracy"][metric] - rows["float32"]["accuracy"][metric]


def _of_encoder(accuracy: dict) -> list[Yardstick]:
    """As it is or compensated, whichever is nearer to float32."""
    rows, found = {row["name"]: row for row in accuracy["rows"]}, []
    for name, lost, least in (("weight-only", 0.05, 0.9995), ("dynamic", 0.1, 0.999), ("static", 0.2, 0.995)):
        there = sorted(
            (rows[each] for each in (name, f"{name}, compensated") if each in rows),
            key=lambda row: -row["STS 2014"]["cosine"],
        )[:1]
        found += [
            _one(
                f"MiniLM-L6 {name}, STS 2014, Spearman ×100 below float32's",
                lost,
                there,
                lambda row: rows["float32"]["STS 2014"]["spearman"] - row["STS 2014"]["spearman"],
                "{:.3f}",
                at_most=True,
            ),
            _one(
                f"MiniLM-L6 {name}, STS 2014, cosine with float32's embeddings",
                least,
                there,
                lambda row: row["STS 2014"]["cosine"],
                "{:.5f}",
            ),
        ]
    return [_as_measured(row) for row in found]


def _of_mix(compared: dict) -> list[Yardstick]:
    rows, off = _compared(compared)
    mix = [rows["mixed"]] if "mixed" in rows else []
    return [
        _as_measured(row)
        for row in (
            _one(
                "MiniLM-L6 automatic mix, STS 2014, Spearman ×100 below float32's",
                0.1,
                mix,
                lambda row: -off("mixed", "spearman"),
                "{:.3f}",
                at_most=True,
            ),
            _one(
                "MiniLM-L6 automatic mix, sentences, static's time over its",
                0.95,
                mix,
                lambda row: row["tokens_per_s"] / rows["static"]["tokens_per_s"],
                "{:.2f}",
            ),
        )
    ]


def _of_qat(qat: dict) -> list[Yardstick]:
    """Static as calibration alone has it is the best of its rows; in the textbook scheme, whose ranges are of extremes,
    that too."""
    found = []
    for scheme in ("default", "textbook"):
        rows = [row for row in qat["rows"] if row["scheme"] == scheme]
        trained = [row for row in rows if row["name"].startswith("QAT")]
        static = max((row["STS 2014"]["cosine"] for row in rows if row["name"].startswith("static")), default=0.0)
        if scheme == "default":
            exact = next((row["STS 2014"]["spearman"] for row in rows if row["name"] == "float32"), 0.0)
            found += [
                _one(
                    "MiniLM-L6 QAT → static, STS 2014, Spearman ×100 below float32's",
                    0.1,
                    trained,
                    lambda row: exact - row["STS 2014"]["spearman"],
                    "{:.3f}",
                    at_most=True,
                ),
                _one(
                    "MiniLM-L6 QAT → static, STS 2014, cosine with float32's embeddings",
                    max(0.997, round(static, 5)),
                    trained,
                    lambda row: row["STS 2014"]["cosine"],
                    "{:.5f}",
                ),
            ]
        else:
            extremes = next((row["STS 2014"]["cosine"] for row in rows if row["name"] == "static, minmax"), 0.0)
            for which, lost in (("static, min-max, loses", extremes), ("static with its best observer loses", static)):
                found.append(
                    _one(
                        f"MiniLM-L6 textbook QAT → static, STS 2014, percent recovered of the cosine that {which}",
                        80,
                        trained,
                        lambda row, lost=lost: 100 * (row["STS 2014"]["cosine"] - lost) / (1 - lost),
                        "{:.1f}",
                    )
                )
        found.append(
            _one(
                f"MiniLM-L6 {scheme} QAT, minutes of training on 2 cores",
                20,
                trained,
                lambda row: row["seconds"] / 60,
                "{:.1f}",
                at_most=True,
            )
        )
    return [_as_measured(row) for row in found]


def _of_shipped(compared: dict) -> list[Yardstick]:
    rows, off = _compared(compared)
    trained = "qat.safetensors"
    there = [rows[trained]] if {trained, "dynamic", "static"} <= set(rows) else []
    return [
        _as_measured(row)
        for row in (
            _one(
                "The model in the wheel, QAT → static, perplexity over float32's, %",
                0.5,
                there,
                lambda row: 100 * off(trained, "perplexity") / rows["float32"]["accuracy"]["perplexity"],
                "{:.3f}",
                at_most=True,
            ),
            _one(
                "The model in the wheel, QAT → static, perplexity over dynamic's, %",
                0,
                there,
                lambda row: 100 * (row["accuracy"]["perplexity"] / rows["dynamic"]["accuracy"]["perplexity"] - 1),
                "{:.3f}",
                at_most=True,
            ),
            _one(
                "The model in the wheel, dynamic, perplexity over static's, %",
                0,
                there,
                lambda row: (
                    100 * (rows["dynamic"]["accuracy"]["perplexity"] / rows["static"]["accuracy"]["perplexity"] - 1)
                ),
                "{:.3f}",
                at_most=True,
            ),
        )
    ]


def _as_measured(row: Yardstick) -> Yardstick:
    """About the number of threads that was measured: accuracy knows none."""
    return replace(row, threads=tuple(row.met) or row.threads[:1])


def _memory(rows: list[dict], name: str, other: str) -> list[dict]:
    """For each number of threads, one's activation memory as a share of another's, in hundredths; none where it was not
    measured."""
    found = []
    for there in by_threads([row for row in rows if row["case"] == "8×128" and "activation_bytes" in row]).values():
        held = {row["name"]: row["activation_bytes"] for row in there}
        if name in held and other in held:
            found.append(there[0] | {"name": name, "share": round(held[name] / held[other], 2)})
    return found


def _case(rows: list[dict], case: str, work: str) -> list[dict]:
    return [row for row in rows if row["case"] == case and row["work"] == work]


def _of_read(row: dict) -> float | None:
    return row.get("percent_of_read")


def _one(
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


def _every(
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


def table(*results: dict) -> str:
    """A line per yardstick, then what was lost. results: as `yardsticks` takes them."""
    rows = yardsticks(*results)
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
    short = [
        f"- {row.work}, {_threads(each)}: {', '.join(cases)}"
        for row in rows
        for each, cases in row.lost.items()
        if cases
    ]
    met = sum(row.verdict() == "met" for row in rows)
    text = f"{met} of {len(rows)} met.\n\n" + markdown(lines, "---") + "\n\n"
    if short:
        text += "<details><summary>The cases that miss</summary>\n\n" + "\n".join(short) + "\n\n</details>\n\n"
    cpus = [next(iter(result["cards"].values()))["cpu"] for result in results]
    others = [f"{name}: {machine(result)}" for name, result, cpu in zip(SOURCES, results, cpus) if cpu != cpus[0]]
    return text + "  \n".join([machine(results[0]), *others])


def _threads(count: str) -> str:
    return f"{count} thread{'' if count == '1' else 's'}"


if __name__ == "__main__":
    given = [json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8")) for name in SOURCES]
    json.dump([asdict(row) for row in yardsticks(*given)], sys.stdout, indent=1, ensure_ascii=False)
