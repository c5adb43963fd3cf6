"""The tables of all-MiniLM-L6-v2: speed, parts of a pass, what grows with what, accuracy, training. Measures
nothing."""

from render import by_case, by_threads, cell, contestants, is_cq, joined, machine, markdown

STREAM, SORTED = "stream of sentences", ", sorted by length"
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
    "torch dynamic int8 (onednn)",
)


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


def encoder_accuracy(result: dict) -> str:
    return (
        "Cosine: with float32's embeddings, in the mean. Compensated: `cq.compensate` first, on static's "
        "calibration.\n\n" + _pairs(result["rows"], "default") + "\n\n" + machine(result, timed=False)
    )


def ranks(result: dict) -> str:
    """A line per way: correlations of scores, and shares of queries whose documents keep their order."""
    rows = result["rows"]
    facts, keys = rows[0], ("gold", "float32", "first", "order", "order_beyond")
    beyond = f"those {facts['margin']} apart in the same order, %"
    heads = ("Spearman ×100<br>with people's scores", "with float32's scores", "same best document, %")
    lines = [["cross-encoder", *heads, "all in the same order, %", beyond]]
    for row in rows:
        shares = (f"{100 * row[key]:.1f}" if key in row else "–" for key in keys[2:])
        lines.append([row["name"], *(f"{row[key]:.3f}" if key in row else "–" for key in keys[:2]), *shares])
    return (
        f"all-MiniLM-L6-v2, trained for {facts['steps']} steps on STS 2012 to score a pair of sentences, 0…1. "
        f"Spearman: of {facts['pairs']:,} pairs of STS 2014. The other columns: share of {facts['queries']} queries "
        f"for which the model ranks {facts['documents']} documents as float32 does; these are the sentence that STS "
        "2014 pairs with the query and others of the same file. The last column asks only for the order of any two "
        f"documents that float32 scores more than {facts['margin']} apart. float32's scores are those of transformers "
        f"within {facts['to_transformers']:.0e}.\n\n{markdown(lines)}\n\n{machine(result, timed=False)}"
    )


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


def neighbour(result: dict) -> str:
    """A line per contestant, a column per batch and place: milliseconds."""
    rows = contestants(result)
    columns = list(dict.fromkeys((row["case"], row["work"]) for row in rows))
    lines = [["all-MiniLM-L6-v2", *(f"{case}<br>{where}" for case, where in columns)]]
    for name in dict.fromkeys(row["name"] for row in rows):
        lines.append([name, *(f"{1e3 * row['seconds']:.2f}" for row in rows if row["name"] == name)])
    return "Milliseconds.\n\n" + markdown(lines) + "\n\n" + machine(result)


def calibration(result: dict) -> str:
    """A line per set of samples."""
    lines = [["Static on a random BERT-base", "tokens", "seconds", "longest pause of the progress bar, s"]]
    lines += [
        [row["case"], f"{row['tokens']:,}", f"{row['seconds']:.1f}", f"{row['longest_pause']:.1f}"]
        for row in contestants(result)
    ]
    return f"With {joined(result['cards'], '{}')} threads.\n\n" + markdown(lines) + "\n\n" + machine(result)


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


def train(result: dict) -> str:
    """A line per batch: a step's milliseconds."""
    return f"Milliseconds with {joined(result['cards'], '{}')} threads; bold: the fastest.\n\n" + by_case(
        result,
        "all-MiniLM-L6-v2, step of QAT",
        lambda here, name: cell(here, here[0]["work"], name, "seconds", "{:,.0f}", min, 1e3),
    )


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


def _decibels(rows: list[dict], case: str, name: str) -> str:
    found = next(row["sqnr_db"] for row in rows if row["case"] == case and row["name"] == name)
    return "∞" if found is None else f"{found:.1f}"


def _padding(padding) -> str:
    return f"{padding:,} more tokens" if isinstance(padding, int) else padding
