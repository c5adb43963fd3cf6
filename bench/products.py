"""The tables of matrix products, shape by shape, and of what a second thread brings. Measures nothing."""

from collections.abc import Callable

from render import ahead, by_threads, contestants, is_cq, joined, machine, markdown, peaks

LARGE_ROWS = 128


def sizes(row: dict) -> tuple[int, int, int]:
    """M, K, N of a case."""
    return tuple(map(int, row["case"].split("×")))


def gemm(result: dict) -> str:
    """A table per work; a line per weight, a column per number of rows; in each cell cq's percent of its limit, and
    below it the best peer's time over cq's, bold where cq is ahead."""
    rows = contestants(result)
    int8, float32 = peaks(result, "int8"), peaks(result, "float32")
    parts = [
        f"In each cell, with {joined(result['cards'], '{}')} threads: cq's percent of the limit that the column "
        "names, and "
        "the best peer's time over cq's, bold where cq is ahead. The limits were found in the same run: the "
        "register-only "
        f"peak (int8 {int8} GOPS, float32 {float32} GFLOPS), and a bare read of as many bytes as the weight has, "
        "from the "
        "cache that it fits or from memory."
    ]
    for work in dict.fromkeys(row["work"] for row in rows):
        parts.append(_work([row for row in rows if row["work"] == work], work))
    parts.append(
        'Codes are uint8, weights int8 with a scale per column. "int8 inside" quantizes its float32 input on the fly; '
        '"float32" is int8 weight-only beside a float32 BLAS.  \n' + machine(result)
    )
    return "\n\n".join(parts)


def _work(rows: list[dict], work: str) -> str:
    ours, peers = [row for row in rows if is_cq(row)], dict.fromkeys(row["name"] for row in rows if not is_cq(row))
    bound = {
        m: "read" if all("percent_of_read" in row for row in ours if sizes(row)[0] == m) else "peak"
        for m in {sizes(row)[0] for row in ours}
    }
    won, table = _shapes(
        ours, lambda here, m: joined(row[f"percent_of_{bound[m]}"] for row in here), lambda m: f"<br>% of {bound[m]}"
    )
    beside = f", beside {', '.join(peers)}; ahead in {won}" if peers else ""
    return f"**{work}**{beside}:\n\n{table}" + _wrong(rows)


def _wrong(rows: list[dict]) -> str:
    """Of peers some of whose sums are not exact, as they saturate: percent of results, the least and the most."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if row.get("percent_wrong"):
            found.setdefault(row["name"], []).append(row["percent_wrong"])
    lines = [["", "wrong results, %"]] + [[name, f"{min(all_):.2f} to {max(all_):.2f}"] for name, all_ in found.items()]
    return "\n\n" + markdown(lines) if found else ""


def _shapes(
    ours: list[dict], measured: Callable[[list[dict], int], str], unit: Callable[[int], str]
) -> tuple[str, str]:
    """How many rows of cq's are ahead; a line per weight, a column per number of rows: what `measured` gives of a
    cell's rows, and below it the best peer's time over cq's."""
    counts = sorted({sizes(row)[0] for row in ours})
    lines = [["K×N", *(f"{m} row{'s' * (m > 1)}{unit(m)}" for m in counts)]]
    for label, k, n in dict.fromkeys((row["model"], *sizes(row)[1:]) for row in ours):
        cells = []
        for m in counts:
            here = [row for row in ours if sizes(row) == (m, k, n)]
            ratios = " / ".join(_ratio(ahead(row)) for row in here)
            cells.append(f"{measured(here, m)}<br>{ratios}" if here else "–")
        lines.append([f"{label} {k}×{n}", *cells])
    won = " and ".join(
        f"{sum((ahead(row) or 0) >= 1 for row in there)} of {len(there)} with {threads}"
        for threads, there in by_threads(ours).items()
    )
    return won, markdown(lines)


def _ratio(value: float | None) -> str:
    if value is None:
        return "–"
    return f"**{value:.2f}**" if value >= 1 else f"{value:.2f}"


def floats(result: dict) -> str:
    """A table per product; a line per weight, a column per number of rows: GFLOPS, and BLAS's time over cq's."""
    rows, parts = [row for row in contestants(result) if is_cq(row)], []
    for work in dict.fromkeys(row["work"] for row in rows):
        won, table = _shapes(
            [row for row in rows if row["work"] == work],
            lambda here, m: joined([row["gops"] for row in here], "{:.0f}"),
            lambda m: "",
        )
        parts.append(f"**{work}**, ahead in {won}:\n\n{table}")
    return (
        f"GFLOPS of cq's float32 products on {rows[0]['isa']}, with {joined(result['cards'], '{}')} threads, and "
        "below them the "
        "time of NumPy's BLAS over cq's, bold where cq is ahead.\n\n" + "\n\n".join(parts) + "\n\n" + machine(result)
    )


def speedups(rows: list[dict]) -> dict[tuple[str, str, str], float]:
    """(case, work, name) → time with one thread over time with two, of cq's rows."""
    seconds = {(row["case"], row["work"], row["name"], row["threads"]): row["seconds"] for row in rows if is_cq(row)}
    return {
        key[:3]: spent / seconds[(*key[:3], 2)]
        for key, spent in seconds.items()
        if key[3] == 1 and (*key[:3], 2) in seconds
    }


def speedup(result: dict) -> str:
    """A line per large shape, a column per work: one thread's time over two's."""
    found = speedups([row for row in contestants(result) if sizes(row)[0] >= LARGE_ROWS])
    works = list(dict.fromkeys(work for _, work, _ in found))
    lines = [["M×K×N", *works]]
    for case in dict.fromkeys(case for case, _, _ in found):
        here = {work: ratio for (each, work, _), ratio in found.items() if each == case}
        lines.append([case, *(joined([here.get(work)], "{:.2f}") for work in works)])
    return "How many times faster two threads are than one.\n\n" + markdown(lines) + "\n\n" + machine(result)


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
