"""The READMEs' numbers: each table is what its JSON gives, each JSON says where it was measured and by what command,
and a yardstick that is missed says so."""

import importlib
import json
from pathlib import Path

import greedy
import measure
import numpy as np
import orders
import pytest
import run
import tables

ROOT = Path(__file__).resolve().parent.parent
RESULTS = sorted((ROOT / "bench" / "results").glob("*/*.json"))
AMD = "amd-25-17-avx512vnni"


def result(name: str, machine: str = AMD) -> dict:
    return json.loads((ROOT / "bench" / "results" / machine / f"{name}.json").read_text(encoding="utf-8"))


def row(rows: list[dict], **wanted) -> dict:
    (found,) = [row for row in rows if all(row[key] == value for key, value in wanted.items())]
    return found


def test_pages_hold_every_table_as_its_json_gives_it():
    assert sum("<!-- machines -->" in page.read_text(encoding="utf-8") for page in tables.PAGES) == 1
    for page in tables.PAGES:
        text = page.read_text(encoding="utf-8")
        assert tables.filled(text, tables.RESULTS) == text, "run python bench/tables.py"


def test_the_benches_page_lists_every_suite():
    page = (ROOT / "bench" / "README.md").read_text(encoding="utf-8")
    listed = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| `")]
    found = {cells[0].strip("`"): int(cells[2]) for cells in listed if len(cells) == 3 and cells[2].isdigit()}
    assert found == run.SUITES | run.REPORTS


def test_every_result_is_shown():
    shown = {table.suite for table in tables.TABLES.values()}
    assert {file.stem for file in RESULTS} <= shown


def test_missing_results_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="run python bench/run.py"):
        tables.filled("<!-- table:gemm here -->\n<!-- /table -->\n", tmp_path)


@pytest.mark.parametrize("text", ["<!-- table:gemm here -->\n", "<!-- table:other here -->\n<!-- /table -->\n"])
def test_bad_markers_are_refused(tmp_path, text):
    with pytest.raises(ValueError, match="table:"):
        tables.filled(text, tmp_path)


