"""The yardsticks of whole models: speed, accuracy, training. Measures nothing."""

from collections.abc import Callable, Iterable
from dataclasses import replace

from products import speedups
from render import ahead, best_of, by_threads, contestants, is_cq, isa
from targets_products import of_two_threads
from yardstick import FAST, INT8_STREAM, Yardstick, as_measured, every, one

LARGE = ("8×128", "32×64", "16×256")
MANY = (*LARGE, "32 sentences", "stream of sentences")


def of_model(model: dict) -> list[Yardstick]:
    rows = contestants(model)
    goal = 1.2 if isa(model) == "avx2" else 1.25
    fastest = [
        best
        for case in dict.fromkeys(row["case"] for row in rows)
        for there in by_threads([row for row in rows if row["case"] == case]).values()
        if (best := best_of(there, FAST))
    ]
    found = [
        every(
            "MiniLM-L6: the best peer's time, in its best order, over cq's",
            f"≥ {goal} on every batch",
            fastest,
            ahead,
            goal,
            "{:.2f}",
        ),
        one(
            "MiniLM-L6 8×128, percent of peak",
            75,
            [row for row in fastest if row["case"] == "8×128"],
            lambda row: row["percent_of_peak"],
            "{:.1f}",
        ),
        *(
            every(
                f"{slow}'s time over {fast}'s, 8 sequences and more",
                "> 1 on every batch",
                [row for row in rows if row["case"] in MANY and row["name"] == f"cq {fast}"],
                lambda row, slow=slow: row["ahead_of"][f"cq {slow}"],
                1.001,
                "{:.3f}",
            )  # three digits: more than 1
            for fast, slow in (("static", "dynamic"), ("dynamic", "weight-only"))
        ),
    ]
    for name, goal, other in ((INT8_STREAM, 0.25, "float32"), ("cq static", 1, "dynamic")):
        shares = memory(rows, name, f"cq {other}")
        work = f"{name.removeprefix('cq ')}: activation memory over {other}'s, 8×128"
        found.append(one(work, goal, shares, lambda row: row["share"], "{:.2f}", at_most=True))
    large = [row for row in rows if row["case"] in LARGE]
    return [*found, of_two_threads(f"MiniLM-L6 {', '.join(LARGE)}", speedups(large))]


def of_neighbour(neighbour: dict) -> list[Yardstick]:
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
    found = every(
        "MiniLM-L6 beside a busy process: two threads' time over one's",
        "≤ 1.1 on every batch",
        rows,
        lambda row: row["over"],
        1.1,
        "{:.2f}",
        at_most=True,
    )
    return [replace(found, threads=("2",))]


def of_calibration(calibration: dict) -> list[Yardstick]:
    rows = {row["samples"]: row for row in contestants(calibration)}
    return [
        as_measured(row)
        for row in (
            one(
                "Static on BERT-base, 100 samples of 64 tokens, seconds",
                20,
                [rows[100]] if rows else [],
                lambda row: row["seconds"],
                "{:.1f}",
                at_most=True,
            ),
            one(
                "Static on BERT-base, 500 samples, times 100 samples' seconds",
                4,
                [rows[500]] if rows else [],
                lambda row: row["seconds"] / rows[100]["seconds"],
                "{:.2f}",
                at_most=True,
            ),
        )
    ]


def of_lm(lm: dict) -> list[Yardstick]:
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
    beside = "SmolLM2-135M prefill of 512: {}'s time over cq's"
    if isa(lm) == "avx2":
        return [
            one(beside.format("CTranslate2"), 1.3, prefill, over("CTranslate2 int8"), "{:.2f}"),
            one("SmolLM2-135M prefill of 512: float32's time over int8's", 1.7, prefill, over("cq float32"), "{:.2f}"),
        ]
    return [
        one(
            "SmolLM2-135M prefill of 512, tokens per second",
            {1: 1400, 2: 2600},
            prefill,
            lambda row: row["tokens"] / row["seconds"],
            "{:,.0f}",
        ),
        one(beside.format("CTranslate2"), 2, prefill, over("CTranslate2 int8"), "{:.2f}"),
        one(beside.format("llama.cpp"), 4, prefill, over("llama.cpp Q8_0"), "{:.2f}"),
        one("SmolLM2-135M decode: llama.cpp's time over cq's", 1.3, decode, over("llama.cpp Q8_0"), "{:.2f}"),
        one("SmolLM2-135M decode, percent of read bandwidth", 85, decode, _of_read),
    ]


