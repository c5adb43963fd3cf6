"""No int32 accumulator overflows, proven from the weights: against every value that a sum takes on small layers, at the
longest sum that fits, and refused beyond it."""

import itertools
import json

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import cq
from cq import _core
from cq.model.activation import Activation
from cq.model.forms import Fixed, PerHead, PerToken
from cq.model.linear import QuantizedLinear
from cq.model.overflow import INT32_MAX, attention_reach, check_attention, headroom, layer_reach
from cq.weights import Weight, pack

FORMS = {
    "uint8": PerToken("uint8", False),
    "int8": PerToken("int8", False),
    "symmetric": PerToken("int8", True),
    "fixed": Fixed("uint8", False, 0.5, 7),
    "fixed int8": Fixed("int8", False, 0.5, -100),
    "fixed last": Fixed("uint8", False, 0.5, 255),
}
ZEROS = {
    "uint8": (0, 255),
    "int8": (0, 255),
    "symmetric": (128,),
    "fixed": (7,),
    "fixed int8": (28,),
    "fixed last": (255,),
}


def packed(codes, zero_points=None) -> Weight:
    codes = np.asarray(codes, np.int8)
    zero_points = None if zero_points is None else np.asarray(zero_points, np.int32)[None]
    return pack(codes, zero_points, np.ones((1, codes.shape[1]), np.float32))


def every_value(codes, zero_point: int, zeros, bias: int) -> int:
    """The largest magnitude in any register: all orders of the products, the correction for the activation's zero point
    before and after them, then the one for the weight's."""
    most, column = abs(bias), sum(codes) - len(codes) * zero_point
    for z, x in itertools.product(zeros, itertools.product((0, 255), repeat=len(codes))):
        for order in itertools.permutations(range(len(codes))):
            for first in (True, False):
                at = bias - z * column * first
                seen = [z * column, at]
                for i in order:
                    at += x[i] * codes[i]
                    seen.append(at)
                at -= z * column * (not first)
                if zero_point:
                    seen += [at, sum(x) * zero_point, at - sum(x) * zero_point]
                most = max(most, *map(abs, seen))
    return most


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("zero_point", [0, 5, -128, 127])
def test_the_reach_is_what_the_worst_input_makes(form, zero_point):
    columns = list(itertools.product((-128, -3, 0, 127), repeat=3))
    weight = packed(np.transpose(columns), [zero_point] * len(columns) if zero_point else None)
    assert layer_reach(weight, FORMS[form]) == max(every_value(c, zero_point, ZEROS[form], 0) for c in columns)
    for codes, bias in (((-128, 127, 4), 1000), ((3, 1, 127), -7), ((0, 0, 0), 12)):
        weight = packed(np.transpose([codes]), [zero_point] if zero_point else None)
        assert layer_reach(weight, FORMS[form], np.array([bias], np.int32)) == every_value(
            codes, zero_point, ZEROS[form], bias
        )


def test_padding_of_a_packed_weight_counts_for_nothing():
    rng = np.random.default_rng(5)
    for k, n in ((1, 1), (5, 17), (64, 16), (131, 33)):
        codes, zero_points = rng.integers(-128, 128, (k, n)), rng.integers(-128, 128, n)
        moved = codes - zero_points
        ends = [np.where(moved * sign > 0, moved, 0).sum(0) for sign in (1, -1)]  # every x 255 or 0, z the other
        least = max(int(np.abs(255 * end).max()) for end in ends)
        assert least <= layer_reach(packed(codes, zero_points), FORMS["uint8"]) <= 255 * 255 * k


@pytest.mark.parametrize("code, bias", [(-128, 127), (-128, -127), (127, 0)])
@pytest.mark.parametrize("x, zero_point", [(255, 0), (0, 255), (255, 255), (0, 0)])
def test_the_longest_sum_at_its_limit(code, bias, x, zero_point):
    """K = 65,793: proven, with what is left for a bias, and computed right."""
    k = _core.MAX_K
    codes = np.full((k, 2), code, np.int8)
    form, bias = Fixed("uint8", False, 1.0, zero_point), np.array([bias, 0], np.int32)
    layer = QuantizedLinear(packed(codes), bias, None, form, "static")
    y = layer(Activation(None, {form: _core.Coded(np.full((7, k), x, np.uint8), 1.0, zero_point)}))
    exact = (x - zero_point) * codes.sum(0, dtype=np.int64) + bias
    np.testing.assert_array_equal(y, np.broadcast_to(exact.astype(np.float32), (7, 2)))
    reach = layer_reach(layer.weight, form, layer.bias_codes)
    assert np.abs(exact).max() <= reach <= INT32_MAX and 0 <= headroom(reach) < 0.02