@pytest.mark.parametrize("file", RESULTS, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_results_carry_card_and_command(file):
    text = file.read_text(encoding="utf-8")
    found = json.loads(text)
    assert found["command"].startswith("python bench/run.py")
    for threads, card in found["cards"].items():
        assert card["threads"] == int(threads) and card["numpy_blas"]["threads"] in (None, int(threads))
        assert card["cpu"] and card["isa"] and card["versions"]["numpy"] and card["date"] and card["load_average"]
        assert tables.machine_slug(card) == file.parent.name
    assert max(map(len, text.splitlines())) < 6000, "one row a line"


def found_row(case: str, work: str, name: str, threads: int, seconds: float, **more) -> dict:
    return {
        "case": case,
        "work": work,
        "name": name,
        "threads": threads,
        "seconds": seconds,
        "kind": "int8",
        "gops": 400.0,
        "percent_of_peak": 98.0,
        "model": "BERT-base",
    } | more


def products(cq_seconds: float, peer_seconds: float, case: str = "128×768×768", threads: int = 1) -> list[dict]:
    ahead_of = {"onnxruntime MatMulInteger": peer_seconds / cq_seconds}
    return [
        found_row(case, "codes → int32", "cq matmul_integer", threads, cq_seconds, ahead_of=ahead_of),
        found_row(case, "codes → int32", "onnxruntime MatMulInteger", threads, peer_seconds),
        found_row(case, "peak", "register-only peak int8", threads, 1.0),
        found_row(case, "peak", "register-only peak float32", threads, 1.0, kind="float32"),
    ]


NOTHING = {"rows": []}


def yardsticks(**given) -> list:
    """All yardsticks from the results given by name; the others hold no row."""
    return tables.targets.yardsticks(dict.fromkeys(tables.targets.OF_SUITE, NOTHING) | given)


@pytest.mark.parametrize("peer_seconds, verdict", [(2.5, "met"), (2.0, "met"), (1.9, "**missed**")])
def test_a_yardstick_is_met_or_missed(peer_seconds, verdict):
    rows = products(2.0, peer_seconds) + products(2.0, peer_seconds, threads=2)
    found = yardsticks(gemm={"rows": rows})
    one = next(row for row in found if row.work.startswith("codes → int32"))
    lost = ["128×768×768"] if verdict != "met" else []
    assert one.verdict() == verdict and one.lost == {"1": lost, "2": lost}
    assert f"{peer_seconds / 2:.2f} (128×768×768)" in one.measured["1"]


def test_every_yardstick_needs_every_case_and_number_of_threads():
    rows = products(2.0, 2.5) + products(2.0, 1.0, "1×768×768") + products(2.0, 2.5, threads=2)
    found = yardsticks(gemm={"rows": rows})
    one = next(row for row in found if row.work.startswith("codes → int32"))
    assert one.verdict() == "**missed** / met" and one.measured["1"] == "1 of 2, worst 0.50 (1×768×768)"


def test_what_was_not_measured_is_not_met():
    found = yardsticks()
    assert {row.verdict() for row in found} == {"not measured"} and len(found) > 20
    found = yardsticks(gemm={"rows": products(2.0, 2.5)})
    assert next(row for row in found if row.work.startswith("codes → int32")).verdict() == "met / not measured"


def test_yardsticks_of_the_model_take_the_faster_strategy_and_the_best_peer():
    def rows(case: str, dynamic: float, static: float, peers: dict, **more) -> list[dict]:
        each = {"cq float32": 4.0, "cq weight-only": 3.0, "cq dynamic": dynamic, "cq static": static} | peers
        return [
            found_row(
                case,
                "hidden states",
                name,
                1,
                seconds,
                ahead_of={other: each[other] / seconds for other in each if other != name},
                **more,
            )
            for name, seconds in each.items()
        ]

    model = {
        "rows": rows("8×128", 0.06, 0.05, {"A": 0.2, "B": 0.07}, activation_bytes=100)
        + rows("stream of sentences", 1.0, 2.0, {"A": 5.0, "A, sorted by length": 1.6}, sequences=1500, tokens=9000)
    }
    found = {row.work: row for row in yardsticks(model=model)}
    best = found["MiniLM-L6: the best peer's time, in its best order, over cq's"]
    assert best.measured == {"1": "2 of 2, worst 1.40 (8×128)"} and best.verdict() == "met / not measured"
    rows_lost = rows("8×128", 0.06, 0.05, {"A": 0.06}) + rows("16×256", 1.0, 0.5, {"A": 1.0})
    lost = {row.work: row for row in yardsticks(model={"rows": rows_lost})}[best.work]
    assert lost.measured["1"] == "1 of 2, worst 1.20 (8×128)" and lost.lost == {"1": ["8×128"]}
    assert found["dynamic's time over static's, 8 sequences and more"].lost == {"1": ["stream of sentences"]}


def test_yardsticks_and_tables_of_a_language_models_accuracy():
    def scored(name: str, perplexity: float, error: float) -> dict:
        return found_row(
            "text",
            "accuracy",
            name,
            2,
            1.0,
            perplexity=perplexity,
            over_error=error,
            kl=0.0,
            top1=1.0,
            flips=0.0,
            sqnr_db=None,
            windows=32,
        )

    texts = found_row(
        "greedy text",
        "greedy",
        "cq weight-only",
        2,
        1.0,
        prompts=3,
        tokens=200,
        equal=1,
        first=[None, 5, 0],
        gaps=[None, 0.25, 0.75],
    )
    given = {
        "rows": [
            scored("cq float32", 20.0, 0.0),
            scored("cq weight-only", 20.02, 5e-4),
            scored("cq weight-only, int8 cache", 20.08, 1e-3),
            texts,
        ],
        "cards": result("lm_accuracy")["cards"],
    }
    found = {row.work: row for row in yardsticks(lm_accuracy=given) if row.met}
    assert [(row.measured, row.verdict()) for row in found.values()] == [
        ({"2": "0.10"}, "met"),
        ({"2": "0.30"}, "**missed**"),
        ({"2": "1"}, "**missed**"),
    ]
    assert "| cq weight-only | 20.020 | +0.10 ± 0.05 |" in tables.tables_lm.lm_accuracy(given)
    assert "| cq weight-only | 1 | –, 5, 0 | 0.500 |" in tables.tables_lm.lm_greedy(given)


def test_the_table_says_what_static_was_calibrated_on():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT)
        smollm = importlib.import_module("bench.smollm")
    assert f"on {smollm.CALIBRATED_ON} windows" in tables.tables_lm.lm_accuracy(result("lm_accuracy"))


