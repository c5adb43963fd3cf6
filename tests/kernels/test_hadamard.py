"""Hadamard transforms against their matrix, alone and where a gate's result is transformed before it becomes codes."""

import numpy as np
import pytest
import scipy.linalg

import cq
from cq import _core
from cq.model.forms import Columns, Fixed, PerToken, Smoothed, Stretched
from cq.weights import pack_floats

SIZES = [(16, 16), (48, 16), (64, 32), (64, 64), (1536, 512), (4096, 4096)]  # columns, block
FORMS = (
    None,
    PerToken("uint8", False),
    PerToken("int8", True),
    Fixed("uint8", False, 0.02, 100),
    Smoothed("uint8", False, 0.02, 128, Columns(np.full((1, 64), 0.02, np.float32), np.full((1, 64), 120, np.int32))),
    Stretched("uint8", False, 0.01, 128, Columns(np.full((1, 64), 0.01, np.float32), np.full((1, 64), 128, np.int32))),
)


@pytest.fixture
def rng():
    return np.random.default_rng(3)


def same(a, b) -> None:
    if isinstance(a, np.ndarray):
        np.testing.assert_array_equal(a, b)
    else:
        for part in ("codes", "scale", "zero_point"):
            np.testing.assert_array_equal(getattr(a, part), getattr(b, part))


@pytest.mark.parametrize("columns, block", SIZES)
def test_it_is_the_matrix(rng, columns, block):
    x = rng.standard_normal((7, columns), np.float32)
    matrix = scipy.linalg.hadamard(block) / np.sqrt(block)
    exact = (x.reshape(7, -1, block) @ matrix).reshape(x.shape)
    y = x.copy()
    assert _core.hadamard(y, block) is y
    np.testing.assert_allclose(y, exact, rtol=0, atol=1e-6 * np.sqrt(np.log2(block)) * np.abs(exact).max())
    np.testing.assert_allclose(_core.hadamard(y, block), x, rtol=0, atol=2e-6 * np.abs(x).max())


def test_it_is_exact_where_its_sums_are(rng):
    """Sums of whole numbers, and a block whose root is whole."""
    x = rng.integers(-9, 9, (3, 512)).astype(np.float32)
    np.testing.assert_array_equal(
        _core.hadamard(x.copy(), 256), (x.reshape(6, 256) @ scipy.linalg.hadamard(256) / 16).reshape(3, 512)
    )


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.kind if form else "float32")
def test_after_a_gate(rng, form):
    g, u = rng.standard_normal((2, 9, 64), np.float32)
    transformed = _core.hadamard(_core.gate(g, u, "silu"), 32)
    same(_core.gate(g, u, "silu", form, 32), transformed if form is None else _core.quantize(transformed, form))


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.kind if form else "float32")
@pytest.mark.parametrize("rows", [1, 3, 40])
def test_after_a_gated_product(rng, rows, form):
    x, weight = rng.standard_normal((rows, 24), np.float32), rng.standard_normal((24, 128), np.float32)
    for packed in (pack_floats(weight), cq.pack(cq.quantize_tensor(weight, symmetric=True, axis=1))):
        y = _core.linear(x, packed)
        g, u = np.ascontiguousarray(y[:, :64]), np.ascontiguousarray(y[:, 64:])
        same(
            _core.linear(x, packed, activation="gelu", form=form, gated=True, hadamard=16),
            _core.gate(g, u, "gelu", form, 16),
        )


@pytest.mark.parametrize("turned", [16, 48])
def test_after_rotary_positions(rng, turned):
    """Of the heads that turn, and of no column beside them."""
    x, angle = rng.standard_normal((5, 3 * 48 + 7), np.float32), rng.standard_normal((9, turned // 2))
    cosine, sine = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    position = rng.integers(0, 9, 5).astype(np.int32)
    y, plain = x.copy(), x.copy()
    _core.rope(y, 3, 48, cosine, sine, position, 16)
    _core.rope(plain, 3, 48, cosine, sine, position)
    np.testing.assert_array_equal(y[:, :144], _core.hadamard(plain[:, :144].copy(), 16))
    np.testing.assert_array_equal(y[:, 144:], x[:, 144:])


def test_nan_and_inf_are_loud(rng):
    x = np.full((2, 32), 3e38, np.float32)
    for form in (None, PerToken("uint8", False)):
        with pytest.raises(cq.CqError, match="gate: NaN or Inf in row 0"):
            _core.gate(x, x, "silu", form, 32)


@pytest.mark.parametrize("block", [-16, 1, 8, 24, 96, 128])
def test_blocks_that_do_not_fit(block):
    x = np.ones((2, 96), np.float32)
    for call in (lambda: _core.hadamard(x, block), lambda: _core.gate(x, x, "silu", None, block)):
        with pytest.raises(cq.CqError, match="power of two from 16 that divides 96 columns"):
            call()
    with pytest.raises(cq.CqError, match="need the size of a block"):
        _core.hadamard(x, 0)
    with pytest.raises(cq.CqError, match="is for gated products"):
        _core.linear(x, pack_floats(np.ones((96, 32), np.float32)), hadamard=16)
