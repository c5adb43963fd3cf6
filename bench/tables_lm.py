"""The tables of language models: speed, accuracy, generation, a model larger than memory. Measures nothing."""

import statistics

from render import by_case, cell, contestants, joined, machine, markdown


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


def language(accuracy: dict, trained: dict, speed: dict) -> str:
    """A line per contestant: what it loses against float32, and how fast it is."""
    rows = [row for row in contestants(accuracy) if row["work"] == "accuracy" and "cache" not in row["name"]]
    after = 1 + max((i for i, row in enumerate(rows) if row["name"].endswith(", best")), default=-1)
    rows[after:after] = [row for row in contestants(trained) if row["name"].endswith("QAT")]
    rates = [row | {"rate": row["tokens"] / row["seconds"]} for row in contestants(speed)]
    works = {row["work"]: row["case"] for row in rates}
    lines = [
        [
            "SmolLM2-135M-Instruct",
            "MB",
            "perplexity over<br>float32's %",
            "KL nats",
            "top-1 %",
            *(f"{case.split(' of ')[0]}<br>tokens/s" for case in works.values()),
        ]
    ]
    for row in rows:
        error = f" ± {100 * row['over_error']:.2f}" if row["over_error"] else ""
        lines.append(
            [
                row["name"],
                f"{row['nbytes'] / 1e6:.0f}",
                f"{100 * (row['perplexity'] / rows[0]['perplexity'] - 1):+.2f}{error}",
                f"{row['kl']:.4f}",
                f"{100 * row['top1']:.1f}",
                *(cell(rates, work, row["name"], "rate", "{:,.0f}", max) for work in works),
            ]
        )
    return (
        f"{rows[0]['windows']} windows of 512 tokens of WikiText-2 that nothing was calibrated or trained on; speeds "
        f"with {joined(speed['cards'], '{}')} threads; bold: the fastest.\n\n"
        + markdown(lines)
        + "\n\n"
        + machine(accuracy)
    )


def lm_accuracy(result: dict) -> str:
    """A line per contestant: perplexity, and how far its scores are from float32's."""
    rows = [row for row in contestants(result) if row["work"] == "accuracy"]
    return (
        f"{rows[0]['windows']} windows of 512 tokens from the last 10 % of WikiText-2's validation text. Best: "
        'effort="best". Models are prepared and trained, and static is calibrated, on 54 windows of the first 80 %. ±: '
        "the standard error of the difference, window by window. KL: of the next token's distribution from float32's. "
        "Flips: predictions that changed between right and wrong. int8 cache: every token reads keys and values as "
        "they are kept, its own included; dynamic's and static's attention does so anyway.\n\n"
        + _scores(rows)
        + "\n\n"
        + machine(result)
    )


def lm_qat(result: dict) -> str:
    """A line per target of training."""
    rows = contestants(result)
    return (
        f"The same {rows[0]['windows']} windows. Trained on the 54 windows of the first 80 %, one a step, from what "
        'effort="best" gives, by distillation.\n\n' + _scores(rows) + "\n\n" + machine(result)
    )


def lm_long(result: dict) -> str:
    """The same of long windows."""
    rows = [row for row in contestants(result) if row["work"] == "long"]
    if not rows:
        return "Not measured yet."
    return (
        f"{rows[0]['windows']} {rows[0]['case']} tokens of the same text.\n\n"
        + _scores(rows)
        + "\n\n"
        + machine(result)
    )


def _scores(rows: list[dict]) -> str:
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
    return markdown(lines)


def outlier_tokens(result: dict) -> str:
    """A line per strategy and effort, a column per family: what it loses against float32."""
    rows = contestants(result)
    families = {row["case"]: row["perplexity"] for row in rows if row["name"] == "float32"}
    heads = [(f"{family}<br>perplexity over<br>float32's %", f"{family}<br>KL nats") for family in families]
    lines = [["trained bytes", *(head for pair in heads for head in pair)]]
    for name in dict.fromkeys(row["name"] for row in rows if "kl" in row):
        line = [name]
        for family in families:
            row = next(row for row in rows if (row["case"], row["name"]) == (family, name))
            line += [f"{100 * row['over']:+.2f} ± {100 * row['over_error']:.2f}", f"{row['kl']:.4f}"]
        lines.append(line)
    return (
        f"Decoders of {rows[0]['parameters'] / 1e6:.1f} million parameters and of two families, trained from random "
        f"weights for {rows[0]['steps']} steps on the bytes of WikiText-2, each of whose samples begins with a token "
        f"that one hidden feature of {rows[0]['size']:.0f} makes an outlier; {rows[0]['windows']} samples that nothing "
        "was calibrated or trained on. Best: "
        'effort="best". ±: the standard error of the difference, sample by sample.\n\n'
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
        "weights and kept keys and values make of it.\n\n" + by_case(result, "SmolLM2-135M-Instruct", shown, label)
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


def preparation(result: dict) -> str:
    """A line per size, a column per strategy: what its best effort takes."""

    def shown(row: dict) -> str:
        step = f", {row['step_seconds']:.1f} s a step" if "step_seconds" in row else ""
        return f"{row['seconds']:.0f} s{step}<br>{row['peak_bytes'] / 1e9:.1f} GB"

    rows = contestants(result)
    names = dict.fromkeys(row["name"] for row in rows)
    lines = [["random Llama-type models: parameters, tokens", "float32 GB", *names]]
    for case in dict.fromkeys(row["case"] for row in rows):
        here = {row["name"]: row for row in rows if row["case"] == case}
        size = 4e-9 * next(iter(here.values()))["parameters"]
        lines.append([case, f"{size:.2f}", *(shown(here[name]) for name in names)])
    return (
        f'Threads: {joined(result["cards"], "{}")}. The time of `cq.quantize` with effort="best", of QAT with '
        "three steps of one sequence of 512 tokens, and the process's peak memory.\n\n"
        + markdown(lines)
        + "\n\n"
        + machine(result)
    )