def test_greedy_texts_are_compared_up_to_the_first_other_token():
    asked = []

    def logits(ids: np.ndarray) -> np.ndarray:
        asked.append(ids.tolist())
        return np.arange(6, dtype=np.float32)[None]

    ours, theirs = [np.array([5, 4]), np.array([5, 4])], [np.array([5, 4]), np.array([5, 3])]
    found = greedy.compared([np.array([1]), np.array([2])], ours, theirs, logits)
    assert (found["equal"], found["first"], found["gaps"]) == (1, [None, 1], [None, 1.0]) and asked == [[2, 5]]


def test_orders_agree_wholly_or_beyond_a_margin():
    exact = np.array([[0.9, 0.5, 0.495, 0.1], [0.2, 0.8, 0.3, 0.1], [0.7, 0.6, 0.5, 0.4]])
    close, best, last = exact.copy(), exact.copy(), exact.copy()
    close[0, 1:3] = 0.495, 0.5  # what is close changes places
    best[1, 2] = 0.85
    last[2, 3] = 0.5  # as good as the one before it, which comes first
    same = {"first": 1.0, "order": 1.0, "order_beyond": 1.0}
    assert orders.agreement(exact, exact, 0.01) == orders.agreement(exact, exact / 2 + 0.1, 0.01) == same
    assert orders.agreement(exact, close, 0.01) == same | {"order": 2 / 3}
    assert orders.agreement(exact, best, 0.01) == {"first": 2 / 3, "order": 2 / 3, "order_beyond": 2 / 3}
    assert orders.agreement(exact, last, 0.01) == same | {"order_beyond": 2 / 3}


def test_two_threads_over_one():
    rows = products(2.0, 2.5) + products(1.0, 2.5, threads=2) + products(2.0, 2.5, "8×768×768")
    assert tables.products.speedups(
        [row for row in rows if row["case"] == "128×768×768" and row["work"] != "peak"]
    ) == {("128×768×768", "codes → int32", "cq matmul_integer"): 2.0}


def test_a_busy_machine_is_told_of():
    cards = {"1": result("gemm")["cards"]["1"] | {"cores": 2, "load_average": [5.2, 1, 1]}}
    assert "busy machine (load average 5.2)" in tables.products.gemm({"rows": products(2.0, 2.5), "cards": cards})


def test_products_show_where_cq_loses():
    card = result("gemm")["cards"]["1"]
    text = tables.products.gemm({"rows": products(2.0, 2.5) + products(2.0, 1.0, "1×768×768"), "cards": {"1": card}})
    assert "ahead in 1 of 2 with 1" in text and "| BERT-base 768×768 | 98<br>0.50 | 98<br>**1.25** |" in text


