"""Codes that an exported graph finds at inference are cq's, bit for bit, and what is computed with them is exact."""

import numpy as np
import onnx
import onnxruntime as runtime
import pytest

from cq import _core, affine
from cq.coding import pack_weight, quantize_weight
from cq.formats.onnx.flow import MOVED, Flow
from cq.formats.onnx.graph import Graph
from cq.formats.onnx.linear import linear
from cq.model.activation import Activation
from cq.model.forms import Columns, Fixed, PerTensor, PerToken, Smoothed, Stretched
from cq.model.linear import QuantizedLinear

FORMS = [
    kind(dtype, symmetric)
    for kind in (PerToken, PerTensor)
    for dtype, symmetric in (("uint8", False), ("int8", False), ("int8", True))
]


def run(graph, outputs: list, path, x: np.ndarray) -> list[np.ndarray]:
    """Values of a graph whose only input is "x"."""
    graph.write(path)
    model = onnx.load(path)
    for name in outputs:
        model.graph.output.append(onnx.ValueInfoProto(name=name))
    options = runtime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    session = runtime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    return session.run(outputs, {"x": x})


@pytest.fixture
def rows() -> np.ndarray:
    """(2, 40, 24) of every size: zeros, one sign, halves, numbers around the smallest scale."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 40, 24)).astype(np.float32) * np.exp2(rng.integers(-20, 20, (2, 40, 1)))
    x[0, 0], x[0, 1], x[0, 2] = 0, np.abs(x[0, 1]), -np.abs(x[0, 2])
    x[0, 3] = np.arange(-12, 12) / 2
    x[0, 4] *= np.float32(1e-38) / np.abs(x[0, 4]).max()
    x[0, 5], x[1, 5] = 3.0, -3.0
    return x.astype(np.float32)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: f"{form.kind} {form.dtype} {form.symmetric}")
def test_codes_found_at_inference(rows, tmp_path, form):
    graph = Graph()
    x = Flow(graph, graph.input("x", np.float32, (2, 40, 24)))
    found = x.coded(form)
    for each in rows if isinstance(form, PerTensor) else [rows]:
        given = np.stack([each, each]) if isinstance(form, PerTensor) else each
        (codes,) = run(graph, [found.codes], tmp_path / "codes.onnx", given)
        if isinstance(form, PerToken):
            scale, zero_point = affine.row_params(given.reshape(-1, 24), form.dtype, form.symmetric)
            scale, zero_point = scale.reshape(2, 40, 1), zero_point.reshape(2, 40, 1)
        else:
            scale, zero_point = affine.dynamic_qparams(given.min(), given.max(), form.dtype, form.symmetric)
        own = affine.quantize(given, scale, zero_point, form.dtype, form.symmetric)
        np.testing.assert_array_equal(codes, own.astype(int) + MOVED[form.dtype])
        given_scale, given_zero = (
            run(graph, [value], tmp_path / "codes.onnx", given)[0] if isinstance(value, str) else value
            for value in (found.scale, found.zero_point)
        )
        np.testing.assert_array_equal(np.broadcast_to(given_scale, np.shape(scale)), scale)
        zero_point = np.asarray(zero_point) + MOVED[form.dtype]
        np.testing.assert_array_equal(np.broadcast_to(given_zero, zero_point.shape), zero_point)


def test_rows_that_are_padding_do_not_count(rows, tmp_path):
    graph = Graph()
    x = graph.input("x", np.float32, (2, 40, 24))
    keep = graph.add("Greater", graph.add("ReduceMax", x, np.array([2]), keepdims=1), np.float32(-1e9))
    found = Flow(graph, x, keep).coded(PerTensor("uint8", False))
    rows[1, 30:] = -1e10
    scale, codes = run(graph, [found.scale, found.codes], tmp_path / "codes.onnx", rows)
    kept = np.concatenate([rows[0], rows[1, :30]])
    own, zero_point = affine.dynamic_qparams(kept.min(), kept.max())
    assert scale == own
    np.testing.assert_array_equal(codes[1, :30], affine.quantize(rows[1, :30], own, zero_point, "uint8"))


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric weights", "affine weights"])
@pytest.mark.parametrize("granularity", ["per_channel", "per_tensor"])
@pytest.mark.parametrize("form", [*FORMS, Fixed("uint8", False, 0.05, 117), Fixed("int8", True, 0.05, 0)], ids=str)
def test_products_are_exact(tmp_path, form, granularity, symmetric):
    """As cq.affine.layer, whose int32 sums are exact; one rounding of float32 may differ in the bias."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((9, 50)).astype(np.float32) * 3
    weight = quantize_weight(rng.standard_normal((30, 50)).astype(np.float32) + 0.3, symmetric, granularity, None)
    layer = QuantizedLinear(pack_weight(weight), None, None, form, "dynamic")
    graph = Graph()
    y = linear(graph, layer, Flow(graph, graph.input("x", np.float32, (9, 50))), "layer")
    (found,) = run(graph, [y], tmp_path / "layer.onnx", x)
    if isinstance(form, Fixed):
        scale, zero_point = np.float32(form.scale), form.zero_point
    elif isinstance(form, PerToken):
        scale, zero_point = affine.row_params(x, form.dtype, form.symmetric)
    else:
        scale, zero_point = affine.dynamic_qparams(x.min(), x.max(), form.dtype, form.symmetric)
    spread = (p[:, None] if np.ndim(p) else p for p in (scale, zero_point))
    codes = affine.quantize(x, *spread, form.dtype, form.symmetric)
    own = affine.layer(codes, weight.data.T, scale, zero_point, weight.scale, weight.zero_point)
    np.testing.assert_allclose(found, own, rtol=3e-7, atol=1e-6 * np.abs(own).max())


