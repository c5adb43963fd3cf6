"""Each strategy on small random models: what runs where, what it costs, what it keeps, and how samples may come."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

import cq
from cq import _core
from cq.model.batch import Batch
from cq.model.forms import Fixed, PerToken
from cq.model.linear import Linear
from cq.weights import FloatWeight, Weight

TEXTBOOK = cq.Scheme.textbook()
GROUPS = cq.Scheme(weight_granularity="per_group", group_size=8)
STRATEGIES = {
    "weight-only": cq.WeightOnly(),
    "weight-only textbook": cq.WeightOnly(TEXTBOOK),
    "per group": cq.WeightOnly(GROUPS),
    "dynamic": cq.Dynamic(),
    "dynamic textbook": cq.Dynamic(TEXTBOOK),
    "static": cq.Static(),
    "static textbook": cq.Static(TEXTBOOK, observer="minmax"),
    "some static": cq.Static(exclude="*.query"),
    "feed-forward static": cq.Static(include="layers.*.ffn.*"),
    "stream": cq.Static(residual="int8"),
    "some of the stream": cq.Static(exclude=("*.query", "*.1.ffn.up"), residual="int8"),
    "float attention": cq.Dynamic(cq.Scheme(attention="float32")),
    "some dynamic": cq.Dynamic(exclude="*.key"),
    "one dynamic": cq.Dynamic(include="layers.1.ffn.down"),
    "all but the head": cq.Static(exclude=("head", "embed.*")),
    "nothing": cq.Dynamic(include=()),
}
ALL = pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
EVEN = dict(hidden_size=64, num_heads=4, num_kv_heads=2, head_dim=16, intermediate_size=96)  # whole panels
FAMILIES = pytest.mark.parametrize("family", ["bert", "llama"])


def ragged(seed=0, vocab=53):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, vocab, n) for n in (9, 1, 24)]


def quantized(model, strategy):
    return cq.quantize(model, strategy, [ragged(1)] if isinstance(strategy, cq.Static) else None)


def run(model):
    """Layer by layer, never replayed."""
    return np.concatenate(model.logits(ragged())) if model.head is not None else model.hidden(Batch(ragged())).floats()


def floats(model) -> dict[str, bytes]:
    parts = {name: part.arrays() for name, part in (*model.linears(), *model.norms())}
    parts["embed"] = [*model.embedding.word_arrays(), *model.tables().values()]
    return {f"{name}.{i}": np.asarray(array).tobytes() for name, part in parts.items() for i, array in enumerate(part)}


class Spy:
    """What reaches the kernels while a model runs: layer → (what its product reads, its result); and the other
    steps."""

    def __init__(self, model, monkeypatch):
        self.names = {id(weight_of(layer)): (name,) for name, layer in model.linears()}
        for block in model.blocks:
            joint = block.attention.readers()
            if len(joint) == 1:
                self.names |= {
                    id(weight_of(joint[0])): [f"{block.name}.attention.{part}" for part in ("query", "key", "value")]
                }
            if block.ffn.gate is not None and (gated := block.ffn._joined()) is not None:
                self.names |= {id(weight_of(gated)): [f"{block.name}.ffn.{part}" for part in ("gate", "up")]}
        self.linear, self.gated, self.attention, self.gate, self.encoded, self.streams = {}, {}, [], [], [], []
        for name, keep in (
            ("linear", self.product),
            ("attention", lambda a, k, y: self.attention.append((a[0], y))),
            ("gate", lambda a, k, y: self.gate.append(y)),
            ("quantize", lambda a, k, y: self.encoded.append(y)),
        ):
            monkeypatch.setattr(_core, name, self.watched(getattr(_core, name), keep))
        self.result = run(model)

    def product(self, a, k, y):
        """A form stands for float32 that is coded on the way in."""
        if not isinstance(a[1], FloatWeight):
            found = dict.fromkeys(self.names[id(a[1])], (k.get("coding") or a[0], y))
            self.linear |= found
            self.gated |= found if k.get("gated") else {}
        if k.get("residual") is not None:
            self.streams.append((k["residual"], y))

    @staticmethod
    def watched(real, keep):
        def call(*arguments, **keywords):
            y = real(*arguments, **keywords)
            keep(arguments, keywords, y)
            return y

        return call


def weight_of(layer):
    """What products of the layer read."""
    return layer.packed if isinstance(layer, Linear) else layer.weight


def in_codes(*arrays) -> bool:
    return all(isinstance(x, _core.Coded) for x in arrays)


def kind_of(x) -> str:
    """Of what a product read."""
    if x is None or isinstance(x, np.ndarray):
        return "float32" if x is None else "weight-only"
    if isinstance(x, (Fixed, PerToken)):
        return "static" if isinstance(x, Fixed) else "dynamic"
    return "dynamic" if isinstance(x.scale, np.ndarray) and len(x.scale) > 1 else "static"


@pytest.mark.parametrize("sizes", [{}, EVEN], ids=["odd", "even"])
@FAMILIES
@ALL
def test_coverage_tells_the_truth(random_model, monkeypatch, family, strategy, sizes):
    model = quantized(random_model(family, **sizes)[0], strategy)
    spy, rows = Spy(model, monkeypatch), {row.name: row for row in model.coverage()}
    assert np.isfinite(spy.result).all()
    per_tensor = strategy.name == "dynamic" and strategy.scheme.activation_granularity == "per_tensor"
    for name, layer in model.linears():
        ran, row = kind_of(spy.linear.get(name, (None,))[0]), rows[name]
        assert row.runs_in == layer.runs_in == ("dynamic" if per_tensor and ran == "static" else ran)
        assert ran == "float32" or row.runs_in == strategy.name
        assert bool(row.reason) == (ran == "float32") and row.shape == layer.shape
        assert row.nbytes == sum(array.nbytes for array in layer.arrays())
    assert rows["embed.word"].runs_in == ("weight-only" if isinstance(model.embedding.source, Weight) else "float32")
    assert bool(rows["embed.word"].reason) == (rows["embed.word"].runs_in == "float32")
    for i, (qkv, _) in enumerate(spy.attention):
        row = rows[f"layers.{i}.attention.scores"]
        assert row.runs_in == ("float32" if isinstance(qkv, np.ndarray) else kind_of(qkv))
        assert row.runs_in != "float32" or row.reason
    for i in range(len(model.blocks)):
        row, (read, _) = rows.get(f"layers.{i}.ffn.gating"), spy.gated.get(f"layers.{i}.ffn.gate", (None,) * 2)
        between = model.config.gated and kind_of(read) not in ("dynamic", "static")
        assert between == (row is not None) and (row is None or row.runs_in == "float32" and row.reason)
    row, streams = rows["residual stream"], [residual for residual, _ in spy.streams]
    assert len(streams) == 4 and row.shape is None and row.nbytes == 0
    if model.config.norm_first:  # it begins with the embedding in float32
        assert isinstance(streams.pop(0), np.ndarray)
    assert {in_codes(x) for x in streams} == {row.runs_in == "static"} and bool(row.reason) == (
        row.runs_in == "float32"
    )


@pytest.mark.parametrize("stream", ["float32", "int8"])
@pytest.mark.parametrize("scheme", [cq.Scheme(), TEXTBOOK], ids=["default", "textbook"])
def test_static_hands_int8_from_layer_to_layer(random_model, monkeypatch, scheme, stream):
    """In an encoder nothing is ever encoded by itself or decoded: norms and products write codes, products read
    them."""
    model = quantized(random_model("bert", **EVEN)[0], cq.Static(scheme, residual=stream))
    monkeypatch.setattr("cq.model.activation.encode", None)
    monkeypatch.setattr(
        "cq.model.activation.Activation.floats",
        lambda self: self.values if self.values is not None else pytest.fail("codes were decoded"),
    )
    spy = Spy(model, monkeypatch)
    assert not spy.encoded and in_codes(*(x for x, _ in spy.linear.values()))
    for name, (_, y) in spy.linear.items():
        last = name == "layers.1.ffn.down"  # the model's result
        if name.endswith(("output", "down")) and stream == "float32" and not last:
            assert in_codes(y[0]) and isinstance(y[1], np.ndarray)  # for the next layers, and for the next sum
        else:
            assert in_codes(y) != last
    assert in_codes(*itertools.chain(*spy.attention))
    assert {in_codes(residual) for residual, _ in spy.streams} == {stream == "int8"}


def test_static_decoders_encode_only_what_was_rotated(random_model, monkeypatch):
    for sizes in ({}, EVEN):
        spy = Spy(quantized(random_model("llama", **sizes)[0], cq.Static()), monkeypatch)
        assert len(spy.encoded) == 2  # queries, keys and values of two layers, in one array each
        assert in_codes(*itertools.chain(*spy.attention), *spy.gate)
        # gated in the product or beside
        assert bool(spy.gate) != bool(sizes) and in_codes(*(y for _, y in spy.gated.values()))
        monkeypatch.undo()


def test_dynamic_encodes_heads_and_nothing_else_apart(random_model, monkeypatch):
    """All other codes are made in the pass before or after; in an encoder of whole panels those of heads too."""
    for family, sizes, apart in (("llama", EVEN, 2), ("bert", {}, 2), ("bert", EVEN, 0)):
        spy = Spy(quantized(random_model(family, **sizes)[0], cq.Dynamic()), monkeypatch)
        assert len(spy.encoded) == apart and all(
            qkv.scale.shape[1] == 8 if sizes and family == "llama" else True for qkv, _ in spy.attention
        )
        assert all(in_codes(qkv) and isinstance(y, np.ndarray) for qkv, y in spy.attention)
        monkeypatch.undo()


def test_attention_in_float32_where_that_was_chosen(random_model, monkeypatch):
    for strategy in (cq.Dynamic(cq.Scheme(attention="float32")), cq.Static(cq.Scheme(attention="float32"))):
        spy = Spy(quantized(random_model("bert", **EVEN)[0], strategy), monkeypatch)
        assert all(isinstance(x, np.ndarray) for pair in spy.attention for x in pair)
        monkeypatch.undo()


def test_a_residual_stream_in_int8_stays_near(random_model):
    """Its codes are as fine as those that layers read: the error grows, but not out of their order."""
    for family in ("bert", "llama"):
        model = random_model(family, **EVEN)[0]
        fine, coarse = (
            np.abs(run(quantized(model, cq.Static(residual=kind))) - run(model)).mean() for kind in ("float32", "int8")
        )
        assert coarse < 3 * fine


@FAMILIES
@ALL
def test_quantize_leaves_the_float32_model_alone(random_model, family, strategy):
    model, weights = random_model(family)
    before, kept = run(model), {name: array.copy() for name, array in weights.items()}
    bytes_before, rows = floats(model), model.coverage()
    quantized(model, strategy)
    assert model.strategy is None and floats(model) == bytes_before and model.coverage() == rows
    assert np.array_equal(run(model), before)
    assert all(np.array_equal(weights[name], array) for name, array in kept.items())


@pytest.mark.parametrize("scheme", [cq.Scheme(), TEXTBOOK, GROUPS], ids=["default", "textbook", "groups"])
@FAMILIES
def test_weight_only_is_the_float32_model_with_rounded_weights(random_model, family, scheme):
    model, weights = random_model(family, tied=False)
    axis = None if scheme.weight_granularity == "per_tensor" else 0
    rounded = {}
    for name, array in weights.items():
        rounded[name] = array
        if name.endswith(".weight") and array.ndim == 2:
            rounded[name] = cq.quantize_tensor(
                array, "int8", scheme.weight_symmetric, axis, scheme.group_size
            ).dequantize()
        elif name == "embed.word":
            rounded[name] = cq.quantize_tensor(array, "int8", scheme.weight_symmetric, axis).dequantize()
        elif name.endswith(".bias") and "norm" not in name and scheme.bias == "int8":
            rounded[name] = cq.quantize_tensor(array, "int8").dequantize()
    expected = run(cq.Transformer(model.config, rounded))
    np.testing.assert_allclose(run(quantized(model, cq.WeightOnly(scheme))), expected, atol=3e-5)


@pytest.mark.parametrize(
    "strategy",
    [
        cq.WeightOnly(),
        cq.Dynamic(),
        cq.Static(TEXTBOOK),
        cq.WeightOnly(GROUPS),
        cq.WeightOnly(replace(GROUPS, group_size=64)),
    ],
    ids=str,
)
def test_a_tied_head_shares_its_codes_with_the_word_table(random_model, strategy):
    model = quantized(random_model("llama")[0], strategy)
    # a word table has one scale for each word, so groups need codes of their own
    shared = strategy.scheme.group_size != 8
    assert (model.embedding.source is model.head.weight) == shared
    apart = sum(row.nbytes for row in model.coverage())
    assert apart - model.nbytes == (sum(a.nbytes for a in model.embedding.word_arrays()) if shared else 0)


@pytest.mark.parametrize("strategy", [cq.WeightOnly(), cq.Dynamic(), cq.Static(), cq.Dynamic(TEXTBOOK)], ids=str)
@FAMILIES
def test_memory_is_about_a_quarter(random_model, family, strategy):
    model = random_model(family, hidden_size=96, intermediate_size=256, vocab_size=500, max_positions=32)[0]
    assert model.nbytes == sum(map(len, set(floats(model).values())))
    assert 0.25 <= quantized(model, strategy).nbytes / model.nbytes < 0.32


@pytest.mark.parametrize(
    "strategy, k, limit",
    [
        (cq.WeightOnly(), 65_796, "more than the 65,793"),
        (cq.Dynamic(), 65_796, "more than the 65,793"),
        (cq.Static(), 65_796, "more than the 65,793"),
        (cq.Dynamic(TEXTBOOK), 65_700, "may reach"),
    ],
    ids=["weight-only", "dynamic", "static", "textbook"],
)
def test_a_layer_that_int32_cannot_sum_stays_float32_and_says_so(random_model, strategy, k, limit):
    """Weights above 0 have the zero point -128, which makes sums larger."""

    def model(**changes):
        small = dict(num_layers=1, num_heads=1, num_kv_heads=1, head_dim=4, max_positions=24)
        model, weights = random_model("bert", **small | changes)
        return cq.Transformer(model.config, {name: np.abs(array) for name, array in weights.items()})

    deep = model(hidden_size=8, intermediate_size=k)
    result = quantized(deep, strategy)
    rows = {row.name: row for row in result.coverage()}
    assert rows["layers.0.ffn.down"].runs_in == "float32" and limit in rows["layers.0.ffn.down"].reason
    assert rows["layers.0.ffn.up"].runs_in == strategy.name
    assert np.abs(run(result) - run(deep)).max() < 0.3  # 34 tokens of calibration: others leave a feature's range
    wide = quantized(model(hidden_size=k, intermediate_size=4), strategy)
    rows = {row.name: row for row in wide.coverage()}
    # nothing sums a table
    for name in ("embed.word", "layers.0.attention.query", "layers.0.ffn.up")[limit == "may reach" :]:
        assert rows[name].runs_in == "float32" and limit in rows[name].reason
    assert np.isfinite(run(wide)).all()


def test_include_and_exclude():
    """exclude wins; a single pattern may stand alone."""
    strategy = cq.Dynamic(include="layers.*", exclude=["*.key", "layers.1.*"])
    assert strategy.include == ("layers.*",) and strategy.exclude == ("*.key", "layers.1.*")


def test_excluded_layers_say_by_what(random_model):
    rows = {
        row.name: row
        for row in quantized(
            random_model("llama")[0], cq.Dynamic(include="layers.*", exclude=["*.key", "layers.1.*"])
        ).coverage()
    }
    assert rows["layers.0.attention.query"].runs_in == "dynamic"
    assert rows["layers.0.attention.key"].reason == "excluded by '*.key'"
    assert rows["layers.1.ffn.up"].reason == "excluded by 'layers.1.*'"
    assert rows["head"].reason == rows["embed.word"].reason == "matches no include pattern"


def test_one_range_per_token_beats_one_for_all_where_tokens_differ(random_model):
    """Some words are 30 times as large as others: per tensor they take all the codes."""
    model, weights = random_model("llama", tied=False)
    loud = np.where(np.arange(61) % 9, 1, 30)[:, None].astype(np.float32)
    weights = weights | {"embed.word": weights["embed.word"] * loud}
    model = cq.Transformer(model.config, weights)
    error = {
        name: np.abs(run(quantized(model, strategy)) - run(model)).mean()
        for name, strategy in (("default", cq.Dynamic()), ("textbook", cq.Dynamic(TEXTBOOK)))
    }
    assert error["default"] < 0.7 * error["textbook"]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("strategy", [cq.WeightOnly(), cq.Dynamic(), cq.Dynamic(TEXTBOOK)], ids=str)
@pytest.mark.parametrize(
    "name", ["embed.word", "layers.1.ffn.up.weight", "layers.1.ffn.up.bias", "head.weight", "head.bias"]
)
def test_weights_that_are_not_finite_are_named(random_model, strategy, name, bad):
    model, weights = random_model("llama", tied=False)
    weights = weights | {
        name: np.where(np.arange(weights[name].size).reshape(weights[name].shape) == 7, np.float32(bad), np.float32(0))
    }
    with pytest.raises(cq.CqError, match=name.removesuffix(".weight").replace(".", r"\.") + ".*(NaN|Inf) at index"):
        quantized(cq.Transformer(model.config, weights), strategy)


@pytest.mark.parametrize(
    "strategy",
    [
        None,
        cq.WeightOnly(exclude="embed.word"),
        cq.Dynamic(exclude="embed.word"),
        cq.Dynamic(TEXTBOOK, exclude="embed.word"),
        cq.Static(exclude="embed.word"),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["layers.1.attention_norm.weight", "final_norm.bias", "embed.word"])
def test_activations_that_are_not_finite_are_loud(random_model, strategy, name):
    """Poured in after quantizing: NaN would become some code silently."""
    model, weights = random_model("llama", tied=False)
    weights = weights | {name: weights[name].copy()}
    model = cq.Transformer(model.config, weights)
    model = model if strategy is None else quantized(model, strategy)
    run(model)
    weights[name][..., 3] = np.nan
    with pytest.raises(cq.CqError, match="NaN"):
        run(model)


@pytest.mark.filterwarnings("ignore:invalid value")
def test_logits_that_are_not_finite_are_loud(random_model):
    model, weights = random_model("llama", tied=False)
    weights["head.weight"][5] = np.inf
    model.forward(ragged())
    with pytest.raises(cq.CqError, match="logits: .*Inf"):
        model.logits(ragged())
