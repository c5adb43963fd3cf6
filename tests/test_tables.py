"""The READMEs' numbers: each table is what its JSON gives, and each JSON says where it was measured and by what command."""
import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TABLES = ("gemm", "model", "compare_shakespeare", "compare_minilm")


@pytest.fixture(scope="module")
def tables():
    spec = importlib.util.spec_from_file_location("bench_tables", ROOT / "bench" / "tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def result(name: str) -> dict:
    return json.loads((ROOT / "bench" / "results" / f"{name}.json").read_text(encoding="utf-8"))


def row(rows: list[dict], **wanted) -> dict:
    (found,) = [row for row in rows if all(row[key] == value for key, value in wanted.items())]
    return found


def test_pages_hold_every_table_as_its_json_gives_it(tables):
    pages = [page.read_text(encoding="utf-8") for page in tables.PAGES]
    assert all(any(f"<!-- table:{name} -->" in page for page in pages) for name in TABLES)
    for page in pages:
        assert tables.filled(page, tables.RESULTS) == page, "run python bench/tables.py"


def test_missing_results_are_refused(tables, tmp_path):
    with pytest.raises(FileNotFoundError, match="run python bench/run.py"):
        tables.filled("<!-- table:gemm -->\n<!-- /table -->\n", tmp_path)


@pytest.mark.parametrize("text", ["<!-- table:gemm -->\n", "<!-- table:other -->\n<!-- /table -->\n"])
def test_bad_markers_are_refused(tables, tmp_path, text):
    with pytest.raises(ValueError, match="table:"):
        tables.filled(text, tmp_path)


@pytest.mark.parametrize("name", TABLES)
def test_results_carry_card_and_command(name):
    found = result(name)
    assert found["command"].startswith("python bench/run.py")
    for threads, card in found["cards"].items():
        assert card["threads"] == int(threads) and card["numpy_blas"]["threads"] in (None, int(threads))
        assert card["cpu"] and card["isa"] and card["versions"]["numpy"] and card["date"] and card["load_average"]


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
