"""Each program of examples/ runs on small inputs and says what it should."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def run(workplace, tmp_path):
    """run(program, arguments…) → what it prints, started in the folder of small models."""

    def start(program: str, *arguments, said: str = "") -> str:
        ran = subprocess.run(
            [sys.executable, EXAMPLES / program, *map(str, arguments)],
            cwd=workplace,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            input=said,
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert not ran.returncode, ran.stderr
        return ran.stdout

    return start


def test_every_program_is_short_listed_and_tested():
    listed = re.findall(r"^\| \[(\w+\.py)\]", (EXAMPLES / "README.md").read_text(), re.M)
    programs = sorted(path.name for path in EXAMPLES.glob("*.py"))
    assert programs == sorted(listed)
    for name in programs:
        assert len((EXAMPLES / name).read_text().splitlines()) < 60, name
        assert f'"{name}"' in Path(__file__).read_text(), f"{name} has no test"


def test_search(run, verses):
    found = run("search.py", "all-MiniLM-L6-v2", "texts.txt", verses[3]).splitlines()
    assert len(found) == 3 and found[0].endswith(verses[3]) and float(found[0].split()[0]) > 0.95


def test_classify(run):
    *lines, last = run("classify.py", "ms-marco-MiniLM-L6-v2", "texts.txt").splitlines()
    assert len(lines) == 40 and all(line.split()[:2] == ["relevance", "relevance"] for line in lines)
    assert last.startswith("int8 agrees on 100%")


def test_chat(workplace, monkeypatch, capsys):
    monkeypatch.syspath_prepend(EXAMPLES)
    import chat

    said = iter(["What is a cat?", ""])
    monkeypatch.setattr("builtins.input", lambda prompt: next(said))
    chat.main(str(workplace / "SmolLM2-135M-Instruct.Q4_1.gguf"), max_new_tokens=5)
    assert len(capsys.readouterr().out.split()) >= 3, "chat.py"


@pytest.mark.parametrize("program, model", [("cluster.py", "all-MiniLM-L6-v2"), ("serve.py", "all-MiniLM-L6-v2")])
def test_embedding_in_several_processes(run, tmp_path, workplace, verses, program, model):
    import cq

    assert run(program, model, "texts.txt", tmp_path / "vectors.npy").startswith("wrote 40 vectors")
    vectors, float32 = np.load(tmp_path / "vectors.npy"), cq.load(workplace / model).embed(verses[:40])
    assert vectors.shape == float32.shape and (vectors * float32).sum(axis=1).min() > 0.95


def test_train_behind_int8(run, tmp_path):
    out = tmp_path / "out.safetensors"
    static, qat = run("train_behind_int8.py", "all-MiniLM-L6-v2", "texts.txt", out, 2).splitlines()
    assert static.startswith("static") and qat.startswith("QAT") and float(qat.split()[-1]) > 0.98 and out.exists()


def test_layer_that_hurts(run):
    lines = run("layer_that_hurts.py", "all-MiniLM-L6-v2", "texts.txt").splitlines()
    cosines = [float(re.search("cosine (\\S+);", line)[1]) for line in lines[3:]]
    assert len(lines) == 5 and cosines[1] > cosines[0]
