"""Mixed: each layer by its own strategy, the same bits as that strategy gives it, kept by a checkpoint; what is
refused."""

import numpy as np
import pytest

import cq
from cq import Dynamic, Mixed, Static, WeightOnly
from cq.errors import CalibrationError, CqError
from cq.strategies import from_dict

IDS = [np.arange(3, 20), np.arange(40, 45)]
MIX = Mixed(
    (
        ("layers.0.attention.[qkv]*", Dynamic()),
        ("layers.1.ffn.down", None),
        ("layers.1.attention.output", WeightOnly()),
        ("*", Static()),
    )
)
EXPECTED = {
    "layers.0.attention.query": "dynamic",
    "layers.0.attention.value": "dynamic",
    "layers.0.attention.output": "static",
    "layers.1.attention.key": "static",
    "layers.1.attention.output": "weight-only",
    "layers.1.ffn.down": "float32",
    "layers.0.attention.scores": "dynamic",
    "layers.1.attention.scores": "static",
}


@pytest.fixture(params=["bert", "llama"])
def model(request, random_model):
    return random_model(request.param)[0]


@pytest.mark.parametrize(
    "strategy", [WeightOnly(), Dynamic(), Static(), Static(scheme=cq.Scheme.textbook(), observer="minmax")]
)
def test_a_mix_of_one_is_that_strategy(model, strategy):
    samples = [IDS] if isinstance(strategy, Static) else None
    alone, mixed = cq.quantize(model, strategy, samples), cq.quantize(model, Mixed([("*", strategy)]), samples)
    assert mixed.coverage() == alone.coverage()
    for a, b in zip(alone.forward(IDS), mixed.forward(IDS)):
        np.testing.assert_array_equal(a, b)


def test_the_first_pattern_that_matches_decides(model):
    mixed = cq.quantize(model, MIX, [IDS])
    places = {place.name: place for place in mixed.coverage()}
    assert {name: places[name].runs_in for name in EXPECTED} == EXPECTED
    assert places["layers.1.ffn.down"].reason == "float32 by 'layers.1.ffn.down'"
    plain = Static(smooth=False, correct_bias=False)  # else a layer's codes depend on which others read what it reads
    static = dict(cq.quantize(model, plain, [IDS]).linears())
    for name, layer in cq.quantize(model, Mixed((*MIX.choices[:-1], ("*", plain))), [IDS]).linears():
        if layer.runs_in == "static":
            np.testing.assert_array_equal(layer.weight.unpack(), static[name].weight.unpack())
    for x, y in zip(model.forward(IDS), mixed.forward(IDS)):
        assert 10 * np.log10((x**2).sum() / ((x - y) ** 2).sum()) > 20


def test_a_checkpoint_keeps_it(model, tmp_path):
    mixed = cq.quantize(model, MIX, [IDS])
    cq.save(mixed, tmp_path / "mixed.safetensors")
    loaded = cq.load(tmp_path / "mixed.safetensors")
    assert loaded.strategy == MIX and loaded.coverage() == mixed.coverage()
    for a, b in zip(mixed.forward(IDS), loaded.forward(IDS)):
        np.testing.assert_array_equal(a, b)
    cq.save(loaded, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "mixed.safetensors").read_bytes()


def test_what_matches_nothing_is_float32(model):
    nothing = cq.quantize(model, Mixed([("no.such.layer", Dynamic())]))
    assert {place.runs_in for place in nothing.coverage()} == {"float32"}
    assert dict(nothing.linears())["layers.0.ffn.up"].reason == "matches no pattern of the mix"
    for a, b in zip(model.forward(IDS), nothing.forward(IDS)):
        np.testing.assert_array_equal(a, b)


def test_a_tied_word_table_goes_with_its_head(random_model):
    model, _ = random_model("llama")
    mixed = cq.quantize(model, Mixed([("embed.word", None), ("head", Dynamic())]))
    assert mixed.embedding.source is mixed.head.weight
    assert cq.quantize(model, Mixed([("embed.word", Dynamic()), ("head", None)])).embedding.runs_in == "float32"


def test_several_static_parts_share_the_samples(random_model):
    model, _ = random_model("bert")
    minmax = Static(observer="minmax", smooth=False, correct_bias=False)
    mix = Mixed([("layers.0.*", minmax), ("*", Static())])
    mixed, static = cq.quantize(model, mix, iter([IDS[0], IDS[1]])), cq.quantize(model, minmax, IDS)
    assert dict(mixed.linears())["layers.0.ffn.up"].input_form == dict(static.linears())["layers.0.ffn.up"].input_form


@pytest.mark.parametrize(
    "choices, message",
    [
        ((), "pairs of a name pattern and a strategy"),
        ("*", "pairs"),
        ((("*",),), "pairs"),
        ((("*", "static"),), "pairs"),
        ((("*", Mixed([("*", None)])),), "pairs"),
        (((3, Static()),), "pairs"),
        ((("*", Static(include="head")),), "include and exclude do not work in a mix"),
        ((("*", Dynamic(exclude="head")),), "include and exclude do not work in a mix"),
        ((("*", Static(residual="int8")),), "residual stream in float32"),
    ],
)
def test_what_is_no_mix(choices, message):
    with pytest.raises(CqError, match=message):
        Mixed(choices)


@pytest.mark.parametrize(
    "record",
    [
        {"name": "mixed"},
        {"name": "mixed", "choices": {}},
        {"name": "mixed", "choices": [["*"]]},
        {"name": "mixed", "choices": [["*", 3]]},
        {"name": "mixed", "choices": [["*", MIX.to_dict()]]},
        {"name": "mixed", "choices": [[3, None]]},
        {"name": "mixed", "choices": [["*", {}]]},
        MIX.to_dict() | {"more": 1},
    ],
)
def test_a_record_of_something_else(record):
    assert from_dict(MIX.to_dict()) == MIX
    with pytest.raises(CqError):
        from_dict(record)


def test_samples_where_they_belong(random_model):
    model, _ = random_model("bert")
    with pytest.raises(CalibrationError, match="Static fixes its scales from samples"):
        cq.quantize(model, MIX)
    with pytest.raises(CqError, match="this mix has none"):
        cq.quantize(model, Mixed([("*", Dynamic())]), [IDS])
    with pytest.raises(CqError, match=r"QAT: target must be"):
        cq.QAT(target=MIX)