def _lost(rows: dict[str, dict]) -> Callable[..., Yardstick]:
    """A function (what, percent, names, base) → the yardstick that the best of these rows loses at most so much."""

    def lost(what: str, percent: float, names: Iterable[str], base: str = "cq float32") -> Yardstick:
        best = sorted((rows[name] for name in names if name in rows), key=lambda row: row["perplexity"])[:1]
        return one(
            f"SmolLM2-135M {what}, %",
            percent,
            best,
            lambda row: 100 * (row["perplexity"] / rows[base]["perplexity"] - 1),
            "{:.2f}",
            at_most=True,
        )

    return lost


def of_lm_qat(lm_qat: dict) -> list[Yardstick]:
    lost = _lost({row["name"]: row for row in contestants(lm_qat)})
    found = [
        lost("static after QAT, perplexity over float32's", 0.5, ("cq static, QAT",)),
        lost("dynamic after QAT, perplexity over static's", 0, ("cq dynamic, QAT",), "cq static, QAT"),
    ]
    return [as_measured(row) for row in found]


def of_lm_accuracy(lm_accuracy: dict) -> list[Yardstick]:
    every = contestants(lm_accuracy)
    rows, texts = ({row["name"]: row for row in every if row["work"] == work} for work in ("accuracy", "greedy"))
    lost = _lost(rows)
    weights = [name for name in rows if name.startswith("cq weight-only, best") and "cache" not in name]
    same = sorted(
        (texts[name] for name in ("cq weight-only", "cq weight-only, best") if name in texts),
        key=lambda row: -row["equal"],
    )[:1]
    found = [
        lost("weight-only, perplexity over float32's", 0.1, ["cq weight-only", *weights]),
        lost("dynamic, perplexity over float32's", 0.5, ("cq dynamic", "cq dynamic, best")),
        lost("static, perplexity over float32's", 1, ("cq static", "cq static, best")),
        *(
            one(f"SmolLM2-135M {name}, KL to float32", most, kept, lambda row: row["kl"], "{:.4f}", at_most=True)
            for name, most in (("weight-only", 0.001), ("static", 0.01))
            for kept in [[rows[f"cq {name}, best"]] if f"cq {name}, best" in rows else []]
        ),
        lost(
            "int8 cache, weight-only's perplexity over that without",
            0.2,
            ("cq weight-only, int8 cache",),
            "cq weight-only",
        ),
        one(
            "SmolLM2-135M weight-only, greedy texts of 200 tokens that are float32's, of 10",
            8,
            same,
            lambda row: row["equal"],
        ),
    ]
    return [as_measured(row) for row in found]


def _compared(result: dict) -> tuple[dict[str, dict], Callable[[str, str], float]]:
    """Rows of a `cq compare` by name, and a function (name, metric) → how far its value lies from float32's."""
    threads = int(next(iter(result.get("cards", {})), 1))
    rows = {row["name"]: row | {"threads": threads} for row in result.get("report", {"rows": []})["rows"]}
    return rows, lambda name, metric: rows[name]["accuracy"][metric] - rows["float32"]["accuracy"][metric]


