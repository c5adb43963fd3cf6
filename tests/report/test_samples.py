"""Reading data: sentence pairs, windows, lines, Python objects; and every malformed row named by file and line."""

from types import SimpleNamespace

import numpy as np
import pytest

from cq.errors import CqError, FormatError
from cq.report import samples


@pytest.fixture
def reader(byte_tokenizer):
    """Makes all that reading asks of a model: its sizes and a tokenizer, here one id per byte."""

    def make(causal=False, max_positions=16, max_length=512):
        config = SimpleNamespace(causal=causal, max_positions=max_positions, vocab_size=256)
        return SimpleNamespace(
            config=config,
            tokenizer=byte_tokenizer,
            tokenize=lambda text: np.array(byte_tokenizer.encode(text).ids[:max_length], np.int32),
        )

    return make


def texts(found, model):
    return [model.tokenizer.decode(ids.tolist()) for ids in found]


def write(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_pairs_with_and_without_scores(reader, tmp_path):
    model = reader()
    path = write(tmp_path, "a.tsv", "4.5\tone\ttwo\n\tthree \tfour\r\n\n0\tfive\tsïx")
    found = samples.read(str(path), model)
    assert texts(found, model) == ["one", "two", "three ", "four", "five", "sïx"]
    np.testing.assert_array_equal(found.scores, [4.5, np.nan, 0])
    assert found.sources == (path,) and found.num_tokens == 24 and all(ids.dtype == np.int32 for ids in found)


@pytest.mark.parametrize(
    "row, message",
    [
        ("1.0\tonly one", r"a.tsv:2: wanted score<TAB>sentence<TAB>sentence, got 2 field"),
        ("1.0\ta\tb\tc", r"a.tsv:2: .*got 4 field"),
        ("score\ta\tb", r"a.tsv:2: the score must be a number or empty, got 'score'"),
        ("nan\ta\tb", r"a.tsv:2: the score must be a number or empty, got 'nan'"),
        ("-inf\ta\tb", r"a.tsv:2: the score must be a number"),
        ("1\ta\t ", r"a.tsv:2: a sentence of the pair is empty"),
        (b"1\ta\t\xff", r"a.tsv:2: not UTF-8"),
    ],
)
def test_malformed_rows_name_file_and_line(reader, tmp_path, row, message):
    row = row if isinstance(row, bytes) else row.encode()
    with pytest.raises(FormatError, match=message):
        samples.read(write(tmp_path, "a.tsv", b"5\tgood\trow\n" + row + b"\n"), reader())


def test_windows_of_a_causal_model_do_not_overlap_and_drop_the_tail(reader, tmp_path):
    model = reader(causal=True)
    found = samples.read(write(tmp_path, "a.txt", "abcdefgh" * 4 + "\n\ntail"), model)
    assert texts(found, model) == ["abcdefgh" * 2] * 2 and found.scores is None
    found = samples.read(tmp_path / "a.txt", reader(causal=True, max_positions=8))
    assert len(found) == 4
    long = samples.read(write(tmp_path, "b.txt", "x" * 1100), reader(causal=True, max_positions=4096))
    assert [len(ids) for ids in long] == [512, 512]
    with pytest.raises(CqError, match="too short for one window: 5 tokens"):
        samples.read(write(tmp_path, "c.txt", "short"), model)


def test_windows_are_cut_from_the_whole_stream_whatever_the_tokenizer_truncates(reader, tmp_path):
    model = reader(causal=True)
    model.tokenizer.enable_truncation(4)
    model.tokenizer.enable_padding(length=4)
    assert len(samples.read(write(tmp_path, "a.txt", "x" * 64), model)) == 4
    assert model.tokenizer.truncation["max_length"] == 4  # the model's own is left alone


def test_an_encoder_reads_the_lines_that_are_not_blank(reader, tmp_path):
    model = reader()
    found = samples.read(write(tmp_path, "a.txt", "\ufeffone\r\n \n\ntwo\n"), model)
    assert texts(found, model) == ["one", "two"]


def test_folders_and_globs(reader, tmp_path):
    for name in ("b.tsv", "a.tsv"):
        write(tmp_path, name, f"1\t{name}\tx\n")
    write(tmp_path, "README.md", "no data")
    model = reader()
    for source in (tmp_path, str(tmp_path / "*.tsv"), [tmp_path / "a.tsv", tmp_path / "b.tsv", tmp_path / "*.tsv"]):
        assert texts(samples.read(source, model), model) == ["a.tsv", "x", "b.tsv", "x"]


def test_files_that_cannot_be_read(reader, tmp_path):
    model = reader()
    with pytest.raises(FileNotFoundError, match="no such file, and no file matches"):
        samples.read(str(tmp_path / "none*.tsv"), model)
    with pytest.raises(FileNotFoundError, match="no .tsv or .txt file in this folder"):
        samples.read(tmp_path, model)
    with pytest.raises(FormatError, match=r"a.csv: wanted a .tsv"):
        samples.read(write(tmp_path, "a.csv", "1,2"), model)
    write(tmp_path, "a.tsv", "1\ta\tb")
    write(tmp_path, "b.txt", "text")
    with pytest.raises(CqError, match="cannot be mixed"):
        samples.read(tmp_path, model)
    with pytest.raises(CqError, match="b.tsv: no samples"):
        samples.read(write(tmp_path, "b.tsv", "\n \n"), model)


def test_samples_in_python_are_texts_arrays_and_batches_of_them(reader):
    model = reader(max_length=3)
    ids = np.array([7, 8], np.uint16)
    found = samples.read(iter(["one", ids, ["two", ids], np.array([[1, 2], [3, 4]]), ("abcd",)]), model)
    assert [len(x) for x in found] == [3, 2, 3, 2, 2, 2, 3]
    np.testing.assert_array_equal(found.tokens[1], [7, 8])
    np.testing.assert_array_equal(found.tokens[5], [3, 4])
    assert samples.read(found, model) is found


@pytest.mark.parametrize(
    "source, message",
    [
        ([], "no samples"),
        ([[]], "sample 0 is an empty batch"),
        (["a", 7], "sample 1: wanted a text, .* got int"),
        ([[1, 2]], "sample 0: wanted a text, .* got int"),
        ([np.zeros(3)], r"sample 0: wanted .* got a float64 array of shape \(3,\)"),
        ([np.zeros(0, int)], "token ids must be 0…255, at least one, got none"),
        ([np.array([0, 256])], "got 0…256"),
        ([np.array([2**32 + 1])], "got 4294967297…"),
        ([np.array([-1])], "got -1…-1"),
        ([""], "sample 0: the text '' has no tokens"),
        (3, "data must be a path or an iterable of samples, got int"),
    ],
)
def test_samples_of_another_kind_are_refused(reader, source, message):
    with pytest.raises(CqError, match=message):
        samples.read(source, reader())


def test_the_name_of_a_file_is_not_taken_for_a_text(reader, tmp_path):
    path = write(tmp_path, "a.txt", "text")
    with pytest.raises(CqError, match="give it as pathlib.Path"):
        samples.read([str(path)], reader())


def test_text_needs_a_tokenizer(reader, tmp_path):
    model = reader(causal=True)
    model.tokenizer = None
    with pytest.raises(CqError, match="no tokenizer"):
        samples.read(write(tmp_path, "a.txt", "x" * 99), model)


def test_limit_spreads_and_keeps_pairs_whole(reader, tmp_path):
    model = reader()
    found = samples.read(write(tmp_path, "a.tsv", "".join(f"{i}\ta{i}\tb{i}\n" for i in range(10))), model)
    part = found.limit(4)
    assert part.scores.tolist() == [0, 2, 5, 7]
    assert texts(part, model) == ["a0", "b0", "a2", "b2", "a5", "b5", "a7", "b7"]
    assert len(found.limit(99)) == 20 and found.limit(99).sources == found.sources
    with pytest.raises(CqError, match="limit"):
        found.limit(0)


def test_the_sts_files_are_read_whole(reader, data_folder):
    found = samples.read(str(data_folder / "sts" / "2013.*.tsv"), reader())
    assert len(found) == 3000 and len(found.sources) == 3
    assert np.isfinite(found.scores).all() and 0 <= found.scores.min() <= found.scores.max() <= 5
