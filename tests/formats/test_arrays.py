"""One file of arrays: either names, and the configuration given, in the file or beside it."""

import json
import shutil

import numpy as np
import pytest
from safetensors.torch import load_file
from tokenizers import Tokenizer, models
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

from cq.errors import CqError, FormatError, UnsupportedError
from cq.formats.arrays import read_arrays
from cq.formats.huggingface import read_folder
from cq.formats.tensors import write_safetensors
from cq.model.config import Config


@pytest.fixture(scope="module", params=["bert", "llama"])
def saved(request, tmp_path_factory):
    """A folder written by transformers and what `read_folder` makes of it."""
    folder = tmp_path_factory.mktemp(request.param)
    sizes = dict(
        vocab_size=30,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=24,
        max_position_embeddings=20,
    )
    model = (
        BertModel(BertConfig(**sizes))
        if request.param == "bert"
        else LlamaForCausalLM(
            LlamaConfig(**sizes, num_key_value_heads=2, attention_bias=True, tie_word_embeddings=False)
        )
    )
    model.save_pretrained(folder)
    return folder, *read_folder(folder)[:2]


def assert_same(got: tuple, config: Config, weights: dict[str, np.ndarray]) -> None:
    assert got[0] == config
    assert set(got[1]) == set(weights)
    for name, array in weights.items():
        assert got[1][name].dtype == np.float32
        np.testing.assert_array_equal(got[1][name], array)


def write(path, tensors: dict[str, np.ndarray], config: str | None = None) -> None:
    if path.suffix == ".npz":
        np.savez(path, **tensors, **({} if config is None else {"config": config}))
    else:
        write_safetensors(path, tensors, {} if config is None else {"config": config})


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize("names", ["canonical", "hugging face"])
@pytest.mark.parametrize("form", ["canonical", "hugging face"])
def test_every_way_to_say_the_same(saved, tmp_path, suffix, names, form):
    folder, config, weights = saved
    tensors = (
        weights if names == "canonical" else {k: v.numpy() for k, v in load_file(folder / "model.safetensors").items()}
    )
    values = config.to_dict() if form == "canonical" else json.loads((folder / "config.json").read_text())
    text, path = json.dumps(values), tmp_path / f"a{suffix}"
    write(path, tensors)
    assert_same(read_arrays(path, values), config, weights)
    (tmp_path / "settings.json").write_text(text)
    assert_same(read_arrays(path, tmp_path / "settings.json"), config, weights)
    assert_same(read_arrays(str(path), str(tmp_path / "settings.json")), config, weights)
    assert_same(read_arrays(path, config), config, weights)
    (tmp_path / "config.json").write_text(text)
    assert_same(read_arrays(path), config, weights)
    (tmp_path / "config.json").unlink()
    write(path, tensors, text)
    assert_same(read_arrays(path), config, weights)


def test_what_is_given_outranks_the_file_and_the_file_its_neighbour(saved, tmp_path):
    _, config, weights = saved
    at = {
        place: json.dumps(config.to_dict() | {"max_length": length}) for place, length in (("inside", 7), ("beside", 8))
    }
    write(tmp_path / "a.npz", weights, at["inside"])
    (tmp_path / "config.json").write_text(at["beside"])
    assert read_arrays(tmp_path / "a.npz")[0].max_length == 7
    assert read_arrays(tmp_path / "a.npz", config.to_dict() | {"max_length": 9})[0].max_length == 9
    write(tmp_path / "a.npz", weights)
    assert read_arrays(tmp_path / "a.npz")[0].max_length == 8


def test_what_is_given_stays_as_it_is(saved, tmp_path):
    _, config, weights = saved
    write(tmp_path / "a.npz", weights)
    values = config.to_dict()
    read_arrays(tmp_path / "a.npz", values)
    assert values == config.to_dict()


def test_neighbours_count_as_in_a_folder(saved, tmp_path):
    """The tokenizer and the sentence-transformers files beside the file are those of the folder."""
    folder = shutil.copytree(saved[0], tmp_path / "copy")
    assert read_arrays(folder / "model.safetensors")[2] is None
    Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1}, "[UNK]")).save(str(folder / "tokenizer.json"))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_max_tokens": true}')
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 5, "do_lower_case": true}')
    config, _, tokenizer = read_arrays(folder / "model.safetensors")
    assert config == read_folder(folder)[0] and (config.pooling, config.max_length) == ("max", 5)
    assert tokenizer.encode("A").ids == [1]


def test_biases_are_those_found(saved, tmp_path):
    _, config, weights = saved
    name = "layers.1.attention.value.bias"
    if config.family == "llama":
        without = {k: v for k, v in weights.items() if not k.endswith(".bias")}
        write(tmp_path / "a.npz", without)
        assert_same(read_arrays(tmp_path / "a.npz", config), config, without)
    write(tmp_path / "a.npz", {k: v for k, v in weights.items() if k != name})
    with pytest.raises(FormatError, match=f"missing weight {name}"):
        read_arrays(tmp_path / "a.npz", config)


@pytest.mark.parametrize(
    "config, error, words",
    [
        (None, FormatError, "no configuration"),
        (3, CqError, "config: wanted a Config, a dict or the path"),
        ("none.json", FileNotFoundError, "none.json"),
        ({}, FormatError, "config: no model_type"),
        ({"family": "bert"}, FormatError, "missing"),
        ({"family": "mamba"}, UnsupportedError, "'mamba'"),
        ({"model_type": "bert"}, FormatError, "layers"),
    ],
)
def test_a_configuration_that_says_too_little(saved, tmp_path, config, error, words):
    write(tmp_path / "a.npz", saved[2])
    with pytest.raises(error, match=words):
        read_arrays(tmp_path / "a.npz", config)


def test_an_unknown_array_is_named(saved, tmp_path):
    _, config, weights = saved
    write(tmp_path / "a.npz", weights | {"layers.0.ffn.gates.weight": np.zeros((24, 16), np.float32)})
    with pytest.raises(UnsupportedError, match="layers.0.ffn.gates.weight"):
        read_arrays(tmp_path / "a.npz", config)