def test_one_more_is_refused():
    codes = np.full((_core.MAX_K, 1), -128, np.int8)
    with pytest.raises(cq.UnsupportedError, match="65,793 inputs may reach 2,147,483,648, int32 ends at 2,147,483,647"):
        QuantizedLinear(packed(codes), np.array([-128], np.int32), None, Fixed("uint8", False, 1.0, 0), "static")
    # leads away
    QuantizedLinear(packed(codes), np.array([128], np.int32), None, Fixed("uint8", False, 1.0, 0), "static")


def test_zero_points_ask_the_weights_themselves():
    """Beyond 33,025 inputs depth alone proves nothing for a weight with zero points; half of such weights have room."""
    codes = np.full((40_000, 1), 127, np.int8)
    with pytest.raises(cq.UnsupportedError, match="40,000 inputs may reach 2,601,000,000"):
        QuantizedLinear(packed(codes, [-128]), None, None, FORMS["uint8"], "dynamic")
    codes[::2] = -128  # stands for 0
    layer = QuantizedLinear(packed(codes, [-128]), None, None, FORMS["uint8"], "dynamic")
    coded = _core.Coded(np.full((1, 40_000), 255, np.uint8), np.ones(1, np.float32), np.zeros(1, np.int32))
    assert layer(Activation(None, {FORMS["uint8"]: coded}))[0, 0] == np.float32(255 * 255 * 20_000)
    # sums in float32
    QuantizedLinear(packed(np.full((40_000, 1), 127, np.int8), [-128]), None, None, None, "weight-only")
    w = cq.pack(cq.QTensor(np.full((40_000, 1), 127, np.int8), np.float32(1), -128))
    with pytest.raises(cq.UnsupportedError, match="may reach"):
        cq.linear(cq.QTensor(np.zeros((1, 40_000), np.uint8), np.float32(1), 0), w)


# --- attention --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("z", [0, 90, 255])
@pytest.mark.parametrize("z_value", [0, 200, 255])
def test_attention_reaches_what_its_worst_input_makes(z, z_value):
    forms = tuple(Fixed("uint8", False, 1.0, zero_point) for zero_point in (z, 3, z_value))
    scores, registers = {}, []
    for dim, length in ((1, 1), (2, 1), (1, 2), (2, 3)):
        registers = []
        for query in itertools.product((0, 255), repeat=dim):
            scores = []
            for key in itertools.product((-128, 127), repeat=dim):
                at = -z * sum(key)
                registers.append(at)
                for q, k in zip(query, key):
                    at += q * k
                    registers.append(at)
                scores.append(at)
            registers.append(max(scores) - min(scores))
        for weights in itertools.product((0, 255), repeat=length):
            for values in itertools.product((-128, 127), repeat=length):
                total = sum(w * v for w, v in zip(weights, values))
                registers += [
                    sum(weights),
                    total,
                    sum(weights) * (z_value - 128),
                    total - sum(weights) * (z_value - 128),
                ]
        assert attention_reach(forms, dim, length) == max(map(abs, registers))


def test_attention_of_the_longest_sequence():
    from cq.model.attention import MAX_KEYS

    worst = tuple(Fixed("uint8", False, 1.0, 255) for _ in range(3))
    check_attention(worst, 128, MAX_KEYS)
    assert 0 <= headroom(attention_reach(worst, 128, MAX_KEYS)) < 0.001
    with pytest.raises(cq.UnsupportedError, match="33,026 tokens may reach 2,147,515,650.*attention='float32'"):
        check_attention(worst, 128, MAX_KEYS + 1)
    assert attention_reach(PerHead("int8", True, 64), 64, 1000) == 255 * 127 * 1000


# --- where it is asked ------------------------------------------------------------------------------------------------


def deep(random_model, k: int, **changes):
    small = dict(
        num_layers=1, num_heads=1, num_kv_heads=1, head_dim=4, max_positions=24, hidden_size=8, intermediate_size=k
    )
    return random_model("bert", **small | changes)


