"""Whole quantized models in plain NumPy, from affine's formulas alone, beside the real ones: the same codes everywhere."""
import itertools
from typing import NamedTuple

import numpy as np
import pytest

import cq
from cq import _core, affine
from cq.calibrate import calibrate

LENGTHS = (9, 1, 24)
SCHEMES = {
    "default": cq.Scheme(), "textbook": cq.Scheme.textbook(),
    "symmetric": cq.Scheme(activation_dtype="int8", activation_symmetric=True, bias="float32"),
    "per-tensor": cq.Scheme(weight_granularity="per_tensor", weight_symmetric=False, activation_granularity="per_tensor"),
}
# At a rounding border a float that differs in its last bit takes the next code: so many of all may, and by no more than 1.
OFF_BY_ONE = 2e-3


class Codes(NamedTuple):
    q: np.ndarray
    scale: np.ndarray
    zero_point: np.ndarray

    def real(self) -> np.ndarray:
        return affine.dequantize(self.q, self.scale.reshape(-1, 1), self.zero_point.reshape(-1, 1))


def activated(y, activation):
    """act(y), from the layer's formula: a product of nothing, and y as bias."""
    nothing = np.zeros((1, 1), np.int8), np.zeros((1, y.size), np.int8)
    return affine.layer(*nothing, 1.0, 0, 1.0, 0, None, y.ravel(), activation).reshape(y.shape)


class Plain:
    """The model's meaning. Reads no class of cq.model but Config; keeps the codes that each layer read, in order."""

    def __init__(self, config, weights: dict, kind: str, scheme: cq.Scheme, ranges: dict):
        self.c, self.w, self.kind, self.scheme, self.ranges, self.read = config, weights, kind, scheme, ranges, []

    def fixed(self, x, site) -> Codes:
        s = self.scheme
        scale, zero_point = self.ranges[site].qparams(s.activation_dtype, s.activation_symmetric)
        return Codes(affine.quantize(x, scale, zero_point, s.activation_dtype, s.activation_symmetric), scale, zero_point)

    def codes(self, x, site) -> Codes:
        s = self.scheme
        if self.kind == "static":
            return self.fixed(x, site)
        kind = s.activation_dtype, s.activation_symmetric
        per_token = s.activation_granularity == "per_token"
        scale, zero_point = affine.row_params(x, *kind) if per_token else affine.dynamic_qparams(x.min(), x.max(), *kind)
        return Codes(affine.quantize(x, scale.reshape(-1, 1), zero_point.reshape(-1, 1), *kind), scale, zero_point)

    def weight(self, name) -> Codes:
        """(out, in) codes, with one scale for each output."""
        w, s = self.w[name], self.scheme
        axis = None if s.weight_granularity == "per_tensor" else 1
        scale, zero_point = affine.qparams(w.min(axis), w.max(axis), "int8", s.weight_symmetric)
        scale, zero_point = (np.broadcast_to(p, len(w)).reshape(-1, 1) for p in (scale, zero_point))
        return Codes(affine.quantize(w, scale, zero_point, "int8", s.weight_symmetric), scale, zero_point)

    def linear(self, name, x, site, activation=None, residual=None):
        w, bias = self.weight(name + ".weight" if name + ".weight" in self.w else "embed.word"), self.w.get(name + ".bias")
        bias_i32 = None
        if bias is not None and self.scheme.bias == "int8":
            parameters = affine.qparams(bias.min(), bias.max(), "int8")
            bias = affine.dequantize(affine.quantize(bias, *parameters), *parameters)
        if self.kind == "weight-only":
            y = activated(x @ w.real().T + (0 if bias is None else bias), activation)
            return y if residual is None else y + residual
        codes = self.codes(x, site)
        self.read.append(codes.q)
        if bias is not None and self.scheme.bias == "int32" and self.kind == "static":
            bias_i32 = np.rint(bias / (np.float64(codes.scale) * w.scale[:, 0])).astype(np.int32)
        return affine.layer(codes.q, w.q.T, codes.scale, codes.zero_point, w.scale[:, 0], w.zero_point[:, 0], bias_i32,
                            None if bias_i32 is not None else bias, activation, residual)

    def norm(self, x, name):
        x = x.astype(np.float64)
        x = x - (x.mean(1, keepdims=True) if self.c.norm == "layer" else 0)
        y = x / np.sqrt((x * x).mean(1, keepdims=True) + self.c.norm_eps) * self.w[name + ".weight"]
        return (y + self.w[name + ".bias"]).astype(np.float32)

    def rotate(self, x, positions, heads):
        x = x.reshape(len(x), heads, -1)
        half = x.shape[2] // 2
        inverse = (1 / self.c.rope_theta ** (np.arange(half) / half)).astype(np.float32)
        angle = np.outer(positions.astype(np.float32), inverse)[:, None].astype(np.float64)
        a, b, c, s = x[..., :half], x[..., half:], np.cos(angle), np.sin(angle)
        return np.concatenate([a * c - b * s, b * c + a * s], 2).reshape(len(x), -1).astype(np.float32)

    def attention(self, q, k, v, at, offsets):
        c, parts = self.c, []
        static = self.kind == "static"
        if static:
            q, k, v = (self.fixed(x, f"{at}.{part}") for x, part in ((q, "query"), (k, "key"), (v, "value")))
            factor = np.float32(c.head_dim ** -0.5) * q.scale * k.scale
        for h, (a, b) in itertools.product(range(c.num_heads), itertools.pairwise(offsets)):
            take = lambda x, h: x[a:b, h * c.head_dim:(h + 1) * c.head_dim].astype(np.float64)  # noqa: E731
            g = h * c.num_kv_heads // c.num_heads
            mask = np.tril(np.ones((b - a, b - a), bool)) if c.causal else np.True_
            if static:
                scores = (take(q.q, h) - q.zero_point) @ (take(k.q, g) - k.zero_point).T
            else:
                scores = take(q, h) @ take(k, g).T * c.head_dim ** -0.5
            scores = scores - np.where(mask, scores, -np.inf).max(1, keepdims=True)
            if static:  # weights are codes of 1/255, and their own sum normalizes
                weights = np.rint(np.exp(np.minimum(scores.astype(np.float32) * factor, 0)) * np.float32(255)) * mask
                y = (weights @ (take(v.q, g) - v.zero_point)).astype(np.float32)
                y = y * (1 / weights.sum(1, keepdims=True) * v.scale)
            else:
                weights = np.exp(np.minimum(scores, 0)) * mask
                y = weights / weights.sum(1, keepdims=True) @ take(v, g)
            parts.append(y.astype(np.float32))
        count = len(offsets) - 1
        return np.hstack([np.vstack(parts[h * count:(h + 1) * count]) for h in range(c.num_heads)])

    def gated(self, at, gate, up):
        if self.kind == "static":
            gate, up = self.fixed(gate, at + ".gate").real(), self.fixed(up, at + ".up").real()
        return activated(gate, self.c.activation) * up

    def attend(self, x, residual, at, positions, offsets):
        q, k, v = (self.linear(f"{at}.{part}", x, at + ".input") for part in ("query", "key", "value"))
        if self.c.rope_theta:
            q, k = self.rotate(q, positions, self.c.num_heads), self.rotate(k, positions, self.c.num_kv_heads)
        context = self.attention(q, k, v, at, offsets)
        return self.linear(at + ".output", context, at + ".context", residual=residual)

    def feed(self, x, residual, at):
        if self.c.gated:
            hidden = self.gated(at, self.linear(at + ".gate", x, at + ".input"), self.linear(at + ".up", x, at + ".input"))
        else:
            hidden = self.linear(at + ".up", x, at + ".input", self.c.activation)
        return self.linear(at + ".down", hidden, at + ".hidden", residual=residual)

    def forward(self, tokens):
        """(hidden (tokens, hidden), logits or None) of packed sequences."""
        ids, offsets = np.concatenate(tokens), np.cumsum([0, *map(len, tokens)])
        positions = np.concatenate([np.arange(len(t)) for t in tokens])
        x = self.weight("embed.word").real()[ids]
        if self.c.rope_theta is None:
            x = self.norm(x + self.w["embed.position"][positions] + self.w["embed.type"][0], "embed.norm")
        for i in range(self.c.num_layers):
            at = f"layers.{i}"
            if self.c.norm_first:
                x = self.attend(self.norm(x, at + ".attention_norm"), x, at + ".attention", positions, offsets)
                x = self.feed(self.norm(x, at + ".ffn_norm"), x, at + ".ffn")
            else:
                x = self.norm(self.attend(x, x, at + ".attention", positions, offsets), at + ".attention_norm")
                x = self.norm(self.feed(x, x, at + ".ffn"), at + ".ffn_norm")
        if self.c.norm_first:
            x = self.norm(x, "final_norm")
        return x, self.linear("head", x, "head.input") if self.c.lm_head else None


