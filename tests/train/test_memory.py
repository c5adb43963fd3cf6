"""A pass that would keep too much computes its blocks anew for the reverse: to the same bits, in less memory."""

import tracemalloc

import numpy as np
import pytest

import cq
from cq.train import Network, fit, layers, network
from cq.train.batch import Packed
from cq.train.block import kept_bytes

TEXTBOOK = cq.Scheme.textbook()
TARGETS = {
    "static": (cq.Static(), "learned"),
    "moving averages": (cq.Static(), "moving_average"),
    "textbook": (cq.Static(TEXTBOOK), "learned"),
    "dynamic": (cq.Dynamic(), "learned"),
    "weight-only": (cq.WeightOnly(), "moving_average"),
}
BOTH = 0, 1 << 60  # nothing is kept, everything is


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    "family",
    ["bert", "biased", "disentangled", "llama", "transformed", "normed", "mixed", "gemma", "after", "parallel"],
)
def test_the_bits_are_the_same(small, ragged, plan_for, monkeypatch, family, target):
    """Of weights, ranges and the loss, after steps of two passes each; moving ranges rest from half of them on."""
    config, weights = small(family)
    model, data = cq.Transformer(config, weights), ragged(config.vocab_size)
    target, ranges = TARGETS[target]
    training = cq.QAT(target=target, steps=4, batch_size=3, accumulate=2, learning_rate=1e-2, warmup=0, ranges=ranges)
    found = []
    for most in BOTH:
        monkeypatch.setattr(network, "MOST_KEPT", most)
        trained = Network(config, plan_for(config, target, default=(0.05, 100)), weights, ranges == "learned")
        losses = []
        fit(model, data, training, trained, progress=lambda *step, losses=losses: losses.append(step))
        assert trained.recomputes == (most == 0)
        states = [site.state for site in trained.sites.values() if hasattr(site, "state")]
        found.append((trained.parameters.flat.tobytes(), np.array(states).tobytes(), losses))
    assert found[0] == found[1]


@pytest.mark.parametrize("target", [cq.Static(), cq.Dynamic(), None], ids=["static", "dynamic", "float32"])
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_a_pass_keeps_what_the_rule_says_or_inputs_alone(small, plan_for, monkeypatch, family, target):
    sizes = dict(num_layers=8, hidden_size=48, num_heads=4, num_kv_heads=2, head_dim=12, intermediate_size=96)
    config, weights = small(family, **sizes, max_positions=64)
    batch = Packed(list(np.random.default_rng(0).integers(0, config.vocab_size, (4, 64))))
    plan = plan_for(config, target, default=(0.05, 100))
    kept, most = [], []
    for limit in BOTH:
        monkeypatch.setattr(network, "MOST_KEPT", limit)
        net = Network(config, plan, weights, learns=True)
        tracemalloc.start()
        try:
            hidden = net.forward(batch)
            kept.append(tracemalloc.get_traced_memory()[0])
            net.backward(hidden=hidden)
            most.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    expected = kept_bytes(config, batch, 4)
    weights_coded = 6 * sum(linear.weight.size for linear in net.linears.values()) if target else 0
    assert 0.6 * expected < kept[1] - weights_coded < 1.2 * expected, (kept[1] - weights_coded) / expected
    assert kept[0] < (config.num_layers + 2) * hidden.nbytes * 1.3 and most[0] < 0.3 * most[1], (kept, most)


@pytest.mark.parametrize("target", [cq.Static(), cq.Dynamic(), cq.Static(TEXTBOOK), None])
def test_products_in_parts_give_the_same_bits(small, ragged, plan_for, monkeypatch, target):
    config, weights = small("llama")
    batch, found = Packed(ragged(config.vocab_size)), []
    g = np.random.default_rng(1).normal(size=(len(batch.ids), config.vocab_size)).astype(np.float32)
    for elements in (1, 7 * config.hidden_size, 1 << 22):
        monkeypatch.setattr(layers, "MOST_COPIED", elements)
        net = Network(config, plan_for(config, target, default=(0.05, 100)), weights)
        net.logits(net.forward(batch))
        net.backward(logits=g)
        found.append(net.parameters.flat_gradient.tobytes())
    assert found[0] == found[1] == found[2]
