"""The parameters of torch's observers and ONNX Runtime's calibrators, from those libraries themselves."""

import contextlib
import io

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from onnxruntime.quantization import calibrate as ort
from onnxruntime.quantization.quant_utils import compute_scale_zp
from torch.ao.quantization import observer as ao

from cq.observers import MinMax, like_onnxruntime, like_torch
from cq.observers.like_torch import _linspace

STREAMS = {
    "normal": lambda rng, n: rng.standard_normal(n),
    "shifted": lambda rng, n: rng.standard_normal(n) * 0.3 + 2,
    "below zero": lambda rng, n: -rng.gamma(2, 1, n),
    "relu": lambda rng, n: rng.standard_normal(n).clip(0),
    "heavy tail": lambda rng, n: rng.standard_t(2, n),
    "one outlier": lambda rng, n: np.append(rng.standard_normal(n), 300),
    "constant": lambda rng, n: np.full(n, 0.7),
    "zero": lambda rng, n: np.zeros(n),
    "tiny": lambda rng, n: rng.standard_normal(n) * 1e-12,
    "huge": lambda rng, n: rng.standard_normal(n) * 1e12,
}


def stream(name, seed=0):
    """Arrays whose range grows, holds and grows again."""
    rng = np.random.default_rng(seed)
    return [
        (STREAMS[name](rng, n) * scale).astype(np.float32)
        for n, scale in ((3000, 1), (500, 0.7), (4000, 1.6), (100, 1.1), (2000, 2.2))
    ]


def fed(observer, arrays):
    for x in arrays:
        observer.update(x)
    return observer


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize(("dtype", "symmetric"), [("uint8", False), ("int8", False), ("int8", True), ("uint8", True)])
@pytest.mark.parametrize("kind", ["MinMax", "MovingAverage", "Histogram"])
def test_torch(name, dtype, symmetric, kind):
    theirs = getattr(ao, {"MovingAverage": "MovingAverageMinMax"}.get(kind, kind) + "Observer")
    scheme = torch.per_tensor_symmetric if symmetric else torch.per_tensor_affine
    theirs = theirs(dtype={"uint8": torch.quint8, "int8": torch.qint8}[dtype], qscheme=scheme)
    for x in stream(name):
        theirs(torch.from_numpy(x))
    scale, zero_point = fed(getattr(like_torch, kind)(), stream(name)).qparams(dtype, symmetric)
    assert (scale, zero_point) == tuple(value.item() for value in theirs.calculate_qparams())
    assert scale.dtype == np.float32 and zero_point.dtype == np.int32


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("axis", [0, 1])
def test_torch_per_channel(symmetric, axis):
    rng = np.random.default_rng(1)
    scheme = torch.per_channel_symmetric if symmetric else torch.per_channel_affine
    arrays = [(rng.standard_normal((7, 5)) * rng.uniform(0, 9, 5)).astype(np.float32) for _ in range(40)]
    for mine, theirs in (
        (like_torch.MinMax(axis=axis), ao.PerChannelMinMaxObserver),
        (like_torch.MovingAverage(0.05, axis=axis), ao.MovingAveragePerChannelMinMaxObserver),
    ):
        more = {"averaging_constant": 0.05} if "Moving" in theirs.__name__ else {}
        theirs = theirs(ch_axis=axis, dtype=torch.qint8, qscheme=scheme, **more)
        for x in arrays:
            theirs(torch.from_numpy(x))
        for got, wanted in zip(fed(mine, arrays).qparams("int8", symmetric), theirs.calculate_qparams(), strict=True):
            np.testing.assert_array_equal(got, wanted.numpy())


def test_torch_where_cubes_overflow():
    theirs = ao.HistogramObserver()
    arrays = [x * np.float32(1e20) for x in stream("normal")]
    for x in arrays:
        theirs(torch.from_numpy(x))
    assert fed(like_torch.Histogram(), arrays).qparams() == tuple(value.item() for value in theirs.calculate_qparams())


