"""Every gradient against torch's and against finite differences, in float64: plain and with fake quantization."""

import numpy as np
import pytest
import reference
import torch

import cq
from cq import affine
from cq.model.forms import Columns, Smoothed
from cq.train.batch import Packed
from cq.train.fake import Ranged
from cq.train.network import Network
from cq.train.passes import activate

TEXTBOOK = cq.Scheme.textbook()
FAMILIES = pytest.mark.parametrize(
    "family",
    ["bert", "biased", "disentangled", "llama", "transformed", "normed", "mixed", "gemma", "after", "parallel"],
)
SETUPS = {
    "float32": (None, False),
    "weight-only": (cq.WeightOnly(), False),
    "per group": (cq.WeightOnly(cq.Scheme(weight_granularity="per_group", group_size=4)), False),
    "dynamic": (cq.Dynamic(), False),
    "dynamic textbook": (cq.Dynamic(TEXTBOOK), False),
    "static": (cq.Static(), False),
    "static textbook": (cq.Static(TEXTBOOK), False),
    "learned": (cq.Static(), True),
    "learned textbook": (cq.Static(TEXTBOOK), True),
    "static float32 scores": (cq.Static(cq.Scheme(attention="float32")), False),
    "dynamic float32 scores": (cq.Dynamic(cq.Scheme(attention="float32")), False),
    "some": (cq.Static(exclude=("*.key", "layers.0.ffn.*", "embed.word")), False),
    "learned weights": (cq.WeightOnly(), True),
    "smoothed": (cq.Static(), True),
}


def first_ranges(config, plan, weights, sequences):
    """Sites → scale and zero point, a little too narrow for their activations; of fixed codes."""
    network = Network(config, plan, weights)
    hidden = network.forward(Packed(sequences))
    if config.lm_head:
        network.logits(hidden)
    return {
        name: affine.qparams(0.6 * site.state[0], 0.7 * site.state[1], site.form.dtype)
        for name, site in network.sites.items()
        if isinstance(site, Ranged)
    }


def smoothed_forms(config, ranges) -> dict[str, Smoothed]:
    """Features' own scales around those of the ranges, and zero points far from the middle, for half of the sites."""
    rng, found = np.random.default_rng(3), {}
    widths = {
        "input": config.hidden_size,
        "hidden": config.intermediate_size,
        "value": config.num_kv_heads * config.head_dim,
    }
    for site, (scale, zero_point) in ranges.items():
        n = config.embedding_width if site == "embed.input" else widths.get(site.rpartition(".")[2])
        if n:
            own = (scale * rng.uniform(0.5, 2, (1, n))).astype(np.float32)
            found[site] = Smoothed(
                "uint8", False, float(scale), 128, Columns(own, int(zero_point) + rng.integers(-9, 9, (1, n)))
            )
    return found


def build(family, strategy, learned, small, ragged, plan_for, smooth=False):
    config, weights = small(family)
    per_batch = isinstance(strategy, cq.Dynamic) and strategy.scheme.activation_granularity == "per_tensor"
    sequences = ragged(config.vocab_size)[: 1 if per_batch else None]
    ranges = first_ranges(config, plan_for(config, strategy), weights, sequences)
    plan = plan_for(config, strategy, ranges, smoothed_forms(config, ranges) if smooth else {})
    network = Network(config, plan, weights, learned, np.float64)
    if learned:  # narrower, so that some weights are clipped
        for name in network.parameters.values:
            if name.endswith(".weight.scale"):
                network.parameters.values[name] *= 0.7
        network.refresh()
    elif ranges:
        for site, (scale, zero_point) in ranges.items():
            qmin, qmax = affine.code_range(strategy.scheme.activation_dtype)
            network.sites[site].state[:2] = [(q - int(zero_point)) * float(scale) for q in (qmin, qmax)]
        network.observe(False)
    return config, weights, sequences, network