def test_a_contest_measures_time_peak_and_bandwidth():
    class Benchmark:
        def __init__(self):
            self.extra_info = {}

        def pedantic(self, call, rounds, iterations):
            for _ in range(rounds):
                call()

    entries = [
        measure.Entry("work", "cq", lambda: None, 1e6, "int8", {"note": 1}, weight_bytes=4096),
        measure.Entry("work", "peer", lambda: sum(range(2000)), 1e6, "int8"),
    ]
    rows = measure.contest(Benchmark(), "case", entries, threads=1, rounds=2, turn_s=0.001)
    assert [row["name"] for row in rows] == [
        "cq",
        "peer",
        "register-only peak int8",
        "register-only peak float32",
        "read of 4096 bytes",
    ]
    ours, peer, int8, _, read = rows
    assert ours["ahead_of_best_peer"] == ours["ahead_of"]["peer"] > 1 and "ahead_of" not in peer and ours["note"] == 1
    assert int8["percent_of_peak"] == pytest.approx(100) and int8["gops"] > 0
    assert read["gb_per_s"] > 0.1
    assert ours["percent_of_read"] == pytest.approx(100 * ours["gb_per_s"] / read["gb_per_s"], rel=0.02)
    assert "gb_per_s" not in peer and "percent_of_peak" not in read


@pytest.mark.parametrize("warm, calls", [(True, 2), (False, 1)])
def test_a_long_call_has_a_turn_of_one(warm, calls):
    seen = []
    assert len(measure.turn(lambda: seen.append(1), 0, warm)) == 1 and len(seen) == calls


def test_gemm_reaches_four_fifths_of_peak():
    best = row(result("gemm")["rows"], case="128×768×3072", threads=1, work="codes → int32", name="cq matmul_integer")
    assert best["percent_of_peak"] >= 80


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", ["cq dynamic", "cq static"])
def test_minilm_beats_float32_and_torch(name, threads):
    ahead = row(result("model")["rows"], case="8×128", threads=threads, name=name)["ahead_of"]
    assert ahead["cq float32"] >= 2.5
    torch = [ratio for rival, ratio in ahead.items() if rival.startswith("torch dynamic")]
    assert torch and min(torch) > 1


def test_a_result_is_not_replaced_by_one_beside_fewer_peers(tmp_path):
    file, rows = tmp_path / "lm.json", [{"name": "cq static"}, {"name": "CTranslate2 int8"}, {"name": "llama.cpp Q8_0"}]
    assert run.peers_gone(file, {"versions": {}}) == []
    file.write_text(json.dumps({"rows": rows}))
    assert run.peers_gone(file, {"versions": {"ctranslate2": "5", "torch": "2"}}) == ["llama-cpp-python"]
    assert run.peers_gone(file, {"versions": {"ctranslate2": "5", "llama-cpp-python": "1"}}) == []


def test_missing_suites_are_those_without_a_file(tmp_path):
    suites = ("gemm", "avx2", "lm", "lm_accuracy", "compare")
    assert run.missing(tmp_path, "avx2", suites) == list(suites)
    assert run.missing(tmp_path, "avx512vnni", suites) == ["gemm", "lm", "lm_accuracy", "compare"]
    for name in ("lm_accuracy", "compare_minilm"):  # neither is lm's, nor all of compare's
        (tmp_path / f"{name}.json").touch()
    assert run.missing(tmp_path, "avx512vnni", suites) == ["gemm", "lm", "compare"]
    (tmp_path / "compare_shakespeare.json").touch()
    assert run.missing(tmp_path, "avx512vnni", suites) == ["gemm", "lm"]


def test_wrong_results_of_peers_are_shown():
    card = result("gemm")["cards"]["1"]
    rows = products(2.0, 2.5)
    assert "wrong" not in tables.products.gemm({"rows": rows, "cards": {"1": card}})
    next(row for row in rows if row["name"].startswith("onnxruntime"))["percent_wrong"] = 2.5
    text = tables.products.gemm({"rows": rows, "cards": {"1": card}})
    assert "| onnxruntime MatMulInteger | 2.50 to 2.50 |" in text