@pytest.mark.parametrize("granularity", ["per_channel", "per_tensor"])
def test_a_bias_in_codes_is_part_of_the_sum(tmp_path, granularity):
    """float32 of the same bits as cq's kernel gives. Codes of x stay below 128, where no kernel for AVX2 saturates."""
    rng = np.random.default_rng(4)
    form = Fixed("uint8", False, 0.05, 57)
    x = rng.uniform(-2.8, 3.4, (9, 50)).astype(np.float32)
    weight = quantize_weight(rng.standard_normal((30, 50)).astype(np.float32), True, granularity, None)
    layer = QuantizedLinear(pack_weight(weight), rng.integers(-9999, 9999, 30).astype(np.int32), None, form, "static")
    graph = Graph()
    y = linear(graph, layer, Flow(graph, graph.input("x", np.float32, (9, 50))), "layer")
    (found,) = run(graph, [y], tmp_path / "layer.onnx", x)
    np.testing.assert_array_equal(found, layer(Activation(x)))


def test_features_own_parameters_fold(tmp_path):
    """Zero points outside the range of codes fold, too."""
    rng = np.random.default_rng(2)
    x = rng.standard_normal((1, 64, 24)).astype(np.float32)
    scale, zero_point = rng.uniform(0.01, 0.04, (1, 24)).astype(np.float32), rng.integers(-300, 600, (1, 24))
    form = Smoothed("uint8", False, 0.02, 120, Columns(scale, zero_point.astype(np.int32)))
    graph = Graph()
    decoded = Flow(graph, graph.input("x", np.float32, (1, 64, 24))).fixed(form)
    (found,) = run(graph, [decoded], tmp_path / "fold.onnx", x)
    codes = np.clip(np.rint(x[0] / scale) + zero_point, 0, 255)
    steps = np.abs(found[0] / np.float32(0.02) + 120 - codes)
    assert (steps > 1e-3).mean() < 1e-3 and steps.max() < 1.001  # halves may round otherwise


@pytest.mark.parametrize("dtype, symmetric", [("uint8", False), ("int8", False), ("int8", True)])
@pytest.mark.parametrize("widest", [0.01, 2.0**127])
def test_stretched_codes(rows, tmp_path, dtype, symmetric, widest):
    """Rows within the range, at its end, one step of float32 past it, and far beyond."""
    rng, middle = np.random.default_rng(3), 128 if dtype == "uint8" else 0
    own = rng.uniform(0.1, 1, (1, 24)).astype(np.float32) * np.float32(0.01)
    own[0, 5], rows[:, :, 5] = widest, 0
    ends = own[0, 3] * np.float32(127.5) * np.exp2(np.arange(8)).astype(np.float32)
    for i, end in enumerate(ends):
        rows[0, 8 + 3 * i : 11 + 3 * i] = 0
        rows[0, 8 + 3 * i : 11 + 3 * i, 3] = np.nextafter(end, np.float32(0)), end, np.nextafter(end, np.float32(1e9))
    form = Stretched(dtype, symmetric, 1.0, middle, Columns(own, np.full((1, 24), middle, np.int32)))
    graph = Graph()
    decoded, power = Flow(graph, graph.input("x", np.float32, (2, 40, 24))).stretched(form)
    found, powers = run(graph, [decoded, power], tmp_path / "stretched.onnx", rows)
    coded = _core.quantize(rows.reshape(80, 24), form)
    np.testing.assert_array_equal(powers.reshape(80), coded.scale)
    np.testing.assert_array_equal(found.reshape(80, 24) + middle, coded.codes)
    assert len(np.unique(powers)) > 15