def torch_twin(config, weights, network, strategy):
    """reference.Model with the network's own scales; learned ones are leaves, by name."""
    scales = {
        name: torch.tensor(np.float64(value), requires_grad=True)
        for name, value in network.parameters.values.items()
        if name.endswith(".scale")
    }
    scheme = strategy and strategy.scheme

    def code(site, x, reader=None):
        if site not in network.sites or (reader and not network.plan.coded(reader)):
            return x
        qmin, qmax = affine.code_range(scheme.activation_dtype, scheme.activation_symmetric)
        if isinstance(form := network.forms[site], Smoothed):
            own, middles = (torch.tensor(np.float64(p)) for p in (form.columns.scale[0], form.columns.zero_point[0]))
            flat = x.reshape(len(x), -1)
            q = torch.round(flat / own) + middles
            rounded = (q.clamp(qmin, qmax) - form.zero_point) * form.scale
            return reference.through(rounded, flat * form.scale / own, (q >= qmin) & (q <= qmax)).view(x.shape)
        if site + ".scale" in scales:
            zero_point = torch.tensor(network.sites[site].zero_point)
            flat = x.reshape(len(x), -1)
            return reference.StepSize.apply(flat, scales[site + ".scale"], zero_point, qmin, qmax, flat.shape[1]).view(
                x.shape
            )
        if isinstance(strategy, cq.Static):
            return reference.coded(x, *network.sites[site].params(), qmin, qmax)
        rows, kind = x.detach().numpy(), (scheme.activation_dtype, scheme.activation_symmetric)
        axis = 1 if scheme.activation_granularity == "per_token" else None
        if site.endswith(("query", "key", "value")):
            axis, kind, (qmin, qmax) = 2, ("int8", True), (-127, 127)
        scale, zero_point = affine.dynamic_qparams(rows.min(axis, keepdims=True), rows.max(axis, keepdims=True), *kind)
        exact = reference.coded(x, torch.tensor(np.float64(scale)), torch.tensor(zero_point), qmin, qmax)
        return reference.through(exact, x, torch.ones_like(x, dtype=torch.bool))

    def code_weight(name, w):
        if name == "embed.word":
            word = network.plan.word
            if not word.coded:
                return w
            name = "head" if word.weight is None else name
        elif not network.plan.coded(name):
            return w
        qmin, qmax = affine.code_range("int8", scheme.weight_symmetric)
        if name + ".weight.scale" in scales:
            scale, fake = scales[name + ".weight.scale"], network.linears[name].fake
            shape = (-1, 1) if scale.ndim else ()
            return reference.StepSize.apply(
                w,
                scale.reshape(shape),
                torch.tensor(fake.zero_point).reshape(shape),
                qmin,
                qmax,
                w.numel() // scale.numel(),
            )
        axis = None if scheme.weight_granularity == "per_tensor" else 0
        group = scheme.group_size if name != "embed.word" else None
        rounded = cq.quantize_tensor(w.detach().numpy(), "int8", scheme.weight_symmetric, axis, group).dequantize()
        return reference.through(torch.tensor(np.float64(rounded)), w, torch.ones_like(w, dtype=torch.bool))

    def code_bias(name, b):
        if (
            not network.plan.coded(name)
            or scheme.bias == "float32"
            or (scheme.bias == "int32" and not isinstance(strategy, cq.Static))
        ):
            return b
        values = b.detach().numpy()
        if scheme.bias == "int8":
            rounded = cq.quantize_tensor(values, "int8").dequantize()
        else:
            site = network.graph.reads[name]
            form = network.forms[site]
            scale = form.scale if isinstance(form, Smoothed) else network.sites[site].params()[0]
            unit = scale * network.linears[name].codes.scale
            rounded = np.rint(values / unit) * unit
        return reference.through(torch.tensor(np.float64(rounded)), b, torch.ones_like(b, dtype=torch.bool))

    scores = strategy.name if "layers.0.attention.query" in network.sites else "float32"
    return reference.Model(config, weights, code, code_weight, code_bias, scores), scales


@FAMILIES
@pytest.mark.parametrize("setup", SETUPS)
def test_the_whole_model_in_reverse_is_torchs(small, ragged, plan_for, family, setup):
    strategy, learned = SETUPS[setup]
    config, weights, sequences, network = build(family, strategy, learned, small, ragged, plan_for, setup == "smoothed")
    twin, scales = torch_twin(config, weights, network, strategy)
    rng = np.random.default_rng(1)
    batch, width = Packed(sequences), config.vocab_size if config.lm_head else config.hidden_size
    wanted = [rng.normal(size=(len(s), width)) for s in sequences]  # the loss is the product with these
    hidden = network.forward(batch)
    outputs = network.logits(hidden) if config.lm_head else hidden
    loss = 0
    for ids, ours, w in zip(sequences, batch.split(outputs), wanted):
        theirs = twin.forward(ids)
        theirs = twin.logits(theirs) if config.lm_head else theirs
        np.testing.assert_allclose(ours, theirs.detach(), atol=2e-5)
        loss = loss + (theirs * torch.tensor(w)).sum()
    loss.backward()
    g = np.concatenate([wanted[i] for i in batch.order])
    network.backward(**{"logits" if config.lm_head else "hidden": g})
    network.settle()
    for name, leaf in (twin.w | scales).items():
        np.testing.assert_allclose(network.parameters.gradients[name], leaf.grad, rtol=1e-5, atol=1e-5, err_msg=name)


@FAMILIES
def test_finite_differences(small, ragged, plan_for, family):
    """Along one random direction for each parameter, of a random function of all outputs."""
    config, weights, sequences, network = build(family, None, False, small, ragged, plan_for)
    rng, batch = np.random.default_rng(2), Packed(sequences)
    wanted = {"hidden": rng.normal(size=(len(batch.ids), config.hidden_size))}
    if config.lm_head:
        wanted["logits"] = rng.normal(size=(len(batch.ids), config.vocab_size))

    def value():
        network.refresh()
        hidden = network.forward(batch)
        outputs = {"hidden": hidden, "logits": network.logits(hidden) if config.lm_head else None}
        return sum(np.vdot(outputs[name], w) for name, w in wanted.items())

    value()
    network.backward(**{name: w.copy() for name, w in wanted.items()})
    network.settle()
    for name, parameter in network.parameters.values.items():
        direction, h = rng.normal(size=parameter.shape), 1e-5
        parameter += h * direction
        above = value()
        parameter -= 2 * h * direction
        below = value()
        parameter += h * direction
        # activations by erf are exact to 2e-7 only, so their differences are to 1e-2 of a step of 1e-5
        slope = np.vdot(network.parameters.gradients[name], direction)
        near = 2e-2 if config.activation == "gelu" else 1e-4
        assert (above - below) / (2 * h) == pytest.approx(slope, rel=1e-4, abs=near), name


@pytest.mark.parametrize("name", reference.ACTIVATIONS)
def test_activations_are_torchs(name):
    x = np.concatenate([np.linspace(-12, 12, 999), [0.0, -1e3, 1e3, 1e-30]])[:, None]
    leaf = torch.tensor(x, requires_grad=True)
    y = reference.ACTIVATIONS[name](leaf)
    y.sum().backward()
    ours, slope = activate(x, name)
    np.testing.assert_allclose(ours, y.detach(), atol=1e-6)
    np.testing.assert_allclose(slope, leaf.grad, atol=1e-6)
    single, single_slope = activate(x.astype(np.float32), name)
    np.testing.assert_allclose(single, ours, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(single_slope, slope, rtol=1e-5, atol=2e-6)
