"""Ranges that learning begins from: clipped where the loss gains, left alone where scales are by channel."""

import numpy as np
import pytest

import cq
from cq.train.network import Network
from cq.train.objectives import Distillation
from cq.train.ranges import narrow

TEXTBOOK = cq.Scheme.textbook()


@pytest.fixture
def begun(small, ragged, plan_for):
    """begun(target) → a network of the small encoder, one weight of which lies far out, its objective, which is the
    float32 model's outputs, samples, and the loss on these as a function. The outlier meets a hidden unit that never
    speaks, so that clipping it costs nothing."""

    def make(target):
        config, weights = small("bert", activation="relu")
        weights["layers.0.ffn.up.weight"][3], weights["layers.0.ffn.up.bias"][3] = 0, -1
        weights["layers.0.ffn.down.weight"][5, 3] = 40
        data, model = ragged(config.vocab_size), cq.Transformer(config, weights)
        plan = plan_for(config, target, default=(0.05, 0))
        network = Network(config, plan, weights, learns=True)
        objective = Distillation(model, network)
        targets = objective.targets(data)
        return network, objective, data, lambda: objective.loss(data, targets)[0]

    return make


def test_an_outlier_is_clipped_where_the_loss_gains(begun):
    network, objective, samples, loss = begun(cq.WeightOnly(TEXTBOOK))
    down = network.linears["layers.0.ffn.down"].fake
    down.span(*(end(network.linears["layers.0.ffn.down"].weight) for end in (np.min, np.max)))
    network.refresh()
    before, (_, wide), float_weights = loss(), down.ends(), network.weights()
    narrow(network, objective, samples)
    assert wide > 39 and down.ends()[1] < 20 and loss() < 0.5 * before
    assert all(np.array_equal(float_weights[name], weight) for name, weight in network.weights().items())
    after = loss()
    network.refresh()
    assert loss() == after  # what stands is what was measured


def test_scales_by_channel_stay(begun):
    network, objective, samples, _ = begun(cq.Static())
    before = network.parameters.flat.copy()
    narrow(network, objective, samples)
    assert np.array_equal(network.parameters.flat, before)


@pytest.mark.parametrize("scheme", [TEXTBOOK, cq.Scheme(activation_dtype="int8", activation_symmetric=True)])
def test_a_span_is_what_affine_says(begun, scheme):
    """Both kinds of learned ranges: scale and zero point of lo … hi, and its ends within half a step."""
    network, *_ = begun(cq.Static(scheme))
    found = [fake for fake, _ in network.learned_ranges() if fake.scale.size == 1]
    assert len(found) == (2 * (4 + 3 + 6) if scheme == TEXTBOOK else 2 * (4 + 3))
    for fake in found:
        fake.span(-1.0, 3.0)
        half = float(fake.scale.reshape(-1)[0]) / 2
        lo, hi = fake.ends()
        assert abs(hi - 3) <= half and (abs(lo + 1) <= half or scheme != TEXTBOOK)
