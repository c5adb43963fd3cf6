"""The yardsticks of matrix products, and of what grows with what. Measures nothing."""

from dataclasses import replace

from products import LARGE_ROWS, sizes, speedups
from render import ahead, best_of, by_threads, contestants, is_cq, isa
from yardstick import FAST, Yardstick, every, one

INT8 = ("codes → int32", "codes → float32", "codes → codes", "float32, int8 inside")
PRODUCT, WEIGHT_ONLY = INT8[0], "float32"


def of_gemm(gemm: dict) -> list[Yardstick]:
    products = [row for row in contestants(gemm) if is_cq(row)]
    many = [row for row in products if row["work"] == PRODUCT and sizes(row)[0] >= 128]
    single = [row for row in products if row["work"] == PRODUCT and sizes(row)[0] == 1]
    floats = [row for row in products if row["work"] == WEIGHT_ONLY]
    goal = {"avxvnni": 95, "avx512bw": 95}.get(isa(gemm), 97)
    rows = [
        every(
            "int8 product, 128 rows and more: percent of peak",
            f"≥ {goal} on every shape",
            many,
            lambda row: row["percent_of_peak"],
            goal,
            "{:.1f}",
        )
    ]
    rows += [
        every(
            f"{work}: the best peer's time over cq's",
            "≥ 1 on every shape",
            [row for row in products if row["work"] == work],
            ahead,
            1,
            "{:.2f}",
        )
        for work in INT8
        if any(ahead(row) is not None for row in products if row["work"] == work)
    ]
    if isa(gemm) in ("avx512vnni", "amx"):
        rows.append(
            one(
                "int8 product 8×768×3072, GOPS",
                {1: 400, 2: 760},
                _case(products, "8×768×3072", PRODUCT),
                lambda row: row["gops"],
            )
        )
    rows += [
        one(
            "int8 product 1×4096×4096, percent of read bandwidth", 90, _case(products, "1×4096×4096", PRODUCT), _of_read
        ),
        every("int8 product, 1 row: percent of read bandwidth", "≥ 90 on every shape", single, _of_read, 90, "{:.1f}"),
        every(
            "weight-only, 1 row: float32 BLAS's time over cq's",
            "≥ 3.5 on every shape",
            [row for row in floats if sizes(row)[0] == 1],
            ahead,
            3.5,
            "{:.2f}",
        ),
        every(
            "weight-only, 128 rows and more: float32 BLAS's time over cq's",
            "≥ 1 on every shape",
            [row for row in floats if sizes(row)[0] >= 128],
            ahead,
            1,
            "{:.2f}",
        ),
    ]
    return [
        *rows,
        of_two_threads(
            "products of 128 rows and more", speedups([row for row in contestants(gemm) if sizes(row)[0] >= LARGE_ROWS])
        ),
    ]


def of_two_threads(what: str, ratios: dict) -> Yardstick:
    """ratios: (case, work, name) → one thread's time over two's."""
    rows = [
        {"case": f"{case} ({name if name in FAST else work})", "threads": 2, "ratio": ratio}
        for (case, work, name), ratio in ratios.items()
        if name in FAST or work in INT8
    ]
    found = every(
        f"two threads over one, int8 {what}", "≥ 1.85 on every shape", rows, lambda row: row["ratio"], 1.85, "{:.2f}"
    )
    return replace(found, threads=("2",))


def of_scaling(scaling: dict) -> list[Yardstick]:
    rows = [row for row in contestants(scaling) if row["tokens"] >= 256]
    cost = lambda row: row["seconds"] / row["tokens"]
    found = []
    for row in rows:
        same = [cost(each) for each in rows if (each["name"], each["threads"]) == (row["name"], row["threads"])]
        found.append(
            {"case": f"{row['work']} ({row['name']})", "threads": row["threads"], "over": cost(row) / min(same)}
        )
    return [
        every(
            "cost of a token, 256 to 4,096 of them, over the least",
            "≤ 1.1 at every size",
            found,
            lambda row: row["over"],
            1.1,
            "{:.2f}",
            at_most=True,
        )
    ]


def of_avx2(avx2: dict) -> list[Yardstick]:
    rows = [row for row in contestants(avx2) if is_cq(row)]
    over_blas = lambda row: row["ahead_of"]["NumPy float32"]
    named = {"exact int8 product": "cq matmul_integer", "float32 in and out, int8 inside": "cq dynamic layer"}
    found = [
        every(
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
        one(
            "AVX2 alone, MiniLM-L6 8×128: float32's time over cq's",
            1.4,
            fastest,
            lambda row: row["ahead_of"]["cq float32"],
            "{:.2f}",
        )
    ]


def of_floats(floats: dict) -> list[Yardstick]:
    rows = [row for row in contestants(floats) if is_cq(row)]
    of_weights = [row for row in rows if row["work"] == "x wᵀ"]
    of_gradients = [row | {"case": f"{row['case']} {row['work']}"} for row in rows if row["work"] != "x wᵀ"]
    return [
        every(f"float32 products {what}: BLAS's time over cq's", "≥ 1 on every shape", there, ahead, 1, "{:.2f}")
        for what, there in (("with packed weights, 8 rows and more", of_weights), ("of gradients", of_gradients))
    ]


def _case(rows: list[dict], case: str, work: str) -> list[dict]:
    return [row for row in rows if row["case"] == case and row["work"] == work]


def _of_read(row: dict) -> float | None:
    return row.get("percent_of_read")
