"""The file of an exported graph: whole or not at all, above 2 GB in two; arguments that cannot work say so."""

import sys

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

import cq
from cq.cli import main
from cq.formats import files
from cq.formats.onnx import graph as graphs


def test_weights_in_a_second_file(tiny_encoder, exported, sequences, monkeypatch, tmp_path):
    model = cq.quantize(cq.load(tiny_encoder), cq.WeightOnly())
    tokens = sequences(model)
    one = exported(model)(tokens)["sentence_embedding"]
    assert not (tmp_path / "model.onnx.data").exists()
    monkeypatch.setattr(graphs, "LARGEST", 1000)
    graph = exported(model)
    np.testing.assert_array_equal(graph(tokens)["sentence_embedding"], one)
    assert {path.name for path in tmp_path.iterdir()} == {"model.onnx", "model.onnx.data", "model.optimized"}
    assert (tmp_path / "model.onnx.data").stat().st_size > 64 * 256 + 2 * (4 * 64 * 64 + 2 * 64 * 128)
    bare = onnx.load(graph.path, load_external_data=False)
    outside = [t for t in bare.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
    assert len(outside) > 10 and all(int(e.value) % 4096 == 0 for t in outside for e in t.external_data[1:2])


def test_only_standard_operators(tiny_encoder, tmp_path):
    model = cq.load(tiny_encoder)
    for name, strategy in (("static", cq.Static()), ("dynamic", cq.Dynamic())):
        cq.export(cq.quantize(model, strategy, ["a text"] if name == "static" else None), tmp_path / f"{name}.onnx")
        found = onnx.load(tmp_path / f"{name}.onnx")
        assert [(o.domain, o.version) for o in found.opset_import] == [("", 21)]
        assert {node.domain for node in found.graph.node} == {""}
    kinds = [node.op_type for node in found.graph.node]
    assert kinds.count("MatMulInteger") == 12


@pytest.mark.parametrize("large", [False, True])
def test_nothing_is_left_of_a_failure(tiny_encoder, tmp_path, monkeypatch, large):
    """What stood there stays."""
    model, target = cq.load(tiny_encoder), tmp_path / "model.onnx"
    target.write_bytes(b"before")
    if large:
        monkeypatch.setattr(graphs, "LARGEST", 1000)

    def fails(descriptor: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(files.os, "fsync", fails)
    with pytest.raises(OSError, match="no space"):
        cq.export(model, target)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"] and target.read_bytes() == b"before"


def test_arguments_that_cannot_work(tiny_encoder, tmp_path, monkeypatch):
    model = cq.load(tiny_encoder)
    (tmp_path / "folder.onnx").mkdir()
    for path in ("model.pt", "model", tmp_path / "model.onnx.data", "model.onnx\0", 7, tmp_path / "folder.onnx"):
        with pytest.raises(cq.CqError) as caught:
            cq.export(model, path)
        assert "\n" not in str(caught.value)
    with pytest.raises(cq.CqError, match="need a cq.Transformer"):
        cq.export({}, tmp_path / "model.onnx")
    with pytest.raises(FileNotFoundError):
        cq.export(model, tmp_path / "nowhere" / "model.onnx")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(cq.UnsupportedError, match=r"cquant\[onnx\]"):
        cq.export(model, tmp_path / "model.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["folder.onnx"]


def test_command(tiny_encoder, tmp_path, monkeypatch):
    out = tmp_path / "model.onnx"

    def run(*arguments) -> tuple[int, str]:
        found = CliRunner().invoke(main, ["export", *map(str, arguments)])
        return found.exit_code, found.output

    code, text = run(tiny_encoder, out)
    assert code == 0 and "MB" in text
    onnx.checker.check_model(out)
    code, text = run(tiny_encoder, out)
    assert code == 1 and "exists" in text and text.count("\n") == 1
    monkeypatch.setattr(graphs, "LARGEST", 1000)
    code, text = run(tiny_encoder, out, "--force")
    assert code == 0 and "model.onnx.data" in text.replace("\n", "")
    for wrong in (tmp_path / "model.pt", tmp_path / "nowhere" / "model.onnx", tmp_path):
        code, text = run(tiny_encoder, wrong)
        assert code == 1 and text.count("\n") == 1