def test_strict_names_every_layer(random_model):
    model, _ = deep(random_model, 65_796, num_layers=2)
    with pytest.raises(
        cq.UnsupportedError, match="strict: 2 of 13 weights.*layers.0.ffn.down: .*65,793.*layers.1.ffn.down: .*65,7"
    ):
        cq.quantize(model, cq.Dynamic(), strict=True)
    chosen = cq.quantize(model, cq.Dynamic(exclude="*.down"), strict=True)  # the user's own choice is none
    assert {row.name for row in chosen.coverage().fallbacks if row.shape} >= {"layers.0.ffn.down", "layers.1.ffn.down"}
    assert cq.quantize(model, cq.Dynamic()).blocks[0].ffn.down.runs_in == "float32"
    with pytest.raises(cq.CqError, match="strict: need True or False"):
        cq.quantize(model, cq.Dynamic(), strict=1)


def test_strict_leaves_a_whole_model_alone(random_model):
    for family in ("bert", "llama"):
        model, _ = random_model(family)
        strict, plain = (cq.quantize(model, cq.Dynamic(exclude="head"), strict=strict) for strict in (True, False))
        assert np.array_equal(strict.forward([[1, 2, 3]])[0], plain.forward([[1, 2, 3]])[0])


def test_a_checkpoint_whose_weights_are_not_proven_is_refused(random_model, tmp_path):
    model, weights = deep(random_model, 40_000)
    weights["layers.0.ffn.down.weight"] = np.abs(weights["layers.0.ffn.down.weight"])  # zero point -128
    model = cq.quantize(cq.Transformer(model.config, weights), cq.Dynamic(cq.Scheme.textbook()), strict=True)
    assert 0 < model.headroom()["layers.0.ffn.down"] < 4
    file = tmp_path / "a.safetensors"
    cq.save(model, file)
    assert np.array_equal(cq.load(file).forward([[1, 2]])[0], model.forward([[1, 2]])[0])
    tensors = {name: array.copy() for name, array in load_file(file).items()}
    with safe_open(file, "numpy") as opened:
        metadata = opened.metadata()
    tensors["layers.0.ffn.down.weight"][:] = 127
    save_file(tensors, file, metadata)
    with pytest.raises(
        cq.FormatError, match="a.safetensors: layers.0.ffn.down: weight: sums over its 40,000 inputs may reach"
    ):
        cq.load(file)
    assert json.loads(metadata["cq"])["version"]


# --- coverage ---------------------------------------------------------------------------------------------------------


def test_shares_of_multiply_adds_and_bytes(random_model):
    model, _ = random_model("llama")
    c, tokens = model.config, 10
    layer = c.hidden_size * (8 * (6 + 2 + 2) + 6 * 8) + 3 * c.hidden_size * c.intermediate_size
    attention, head = 6 * 8 * tokens * (tokens + 1), tokens * c.hidden_size * c.vocab_size
    total = c.num_layers * (tokens * layer + attention) + head
    found = model.coverage(tokens)
    assert (found.multiply_adds, found.share_of_multiply_adds, found.share_of_bytes, found.fallbacks) == (
        total,
        0,
        0,
        (),
    )
    assert cq.quantize(model, cq.Dynamic()).coverage(tokens).share_of_multiply_adds == 1
    partly = cq.quantize(model, cq.Dynamic(cq.Scheme(attention="float32"), exclude="head")).coverage(tokens)
    assert partly.share_of_multiply_adds == c.num_layers * tokens * layer / total
    table = c.vocab_size * c.hidden_size * 4
    held = table + sum(a.nbytes for _, norm in model.norms() for a in norm.arrays())
    assert partly.nbytes - partly.int8_nbytes == held and 0 < partly.share_of_bytes < 1
    assert "excluded by 'head'" in str(partly) and f"one sequence of {tokens} tokens" in str(partly)
    weight_only = cq.quantize(model, cq.WeightOnly()).coverage()
    assert (
        weight_only.tokens == c.max_positions
        and weight_only.share_of_multiply_adds == 0 < 0.9 < weight_only.share_of_bytes
    )
    assert {row.name for row in weight_only.fallbacks} >= {"norms", "layers.0.attention.scores", "layers.1.ffn.gating"}
    for wrong in (0, c.max_positions + 1, "9"):
        with pytest.raises(cq.CqError, match="tokens: need a length"):
            model.coverage(wrong)


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_every_integer_product_has_its_headroom(random_model, family):
    model, _ = random_model(family)
    found = cq.quantize(model, cq.Dynamic()).headroom()
    products = {row.name for row in cq.quantize(model, cq.Dynamic()).coverage() if row.multiply_adds}
    assert set(found) == products and all(8 < bits < 31 for bits in found.values())
    assert model.headroom() == cq.quantize(model, cq.WeightOnly()).headroom() == {}
