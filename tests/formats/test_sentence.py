"""Folders as sentence-transformers writes them, old and new: pooling, normalizing and lengths are as the folder
says."""

import json

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers

from cq.errors import UnsupportedError
from cq.formats.huggingface import read_folder


def sentence(folder, modules=("Transformer", "Pooling", "Normalize"), pooling=None, first="") -> None:
    """Writes modules.json and the Pooling module's configuration; the transformer is in the folder `first`."""
    paths = (first, "1_Pooling", "2_Normalize")
    (folder / "modules.json").write_text(
        json.dumps(
            [
                {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
                for i, (kind, path) in enumerate(zip(modules, paths))
            ]
        )
    )
    if "Pooling" in modules:
        (folder / "1_Pooling").mkdir(exist_ok=True)
        (folder / "1_Pooling" / "config.json").write_text(
            json.dumps(
                pooling
                or {"word_embedding_dimension": 16, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
            )
        )


@pytest.mark.parametrize(
    "pooling, wanted",
    [
        ({"word_embedding_dimension": 16, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"word_embedding_dimension": 16, "pooling_mode_mean_tokens": True, "include_prompt": True}, "mean"),
        ({"pooling_mode_max_tokens": True}, "max"),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, "mean_sqrt_len"),
        ({"pooling_mode_lasttoken": True}, "last"),
        ({"word_embedding_dimension": 16, "pooling_mode_max_tokens": False}, "mean"),
        ({"pooling_mode_weightedmean_tokens": True}, "weightedmean"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, ("cls", "mean")),
        ({"pooling_mode": ["mean", "cls"]}, ("mean", "cls")),
        ({"embedding_dimension": 16, "pooling_mode": "cls"}, "cls"),
        ({"pooling_mode": ["lasttoken"]}, "last"),
    ],
)
def test_pooling_is_what_the_folder_says(bert, pooling, wanted):
    sentence(bert, pooling=pooling)
    config = read_folder(bert)[0]
    assert (config.pooling, config.normalize) == (wanted, True)


def test_fewer_modules(bert):
    sentence(bert, ("Transformer", "Pooling"))
    assert (read_folder(bert)[0].pooling, read_folder(bert)[0].normalize) == ("cls", False)
    sentence(bert, ("Transformer",))
    assert (read_folder(bert)[0].pooling, read_folder(bert)[0].normalize) == ("mean", False)
    (bert / "modules.json").unlink()
    assert (read_folder(bert)[0].pooling, read_folder(bert)[0].normalize) == ("cls", False)
    (bert / "2_Normalize").mkdir()
    assert (read_folder(bert)[0].pooling, read_folder(bert)[0].normalize) == ("cls", True)


def test_a_decoder_pools_only_where_the_folder_says(llama):
    assert read_folder(llama)[0].pooling is None
    sentence(llama, pooling={"word_embedding_dimension": 24, "pooling_mode_lasttoken": True})
    assert (read_folder(llama)[0].pooling, read_folder(llama)[0].normalize) == ("last", True)


def test_the_transformer_may_be_in_a_folder_of_its_own(bert, tmp_path, bert_saved):
    root = tmp_path / "outer"
    root.mkdir()
    bert.rename(root / "0_Transformer")
    sentence(root, first="0_Transformer")
    config, weights, _ = read_folder(root)
    assert config.pooling == "cls"
    np.testing.assert_array_equal(
        weights["embed.word"], bert_saved[1].embeddings.word_embeddings.weight.detach().numpy()
    )


@pytest.mark.parametrize(
    "arguments, words",
    [
        (dict(modules=("Transformer", "Pooling", "LSTM")), "LSTM"),
        (dict(modules=("Pooling", "Transformer")), "in this order"),
        (dict(modules=("Transformer", "Pooling", "Pooling")), "Pooling"),
        (dict(modules=()), "in this order"),
        (dict(pooling={"pooling_mode": "best"}), "best"),
    ],
)
def test_modules_that_cq_lacks_are_named(bert, arguments, words):
    sentence(bert, **arguments)
    with pytest.raises(UnsupportedError, match=words):
        read_folder(bert)


@pytest.mark.parametrize(
    "sentence_file, tokenizer_file, wanted",
    [
        ({"max_seq_length": 7, "do_lower_case": False}, None, 7),
        ({"max_seq_length": 7}, {"model_max_length": 9}, 7),
        ({"max_seq_length": 512}, None, 20),
        ({"max_seq_length": None}, None, 20),
        ({"max_seq_length": None}, {"model_max_length": 9}, 9),
        ({}, {"model_max_length": 10**30}, 20),
        ({}, {"model_max_length": 1e30}, 20),
        (None, {"model_max_length": 9}, 9),
    ],
)
def test_the_length_of_texts_is_limited_as_the_folder_says(bert, sentence_file, tokenizer_file, wanted):
    for name, values in (("sentence_bert_config.json", sentence_file), ("tokenizer_config.json", tokenizer_file)):
        if values is not None:
            (bert / name).write_text(json.dumps(values))
    assert read_folder(bert)[0].max_length == wanted


@pytest.mark.parametrize("own", [None, normalizers.NFC()])
def test_texts_are_lowercased_where_the_folder_says(bert, own):
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "A": 2}, "[UNK]"))
    if own is not None:
        tokenizer.normalizer = own
    tokenizer.save(str(bert / "tokenizer.json"))
    assert read_folder(bert)[2].encode("A").ids == [2]
    (bert / "sentence_bert_config.json").write_text('{"do_lower_case": true}')
    assert read_folder(bert)[2].encode("A").ids == [1]