def of_encoder(accuracy: dict) -> list[Yardstick]:
    """As it is or compensated, whichever is nearer to float32."""
    rows, found = {row["name"]: row for row in accuracy["rows"]}, []
    for name, lost, least in (("weight-only", 0.05, 0.9995), ("dynamic", 0.1, 0.999), ("static", 0.2, 0.995)):
        there = sorted(
            (rows[each] for each in (name, f"{name}, compensated") if each in rows),
            key=lambda row: -row["STS 2014"]["cosine"],
        )[:1]
        found += [
            one(
                f"MiniLM-L6 {name}, STS 2014, Spearman ×100 below float32's",
                lost,
                there,
                lambda row: rows["float32"]["STS 2014"]["spearman"] - row["STS 2014"]["spearman"],
                "{:.3f}",
                at_most=True,
            ),
            one(
                f"MiniLM-L6 {name}, STS 2014, cosine with float32's embeddings",
                least,
                there,
                lambda row: row["STS 2014"]["cosine"],
                "{:.5f}",
            ),
        ]
    return [as_measured(row) for row in found]


def of_mix(compared: dict) -> list[Yardstick]:
    rows, off = _compared(compared)
    mix = [rows["mixed"]] if "mixed" in rows else []
    return [
        as_measured(row)
        for row in (
            one(
                "MiniLM-L6 automatic mix, STS 2014, Spearman ×100 below float32's",
                0.1,
                mix,
                lambda row: -off("mixed", "spearman"),
                "{:.3f}",
                at_most=True,
            ),
            one(
                "MiniLM-L6 automatic mix, sentences, static's time over its",
                0.95,
                mix,
                lambda row: row["tokens_per_s"] / rows["static"]["tokens_per_s"],
                "{:.2f}",
            ),
        )
    ]


def of_qat(qat: dict) -> list[Yardstick]:
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
                one(
                    "MiniLM-L6 QAT → static, STS 2014, Spearman ×100 below float32's",
                    0.1,
                    trained,
                    lambda row: exact - row["STS 2014"]["spearman"],
                    "{:.3f}",
                    at_most=True,
                ),
                one(
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
                    one(
                        f"MiniLM-L6 textbook QAT → static, STS 2014, percent recovered of the cosine that {which}",
                        80,
                        trained,
                        lambda row, lost=lost: 100 * (row["STS 2014"]["cosine"] - lost) / (1 - lost),
                        "{:.1f}",
                    )
                )
        found.append(
            one(
                f"MiniLM-L6 {scheme} QAT, minutes of training on 2 cores",
                20,
                trained,
                lambda row: row["seconds"] / 60,
                "{:.1f}",
                at_most=True,
            )
        )
    return [as_measured(row) for row in found]


def of_shipped(compared: dict) -> list[Yardstick]:
    rows, off = _compared(compared)
    trained = "qat.safetensors"
    there = [rows[trained]] if {trained, "dynamic", "static"} <= set(rows) else []
    return [
        as_measured(row)
        for row in (
            one(
                "The model in the wheel, QAT → static, perplexity over float32's, %",
                0.5,
                there,
                lambda row: 100 * off(trained, "perplexity") / rows["float32"]["accuracy"]["perplexity"],
                "{:.3f}",
                at_most=True,
            ),
            one(
                "The model in the wheel, QAT → static, perplexity over dynamic's, %",
                0,
                there,
                lambda row: 100 * (row["accuracy"]["perplexity"] / rows["dynamic"]["accuracy"]["perplexity"] - 1),
                "{:.3f}",
                at_most=True,
            ),
            one(
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


def of_train(train: dict) -> list[Yardstick]:
    steps = [row for row in contestants(train) if is_cq(row)]
    return [
        every("MiniLM-L6, a step of QAT: torch's time over cq's", "≥ 1.2 on every batch", steps, ahead, 1.2, "{:.2f}")
    ]


def memory(rows: list[dict], name: str, other: str) -> list[dict]:
    """For each number of threads, one's activation memory as a share of another's, in hundredths; none where it was not
    measured."""
    found = []
    for there in by_threads([row for row in rows if row["case"] == "8×128" and "activation_bytes" in row]).values():
        held = {row["name"]: row["activation_bytes"] for row in there}
        if name in held and other in held:
            found.append(there[0] | {"name": name, "share": round(held[name] / held[other], 2)})
    return found


def _of_read(row: dict) -> float | None:
    return row.get("percent_of_read")