@pytest.mark.parametrize("seed", range(3))
def test_torch_histograms_are_the_same(seed):
    for name in STREAMS:
        theirs = ao.HistogramObserver()
        for x in stream(name, seed):
            theirs(torch.from_numpy(x))
        np.testing.assert_array_equal(
            fed(like_torch.Histogram(), stream(name, seed))._counts, theirs.histogram.numpy(), name
        )


def test_torch_linspace():
    rng = np.random.default_rng(0)
    for lo, hi in np.sort(rng.standard_normal((100, 2)).astype(np.float32) * 10, axis=1):
        np.testing.assert_array_equal(_linspace(lo, hi, 2049), torch.linspace(lo.item(), hi.item(), 2049).numpy())


def test_torch_averages_stay_equal_beyond_the_window():
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(16).astype(np.float32) for _ in range(3000)]
    theirs = ao.MovingAverageMinMaxObserver(averaging_constant=0.05)
    for x in arrays:
        theirs(torch.from_numpy(x))
    scale, zero_point = fed(like_torch.MovingAverage(0.05), arrays).qparams()
    wanted = [value.item() for value in theirs.calculate_qparams()]
    assert scale == pytest.approx(wanted[0], rel=1e-6) and zero_point == wanted[1]


def collected(method, symmetric, bins, percentile, arrays):
    collector = ort.HistogramCollector(method, symmetric, bins, 128, percentile, None)
    with contextlib.redirect_stdout(io.StringIO()), np.errstate(all="ignore"):
        for x in arrays:
            collector.collect({"x": x})
        return tuple(map(float, collector.compute_collection_result()["x"][:2]))


@pytest.mark.parametrize("name", STREAMS)
def test_onnxruntime_ranges(name):
    arrays = stream(name)
    for symmetric in (False, True):
        for percentile in (99.0, 99.999):
            wanted = collected("percentile", symmetric, 2048, percentile, arrays)
            assert fed(like_onnxruntime.Percentile(percentile, symmetric), arrays).range() == wanted
    for bins in (128, 301):
        assert fed(like_onnxruntime.Entropy(bins), arrays).range() == collected("entropy", False, bins, None, arrays)


@pytest.mark.parametrize("name", ["normal", "relu"])
def test_onnxruntime_entropy_of_2048_bins(name):
    arrays = stream(name)[:2]
    assert fed(like_onnxruntime.Entropy(2048), arrays).range() == collected("entropy", False, 2048, None, arrays)


@pytest.mark.parametrize(
    ("method", "mine"),
    [
        (ort.CalibrationMethod.MinMax, MinMax),
        (ort.CalibrationMethod.Percentile, like_onnxruntime.Percentile),
        (ort.CalibrationMethod.Entropy, like_onnxruntime.Entropy),
    ],
)
def test_onnxruntime_calibrators_end_to_end(method, mine, tmp_path):
    """A graph of one Relu through create_calibrator, one collect_data() call for each array."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [50, 8]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    arrays = [np.random.default_rng(i).standard_normal((50, 8)).astype(np.float32) * (1 + i % 3) for i in range(5)]

    class Reader(ort.CalibrationDataReader):
        def __init__(self, x):
            self.left = [{"x": x}]

        def get_next(self):
            return self.left.pop() if self.left else None

    with contextlib.redirect_stdout(io.StringIO()):
        calibrator = ort.create_calibrator(tmp_path / "m.onnx", None, str(tmp_path / "a.onnx"), method)
        for array in arrays:
            calibrator.collect_data(Reader(array))
        lo, hi = calibrator.compute_data()["x"].range_value
    for dtype, limits, symmetric in (
        ("uint8", (0, 255), False),
        ("int8", (-128, 127), False),
        ("int8", (-127, 127), True),
    ):
        zero_point, scale = compute_scale_zp(np.float32(lo), np.float32(hi), *np.array(limits, dtype), symmetric)
        assert fed(mine(), arrays).qparams(dtype, symmetric) == (scale, zero_point)