def both(random_model, monkeypatch, family, strategy, **changes):
    """(what cq gives, what Plain gives, the codes that cq's layers read, and that Plain's read)."""
    model, weights = random_model(family, **changes)
    rng = np.random.default_rng(4)
    tokens = [rng.integers(0, model.config.vocab_size, n) for n in LENGTHS]
    static = strategy.name == "static"
    ranges = calibrate(model, [tokens], strategy.observer) if static else {}
    plain = Plain(model.config, weights, strategy.name, strategy.scheme, ranges)
    quantized, seen = cq.quantize(model, strategy, [tokens] if static else None), []
    linear = _core.linear
    monkeypatch.setattr(_core, "linear", lambda x, *rest: seen.append(x) or linear(x, *rest))
    ours = quantized.logits(tokens) if model.config.lm_head else quantized.forward(tokens)
    hidden, logits = plain.forward(tokens)
    return np.concatenate(ours), hidden if logits is None else logits, seen, plain.read


CASES = [(family, strategy(scheme=scheme), {}) for family in ("bert", "llama")
         for strategy in (cq.WeightOnly, cq.Dynamic, cq.Static) for scheme in SCHEMES.values()]
CASES += [(family, strategy, dict(activation=activation)) for activation in ("relu", "gelu_tanh", "silu", "gelu")
          for family in ("bert", "llama") for strategy in (cq.WeightOnly(), cq.Static())]
CASES += [("llama", strategy, changes) for strategy in (cq.Dynamic(), cq.Static())
          for changes in (dict(tied=False), dict(num_kv_heads=6), dict(num_kv_heads=1, head_dim=20), dict(hidden_size=64))]


@pytest.mark.parametrize("family, strategy, changes", CASES, ids=lambda v: getattr(v, "name", v))
def test_model_is_its_formula(random_model, monkeypatch, family, strategy, changes):
    ours, plain, seen, read = both(random_model, monkeypatch, family, strategy, **changes)
    if strategy.name == "weight-only":
        assert all(isinstance(x, np.ndarray) and x.dtype == np.float32 for x in seen)
        np.testing.assert_allclose(ours, plain, atol=2e-5)
        return
    assert len(seen) == len(read) and all(isinstance(x, _core.Coded) for x in seen)
    off = np.concatenate([np.abs(x.codes.astype(int) - codes).ravel() for x, codes in zip(seen, read)])
    assert off.max() <= 1 and (off > 0).mean() <= OFF_BY_ONE
    assert np.abs(ours - plain).max() < (0.02 if off.any() else 2e-5)
