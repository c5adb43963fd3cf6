"""AdamW against torch's; the schedule; flat parameters; order of samples; text."""

import numpy as np
import pytest
import torch

import cq
from cq import CqError, FormatError
from cq.train.data import Shuffled, Windows, split_text
from cq.train.network import Network
from cq.train.optimizer import AdamW, learning_rate
from cq.train.parameters import Parameters
from cq.train.passes import adamw


def test_adamw_is_torchs():
    """Matrices decay, vectors do not; the gradient's norm is clipped; more elements than one task. Ours in float32."""
    rng = np.random.default_rng(0)
    weights = {"b": rng.normal(size=7), "w": rng.normal(size=(130, 300))}
    ours = Parameters(weights)
    leaves = {name: torch.tensor(array, requires_grad=True) for name, array in weights.items()}
    theirs = torch.optim.AdamW(
        [dict(params=[leaves["w"]], weight_decay=0.1), dict(params=[leaves["b"]], weight_decay=0.0)], betas=(0.9, 0.95)
    )
    optimizer = AdamW(ours, 0.1, (0.9, 0.95))
    for step in range(5):
        for name, leaf in leaves.items():
            gradient = rng.normal(size=leaf.shape) * 10.0 ** (step - 3)
            leaf.grad = torch.tensor(gradient)
            ours.gradients[name][...] = 2 * gradient  # as if over two passes
        rate = learning_rate(step, 5, 1e-2, 2)
        norm = torch.nn.utils.clip_grad_norm_(leaves.values(), 1.0)
        for group in theirs.param_groups:
            group["lr"] = rate
        theirs.step()
        assert optimizer.step(rate, 1.0, 2) == pytest.approx(float(norm))
    for name, leaf in leaves.items():
        # torch adds 1e-6 to the norm
        np.testing.assert_allclose(ours.values[name], leaf.detach(), rtol=2e-6, atol=2e-7)


def test_learned_scales_stay_positive():
    parameters = Parameters({"w": np.ones((2, 2))}, {"s": (np.array([1e-3, 2.0]), 30.0)})
    optimizer = AdamW(parameters, 0.0, (0.9, 0.999))
    for _ in range(50):
        parameters.gradients["s"][...] = [1e3, 1e3]
        optimizer.step(0.1, 1e9)
    assert (parameters.values["s"] > 0).all() and (parameters.values["s"] < 1e-3).all()


def test_norms_and_biases_may_move_faster():
    parameters = Parameters({"w": np.ones((2, 2)), "b": np.ones(3)}, {"s": (np.array([1.0]), 1.0)}, vectors=5.0)
    for gradient in parameters.gradients.values():
        gradient[...] = 2.0
    AdamW(parameters, 0.0, (0.9, 0.999)).step(0.01, 1e9)
    for name, moved in (("w", 0.01), ("b", 0.05), ("s", 0.01)):
        np.testing.assert_allclose(1 - parameters.values[name], moved, rtol=1e-5)


def test_rows_may_move_in_proportion_to_their_size():
    sizes = np.array([1.0, 0.01, 5.0], np.float32)
    parameters = Parameters({"w": np.ones((3, 4)), "v": np.ones((2, 2))}, row_rates={"w": sizes})
    for gradient in parameters.gradients.values():
        gradient[...] = 2.0
    AdamW(parameters, 0.0, (0.9, 0.999)).step(0.01, 1e9)
    np.testing.assert_allclose(1 - parameters.values["w"], 0.01 * sizes[:, None] * np.ones(4), rtol=1e-3)
    np.testing.assert_allclose(1 - parameters.values["v"], 0.01, rtol=1e-4)
    with pytest.raises(CqError, match="row_rates: 12 parameters are not 5 equal rows"):
        one = np.ones(12, np.float32)
        adamw(one, one, one, one, None, (0.5,) * 8, np.ones(5, np.float32))


def test_the_schedule():
    rates = [learning_rate(step, 100, 2.0, 10) for step in range(100)]
    assert rates[0] == 0.2 and rates[9] == rates[10] == 2.0 and np.argmax(rates) == 9
    assert rates[55] == pytest.approx(1.0) and 0 < rates[99] < 0.01
    assert learning_rate(0, 1, 1.0, 0) == 1.0


def test_gradients_add_up():
    parameters = Parameters({"table": np.zeros((4, 3)), "w": np.zeros((2, 2)), "unread": np.ones(3)}, dtype=np.float64)
    parameters.gradients["unread"][...] = 9
    rng = np.random.default_rng(0)
    rows, g = np.array([2, 0, 2, 2]), rng.normal(size=(4, 3))
    parameters.add_rows("table", rows, g)
    parameters.add_rows("table", rows, g)
    a, b = rng.normal(size=(2, 5)), rng.normal(size=(5, 2))
    parameters.add_product("w", a, b, 2.0)
    parameters.add("w", np.ones((2, 2)))
    parameters.add_product("w", a, b)
    parameters.settle()
    expected = np.zeros((4, 3))
    np.add.at(expected, rows, 2 * g)
    np.testing.assert_allclose(parameters.gradients["table"], expected)
    np.testing.assert_allclose(parameters.gradients["w"], 3 * a @ b + 1)
    assert not parameters.gradients["unread"].any()
    assert np.shares_memory(parameters.gradients["w"], parameters.flat_gradient)


def test_every_sample_once_in_an_epoch():
    data = Shuffled(list("abcdefg"), 3)
    seen = [x for number in range(7) for x in data.batch(number, 3)]
    assert all(sorted(seen[i : i + 7]) == list("abcdefg") for i in (0, 7, 14)) and seen[:7] != seen[7:14]
    assert Shuffled(list("abcdefg"), 3).batch(5, 3) == seen[15:18]


def test_windows():
    windows = Windows(np.arange(50), 8, 0)
    batch = windows.batch(3, 20)
    assert all((np.diff(w) == 1).all() and len(w) == 8 for w in batch) and len({w[0] for w in batch}) > 5
    assert all(np.array_equal(a, b) for a, b in zip(batch, Windows(np.arange(50), 8, 0).batch(3, 20)))
    assert [w[0] for w in windows.consecutive()] == [0, 8, 16, 24, 32, 40]
    for length in (1, 51):
        with pytest.raises(CqError, match="windows of"):
            Windows(np.arange(50), length, 0)


def test_a_text_is_cut_between_characters():
    text = "é" * 33 + "a€" * 20
    assert "".join(split_text(text.encode(), "x")) == text
    with pytest.raises(FormatError, match="x: not UTF-8"):
        split_text(b"abc\xff" * 30, "x")


def test_rows_of_a_network_move_alike(small, plan_for):
    """Each in proportion to its size, and scales by one part of themselves; without it, all by one step."""
    config, weights = small("llama")
    weights["layers.0.attention.query.weight"][2] *= 100
    plan = plan_for(config, cq.Static(), default=(0.05, 100))
    network = Network(config, plan, weights, learns=True, alike=True)
    rates = dict(zip(network.parameters.values, (rates for _, rates in network.parameters.matrices)))
    found = rates["layers.0.attention.query.weight"]
    size = np.sqrt(np.square(weights["layers.0.attention.query.weight"]).mean(1))
    np.testing.assert_allclose(found / found[0], size / size[0], rtol=1e-5)
    assert found[2] > 30 * np.delete(found, 2).max()
    assert np.ptp(network.parameters.units) == 0
    plain = Network(config, plan, weights, learns=True)
    assert all(rates is None for _, rates in plain.parameters.matrices) and np.ptp(plain.parameters.units) > 0
