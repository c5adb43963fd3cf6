"""`encode` against sentence-transformers' own, argument by argument."""

import json
import shutil

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import quantize_embeddings

import cq

TEXTS = ["one text", "größer", "a third, longer than the others", "4"]


@pytest.fixture(scope="module")
def both(minilm_folder, tmp_path_factory):
    """(cq's MiniLM, the same in sentence-transformers), with a prompt that has a name."""
    folder = tmp_path_factory.mktemp("minilm") / "model"
    shutil.copytree(minilm_folder, folder)
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"prompts": {"query": "find: "}}))
    return cq.load(folder), SentenceTransformer(str(folder), device="cpu")


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        dict(prompt="a "),
        dict(prompt_name="query", batch_size=2),
        dict(truncate_dim=100),
        dict(truncate_dim=100, normalize_embeddings=True, show_progress_bar=True),
        dict(device="cpu", convert_to_numpy=True, convert_to_tensor=False),
    ],
    ids=str,
)
def test_embeddings_are_those_of_sentence_transformers(both, arguments):
    ours, theirs = (model.encode(TEXTS, **arguments) for model in both)
    assert ours.dtype == np.float32 and ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    one = both[0].encode(TEXTS[1], **arguments)
    assert one.shape == ours.shape[1:] and np.array_equal(one, ours[1])


def test_token_embeddings(both):
    ours, theirs = (model.encode(TEXTS, output_value="token_embeddings", prompt="a ") for model in both)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b.numpy(), atol=1e-4)
    assert np.array_equal(both[0].encode(TEXTS[0], output_value="token_embeddings", prompt="a "), ours[0])


@pytest.mark.parametrize("precision", ["float32", "int8", "uint8", "binary", "ubinary"])
def test_precisions_have_the_codes_of_sentence_transformers(both, precision):
    exact = both[0].encode(TEXTS)
    ours = both[0].encode(TEXTS, precision=precision)
    theirs = quantize_embeddings(exact, precision)
    assert ours.dtype == theirs.dtype and np.array_equal(ours, theirs)
    assert both[0].encode([], precision=precision).shape[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(convert_to_tensor=True), "leave convert_to_numpy, convert_to_tensor and device out"),
        (dict(convert_to_numpy=False), "leave convert_to_numpy"),
        (dict(device="cuda"), "worked out on the CPU"),
        (dict(precision="int4"), "precision: need one of"),
        (dict(truncate_dim=0), "truncate_dim: need"),
        (dict(output_value=None), "output_value: need"),
        (dict(output_value="token_embeddings", precision="int8"), "token_embeddings come as they are"),
        (dict(batch_size=0), "batch_size: need"),
        (dict(prompt_name="none"), "is none of"),
    ],
    ids=str,
)
def test_what_makes_no_sense_here_is_refused(both, arguments, message):
    with pytest.raises(cq.CqError, match=message):
        both[0].encode(TEXTS, **arguments)


def test_one_sentence_has_no_ranges(both):
    with pytest.raises(cq.CqError, match="takes its ranges from the sentences"):
        both[0].encode("one", precision="int8")
