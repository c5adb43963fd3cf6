"""Models by their names on the Hugging Face Hub: from its cache, and what is asked of huggingface_hub where they are
not there. No test goes online."""

import json
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest

import cq
from cq.formats import hub

NAME, COMMIT = "some-owner/Some.Model-1", "a" * 40


@pytest.fixture
def folder(bert, tmp_path):
    """A sentence encoder's folder, with files that cq never reads."""
    (bert / "1_Pooling").mkdir()
    (bert / "1_Pooling" / "config.json").write_text('{"pooling_mode": "cls"}')
    modules = [{"idx": i, "name": str(i), "path": p, "type": f"sentence_transformers.models.{t}"} for i, (p, t) in
               enumerate((("", "Transformer"), ("1_Pooling", "Pooling")))]  # fmt: skip
    (bert / "modules.json").write_text(json.dumps(modules))
    for name in ("pytorch_model.bin", "onnx/model.onnx", "checkpoint-9/model.safetensors", "README.md"):
        (bert / name).parent.mkdir(exist_ok=True)
        (bert / name).write_bytes(b"never read")
    return bert


@pytest.fixture
def cache(folder, tmp_path):
    """HF_HOME with that model in it, laid out as huggingface_hub does it."""
    stored = tmp_path / "home" / "hub" / ("models--" + NAME.replace("/", "--"))
    shutil.copytree(folder, stored / "snapshots" / COMMIT)
    (stored / "refs").mkdir()
    (stored / "refs" / "main").write_text(COMMIT)
    return tmp_path / "home"


def offline(home, *arguments):
    environment = os.environ | {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        environment.pop(name, None)
    return subprocess.run(
        [sys.executable, "-c", "from cq.cli import main; main()", *arguments],
        env=environment,
        capture_output=True,
        text=True,
    )


def test_the_command_line_takes_a_cached_model_by_its_name(cache, tmp_path):
    shown = offline(cache, "inspect", NAME)
    assert shown.returncode == 0, shown.stderr
    assert "pooling: cls" in shown.stdout
    made = offline(cache, "quantize", NAME, str(tmp_path / "q.safetensors"), "--strategy", "dynamic")
    assert made.returncode == 0, made.stderr
    assert cq.load(tmp_path / "q.safetensors").strategy == cq.Dynamic()


@pytest.mark.parametrize(
    ("name", "lost", "said"),
    [
        ("some-owner/other", None, "not whole in the Hugging Face cache"),
        (NAME, "model.safetensors", "no model.safetensors in"),
        (NAME, "config.json", "no config.json in"),
    ],
)
def test_offline_one_sentence_says_what_to_do(cache, name, lost, said):
    if lost:
        (cache / "hub" / "models--some-owner--Some.Model-1" / "snapshots" / COMMIT / lost).unlink()
    run = offline(cache, "inspect", name)
    assert run.returncode == 1 and len(run.stderr.splitlines()) == 1
    assert name in run.stderr and said in run.stderr and "HF_HUB_OFFLINE" in run.stderr


@pytest.fixture
def asked(folder, tmp_path, monkeypatch):
    """Calls of snapshot_download, which copies what their patterns allow."""
    calls, there = [], tmp_path / "snapshot"

    def download(name, revision=None, token=None, allow_patterns=()):
        calls.append((name, revision, token, allow_patterns))
        files = [str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()]
        for file in huggingface_hub.utils.filter_repo_objects(files, allow_patterns=allow_patterns):
            (there / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / file, there / file)
        return str(there)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return calls, there


def test_only_what_is_read_is_downloaded(asked, folder):
    calls, there = asked
    model = cq.load(NAME, revision="v2", token="secret")
    assert model.config == cq.load(folder).config
    assert np.array_equal(model.embed([[1, 2, 3]]), cq.load(folder).embed([[1, 2, 3]]))
    assert {call[:3] for call in calls} == {(NAME, "v2", "secret")}
    fetched = {str(file.relative_to(there)) for file in there.rglob("*") if file.is_file()}
    assert fetched == {"config.json", "model.safetensors", "modules.json", "1_Pooling/config.json"}


def test_shards_are_all_there_or_named(asked, folder):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    places = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    with pytest.raises(FileNotFoundError, match=f"{NAME}: no model-00002-of-00002.safetensors"):
        cq.load(NAME)


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        ("GatedRepoError", PermissionError, "gated; accept its terms"),
        ("RevisionNotFoundError", FileNotFoundError, "no revision 'v9'"),
        ("RepositoryNotFoundError", FileNotFoundError, "no such model on the Hugging Face Hub, or it is private"),
        ("HfHubHTTPError", FileNotFoundError, "not to be had from the Hub"),
    ],
)
def test_what_the_hub_refuses(monkeypatch, error, kind, said):
    def download(*args, **kwargs):
        raise getattr(huggingface_hub.errors, error)("no", response=SimpleNamespace(headers={}, request=None))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(kind, match=f"^{NAME}: .*{said}"):
        cq.load(NAME, revision="v9")


def test_paths_come_before_names(tmp_path, monkeypatch, tiny_encoder):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "_snapshot", lambda *args: pytest.fail("asked the Hub"))
    (tmp_path / "owner" / "model").mkdir(parents=True)
    shutil.copy(tiny_encoder, "owner/model.safetensors")
    assert cq.load("owner/model.safetensors").config.family == "bert"
    for name, kind in (
        ("owner/model", cq.FormatError),
        ("owner/none", FileNotFoundError),
        ("a/b.gguf", FileNotFoundError),
    ):
        with pytest.raises(kind, match=name):
            cq.load(name)
    with pytest.raises(cq.CqError, match="revision and token are for models"):
        cq.load(tiny_encoder, revision="main")


def test_without_the_package_an_error_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(cq.UnsupportedError, match=r"some-owner/Some.Model-1: .*pip install 'cquant\[hub\]'"):
        cq.load(NAME)
