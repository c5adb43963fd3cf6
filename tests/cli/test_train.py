"""cq train: a folder that cq loads, the split of the text, a quantization-aware model beside it, and its refusals."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

import cq
from cq.cli import main


@pytest.fixture
def run():
    def invoke(*arguments, code=0):
        result = CliRunner().invoke(main, ["train", *map(str, arguments)])
        assert result.exit_code == code, result.output + str(result.exception)
        return result.stderr if code else result.stdout

    return invoke


@pytest.fixture
def like(tmp_path_factory, random_model, byte_tokenizer):
    """A folder with the configuration of a tiny model over bytes, and no weights."""
    folder = tmp_path_factory.mktemp("like")
    config = random_model(
        "llama", vocab_size=256, hidden_size=12, num_heads=4, head_dim=6, intermediate_size=13, max_positions=16
    )[0].config
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    byte_tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("to be or not to be, that is the question:\n" * 40)
    return path


def test_what_it_writes(run, like, text, tmp_path):
    out = tmp_path / "out"
    shown = run(text, out, "--like", like, "--steps", 30, "--learning-rate", 0.02, "--qat", 5, "--half")
    record = json.loads((out / "training.json").read_text())
    assert record["steps"] == 30 and "evaluation_bits_per_token" in shown
    model, static = cq.load(out), cq.load(out / "qat.safetensors")
    assert model.strategy is None and static.strategy == cq.Static()
    assert (
        record["evaluation_bits_per_token"] < 6
        and abs(record["evaluation_bits_per_token"] - record["qat_evaluation_bits_per_token"]) < 0.5
    )
    parts = [(out / f"{name}.txt").read_text() for name in ("calibration", "evaluation")]
    assert text.read_text().endswith("".join(parts)) and [len(part) for part in parts] == [84, 84]
    assert (out / "model.safetensors").stat().st_size < 2.5 * record["parameters"] + 4096
    assert np.array_equal(model.logits([[1, 2]])[0], cq.load(out / "model.safetensors").logits([[1, 2]])[0])


def test_it_resumes_to_the_same_model(run, like, text, tmp_path):
    run(text, tmp_path / "a", "--like", like, "--steps", 4, "--checkpoint", tmp_path / "c.safetensors")
    run(text, tmp_path / "b", "--like", like, "--steps", 4, "--checkpoint", tmp_path / "c.safetensors")
    a, b = ((tmp_path / name / "model.safetensors").read_bytes() for name in "ab")
    assert a == b
    assert "another training" in run(
        text, tmp_path / "d", "--like", like, "--steps", 5, "--checkpoint", tmp_path / "c.safetensors", code=1
    )


def test_refusals(run, like, text, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "model.safetensors").write_text("precious")
    assert "add --force" in run(text, out, "--like", like, code=1)
    assert "no such folder" in run(text, tmp_path / "no" / "out", "--like", like, code=1)
    assert "does not exist" in run(tmp_path / "none.txt", tmp_path / "o", "--like", like, code=2)
    short = tmp_path / "short.txt"
    short.write_text("abc")
    assert "windows of 16 tokens" in run(short, tmp_path / "o", "--like", like, code=1)
    assert "learning_rate must be a positive" in run(text, tmp_path / "o", "--like", like, "--learning-rate", 0, code=1)
    assert "no config.json" in run(text, tmp_path / "o", "--like", tmp_path, code=1)
    assert not (tmp_path / "o").exists()
