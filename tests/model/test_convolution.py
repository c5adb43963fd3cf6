"""A convolution beside the first layer: which tokens it meets, and what it does not go with."""

import numpy as np
import pytest
from configurations import BERT, LLAMA

import cq
from cq.model.convolution import neighbours

_USUAL = {"kernel": 3, "activation": "gelu"}


def test_tokens_meet_their_neighbours_in_their_own_sequence():
    places, inside = neighbours(np.array([0, 3, 4, 6], np.int32), 5)
    met = [row[there].tolist() for row, there in zip(places, inside)]
    assert met == [[0, 1, 2], [0, 1, 2], [0, 1, 2], [3], [4, 5], [4, 5]]
    assert inside[0].tolist() == [False, False, True, True, True] and places.shape == (6, 5)


def test_it_matters_and_its_weights_come_back(random_model, tmp_path):
    model, weights = random_model("bert", convolution=_USUAL)
    assert weights["convolution.weight"].shape == (40, 120) and weights["convolution.bias"].shape == (40,)
    tokens = [np.arange(9), np.arange(2)]
    other = cq.Transformer(model.config, weights | {"convolution.weight": np.zeros((40, 120), np.float32)})
    assert np.abs(other.forward(tokens)[0] - model.forward(tokens)[0]).max() > 0.01
    assert model.weights().keys() == weights.keys()
    assert all(np.array_equal(array, weights[name]) for name, array in model.weights().items())
    assert model.nbytes == sum(array.nbytes for array in weights.values())


@pytest.mark.parametrize(
    "given",
    [
        [],
        {},
        {"kernel": 3},
        _USUAL | {"groups": 1},
        _USUAL | {"kernel": 4},
        _USUAL | {"kernel": -1},
        _USUAL | {"kernel": 3.0},
        _USUAL | {"kernel": True},
        _USUAL | {"kernel": 2**31 - 1},
        _USUAL | {"activation": "tanh"},
        _USUAL | {"activation": None},
    ],
)
def test_others_are_refused(given):
    with pytest.raises(cq.FormatError, match="config: convolution: need"):
        cq.Config(**BERT | dict(convolution=given))


@pytest.mark.parametrize("base", [LLAMA, BERT | dict(norm_first=True), LLAMA | dict(causal=False, lm_head=False)])
def test_it_goes_with_norms_that_follow_sums(base):
    with pytest.raises(cq.FormatError, match="convolution goes with encoders"):
        cq.Config(**base | dict(convolution=_USUAL))


def test_tokens_that_are_left_out_between_others_are_refused(random_model):
    model, _ = random_model("bert", convolution=_USUAL)
    ids = np.arange(5)[None]
    with pytest.raises(cq.UnsupportedError, match="leaves out tokens between others"):
        model.forward({"input_ids": ids, "attention_mask": np.array([[1, 0, 1, 1, 1]])})
