"""`cq embed` from columns of files to files, in parts, and over a Dask cluster."""

import csv
import json
import tracemalloc

import distributed
import numpy as np
import pyarrow
import pytest
from click.testing import CliRunner
from pyarrow import parquet

import cq
from cq.cli import embed, main
from cq.formats.columns import read_texts
from cq.formats.vectors import written

TEXTS = [f'line {i}, "quoted"' for i in range(20)]


@pytest.fixture
def run(tiny_encoder, monkeypatch):
    monkeypatch.setattr(embed, "_AT_ONCE", 7)

    def invoke(*arguments, code=0, stdin=None):
        result = CliRunner().invoke(main, ["embed", str(tiny_encoder), *map(str, arguments)], input=stdin)
        assert result.exit_code == code, result.output + str(result.exception)
        return result.stderr if code else result.stdout

    return invoke


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Suffix → file with TEXTS in its column "text" and other things in "other"."""
    folder = tmp_path_factory.mktemp("files")
    paths = {name: folder / f"texts.{name}" for name in ("csv", "jsonl", "parquet", "txt")}
    with open(paths["csv"], "w", newline="") as file:
        csv.writer(file).writerows([("other", "text"), *((i, text) for i, text in enumerate(TEXTS))])
    paths["jsonl"].write_text("".join(json.dumps({"other": i, "text": t}) + "\n" for i, t in enumerate(TEXTS)))
    parquet.write_table(pyarrow.table({"other": list(range(20)), "text": TEXTS}), paths["parquet"])
    paths["txt"].write_text("\n".join(TEXTS) + "\n")
    return paths


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "txt"])
def test_files_of_each_kind_to_npy(run, files, tiny_encoder, tmp_path, kind):
    column = () if kind == "txt" else ("--column", "text")
    assert run("first", "--input", files[kind], *column, "--output", tmp_path / "v.npy") == ""
    np.testing.assert_array_equal(np.load(tmp_path / "v.npy"), cq.load(tiny_encoder).embed(["first", *TEXTS]))
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(("kind", "content"), [("csv", "text\none"), ("jsonl", '{"text": "one"}'), ("txt", "one")])
def test_a_mark_of_utf8_is_no_part_of_a_text(tmp_path, kind, content):
    """As spreadsheets put it in front."""
    path = tmp_path / f"a.{kind}"
    path.write_text(content, encoding="utf-8-sig")
    assert list(read_texts(path)) == ["one"]


def test_parquet_holds_texts_and_vectors(run, files, tiny_encoder, tmp_path):
    run("--input", files["csv"], "--output", tmp_path / "v.parquet")
    table = parquet.read_table(tmp_path / "v.parquet")
    assert table["text"].to_pylist() == TEXTS
    vectors = np.array(table["embedding"].to_pylist(), np.float32)
    np.testing.assert_array_equal(vectors, cq.load(tiny_encoder).embed(TEXTS))


def test_stdin_goes_on_to_stdout(run):
    lines = run("--input", "-", stdin="line 0\nline 1").splitlines()
    assert [json.loads(line)["text"] for line in lines] == ["line 0", "line 1"]
    (line,) = run("--input", "-", stdin="\ufeffline 0").splitlines()
    assert json.loads(line)["text"] == "line 0"  # without the mark of UTF-8


@pytest.mark.parametrize(
    ("name", "content", "arguments", "message"),
    [
        ("a.csv", "x,y\n1,2\n", (), "no column 'text'; it has"),
        ("a.csv", 'x\n"a\n', (), "row 1: not CSV"),
        ("a.csv", "x,text\n1\n", (), "row 1: need a text, got None"),
        ("a.jsonl", '{"text": 3}\n', (), "row 1: need a text, got 3"),
        ("a.jsonl", "{\n", (), "line 1: not JSON"),
        ("a.jsonl", '{"a": "b", "c": "d"}\n', (), "no column 'text'"),
        ("a.parquet", "text", (), "not a Parquet file"),
        ("a.txt", "text", ("--column", "a"), "read as lines"),
        ("a.csv", "", (), "no column 'text'"),
        ("a.txt", "", (), "no texts"),
    ],
)
def test_files_that_cannot_be_read(run, tmp_path, name, content, arguments, message):
    (tmp_path / name).write_text(content)
    stderr = run("--input", tmp_path / name, "--output", tmp_path / "v.npy", *arguments, code=2)
    assert message in stderr and stderr.count("\n") == 1
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_a_file_that_ends_badly_leaves_nothing(run, tmp_path):
    pytest.importorskip("pyarrow")
    (tmp_path / "a.jsonl").write_text('{"text": "good"}\n' * 30 + "bad\n")
    for suffix in ("npy", "parquet"):
        assert "line 31: not JSON" in run("--input", tmp_path / "a.jsonl", "--output", tmp_path / f"v.{suffix}", code=1)
    assert [file.name for file in tmp_path.iterdir()] == ["a.jsonl"]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "txt"])
def test_memory_does_not_grow_with_the_file(files, tmp_path, kind):
    """Neither of reading nor of writing: the file is six times as long as what may be held."""
    text, n, path = "x" * 300, 20_000, tmp_path / f"long.{kind}"
    if kind == "parquet":
        parquet.write_table(pyarrow.table({"text": [text] * n}), path, row_group_size=1000)
    else:
        line = json.dumps({"text": text}) if kind == "jsonl" else text
        path.write_text("text\n" * (kind == "csv") + (line + "\n") * n)
    tracemalloc.start()
    with written(tmp_path / "v.npy", 4) as writer:
        for one in read_texts(path):
            writer.write([one], np.ones((1, 4), np.float32))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1e6
    assert np.load(tmp_path / "v.npy").shape == (n, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a", "--column", "b"), "--column is for --input"),
        (("a", "--output", "a.txt"), "--output writes .npy or .parquet"),
    ],
)
def test_options_that_do_not_fit(run, arguments, message):
    assert message in run(*arguments, code=2)


def test_a_cluster_gives_the_same_bits(local_cluster, run, files, tiny_encoder, tmp_path):
    with local_cluster(processes=False) as cluster:
        address = cluster.scheduler_address
        run("first", "--input", files["txt"], "--output", tmp_path / "v.npy", "--dask", address, "--prompt", "a ")
    expected = cq.load(tiny_encoder).embed(["first", *TEXTS], prompt="a ")
    np.testing.assert_array_equal(np.load(tmp_path / "v.npy"), expected)


def test_no_cluster_is_one_sentence(run, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("Timed out")

    monkeypatch.setattr(distributed, "Client", fail)
    assert "--dask tcp://x:1: no scheduler answers there" in run("a", "--dask", "tcp://x:1", code=1)
