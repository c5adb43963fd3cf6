"""Checkpoints of version 4 load, with the bits that they had: files of the models of test_one_file.py, and the outputs
that cq 0.1 at version 4 gave for them. Saved again, they are files of version 5 with the same outputs."""

import importlib.util
import json
from pathlib import Path

import pytest

import cq
from cq.formats.tensors import read_tensors

FOLDER = Path(__file__).with_name("version4")
OUTPUTS = json.loads((FOLDER / "outputs.json").read_text())


@pytest.fixture(scope="module")
def outputs():
    spec = importlib.util.spec_from_file_location("one_file", Path(__file__).parents[1] / "test_one_file.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module._outputs


@pytest.mark.parametrize("name", OUTPUTS)
def test_the_same_bits(outputs, tmp_path, name):
    kind = name.removesuffix(".safetensors").rpartition("-")[2]
    model = cq.load(FOLDER / name)
    assert json.loads(read_tensors(FOLDER / name)[1]["cq"])["version"] == 4
    assert outputs(model, kind) == OUTPUTS[name]
    cq.save(model, tmp_path / "new.safetensors")
    again = cq.load(tmp_path / "new.safetensors")
    assert outputs(again, kind) == OUTPUTS[name] and again.coverage() == model.coverage()
    assert json.loads(read_tensors(tmp_path / "new.safetensors")[1]["cq"])["version"] == 5
