"""The same model written in torch, in float64 and one sequence at a time, with torch's own reverse: what gradients are
checked against. Fake quantization is written as its papers write it."""

import numpy as np
import torch
import torch.nn.functional as F

ACTIVATIONS = {"gelu": F.gelu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"), "silu": F.silu, "relu": F.relu}


def through(rounded, x, inside):
    """rounded, with the gradient of x where inside and none elsewhere."""
    return rounded.detach() + torch.where(inside, x - x.detach(), 0.0)


def coded(x, scale, zero_point, qmin, qmax):
    """Quantized and dequantized: straight through, none outside the range."""
    q = torch.round(x / scale) + zero_point
    rounded = (q.clamp(qmin, qmax) - zero_point) * scale
    return through(rounded, x, (q >= qmin) & (q <= qmax))


def exp2(t):
    """2^t, to 1.1e-4: exact at whole t, between them a polynomial."""
    t = t.detach().clamp(min=-125)
    f = t - torch.round(t)
    return 2 ** torch.round(t) * (((0.0550090745 * f + 0.242210984) * f + 0.693282902) * f + 1)


class StepSize(torch.autograd.Function):
    """Learned step size quantization, equations 1, 3 and 5 of Esser et al. 2020, with a zero point."""

    @staticmethod
    def forward(ctx, x, scale, zero_point, qmin, qmax, count):
        low, high = qmin - zero_point, qmax - zero_point
        ctx.save_for_backward(x, scale, low, high)
        ctx.count = count
        return torch.clamp(torch.round(x / scale), low, high) * scale

    @staticmethod
    def backward(ctx, g):
        x, scale, low, high = ctx.saved_tensors
        v = x / scale
        below, above = torch.round(v) < low, torch.round(v) > high
        slope = torch.where(below, low.to(v), torch.where(above, high.to(v), torch.round(v) - v))
        balance = 1 / torch.sqrt(ctx.count * torch.maximum(-low, high).to(v))
        return (
            torch.where(below | above, 0.0, g),
            (g * slope * balance).sum_to_size(scale.shape),
            None,
            None,
            None,
            None,
        )


class Model:
    """weights: name → float64 leaf tensors. code(site, x[, reader]), code_weight(name, w) and code_bias(name, b)
    fake-quantize, or pass on. scores: "float32", or "static" or "dynamic" of codes."""

    def __init__(self, config, weights, code, code_weight, code_bias, scores):
        self.c, self.scores = config, scores
        self.code, self.code_weight, self.code_bias = code, code_weight, code_bias
        self.w = {name: torch.tensor(np.float64(array), requires_grad=True) for name, array in weights.items()}

    def norm(self, name, x):
        if self.c.norm == "rms":
            y = F.rms_norm(x, x.shape[-1:], self.w[name + ".weight"], self.c.norm_eps)
            return y + self.w[name + ".bias"] if name + ".bias" in self.w else y
        return F.layer_norm(x, x.shape[-1:], self.w[name + ".weight"], self.w.get(name + ".bias"), self.c.norm_eps)

    def linear(self, name, x):
        weight = self.w["embed.word" if name == "head" and self.c.tied else name + ".weight"]
        bias = self.w.get(name + ".bias")
        return F.linear(x, self.code_weight(name, weight), None if bias is None else self.code_bias(name, bias))

    def rotate(self, x):
        """(length, heads, dim)."""
        dim, t = self.c.head_dim, torch.arange(len(x))
        angle = torch.outer(t.float(), 1 / (self.c.rope_theta ** (torch.arange(0, dim, 2) / dim))).double()[:, None]
        a, b = x.chunk(2, -1)
        return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)

    def attention(self, at, x):
        c, n = self.c, len(x)
        q, k, v = (
            self.linear(at + part, self.code(at + "input", x, at + part)).view(n, heads, c.head_dim)
            for part, heads in (("query", c.num_heads), ("key", c.num_kv_heads), ("value", c.num_kv_heads))
        )
        if c.qk_norm:
            q, k = self.norm(at + "query_norm", q), self.norm(at + "key_norm", k)
        if c.rope_theta is not None:
            q, k = self.rotate(q), self.rotate(k)
        q, k, v = (self.code(at + part, y) for part, y in (("query", q), ("key", k), ("value", v)))
        k, v = (y.repeat_interleave(c.num_heads // c.num_kv_heads, 1) for y in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q, k) * c.head_dim**-0.5
        if c.causal:
            scores = scores.masked_fill(torch.triu(torch.ones(n, n, dtype=torch.bool), 1), -torch.inf)
        return self.linear(at + "output", self.code(at + "context", self.attend(scores, v).reshape(n, -1)))

    def attend(self, scores, v):
        """scores (heads, queries, keys), v (keys, heads, dim) → (queries, heads, dim)."""
        weigh, t = lambda p: torch.einsum("hqk,khd->qhd", p, v), scores / np.log(2)
        if self.scores == "float32":
            return weigh(scores.softmax(-1))
        if self.scores == "static":
            e = torch.round(255 * exp2(t - t.amax(-1, keepdim=True)))
            # the rounded weights, with the softmax's reverse taken at them
            return weigh(_Softmax.apply(scores, e / e.sum(-1, keepdim=True)))
        # of codes of v: weights with v's scales in them; straight through their rounding
        v_scale = (v.detach().abs().amax(-1) / 127).T[:, None]
        above = v_scale.float().contiguous().view(torch.int32).float() * 2**-23 - 126.913
        e = exp2(t - (t + above).amax(-1, keepdim=True))
        rounded = torch.round(255 * e * v_scale) / (255 * v_scale)
        exact, rounded = (weigh(_Softmax.apply(scores, w / e.sum(-1, keepdim=True))) for w in (e, rounded))
        return through(rounded, exact, torch.tensor(True))

    def ffn(self, at, x):
        act = ACTIVATIONS[self.c.activation]
        read = lambda part: self.linear(at + part, self.code(at + "input", x, at + part))
        if self.c.gated:
            hidden = act(read("gate")) * read("up")
        else:
            hidden = act(read("up"))
        return self.linear(at + "down", self.code(at + "hidden", hidden))

    def forward(self, ids):
        """ids (length,) → final hidden states (length, hidden)."""
        ids = torch.as_tensor(ids)
        x = self.code_weight("embed.word", self.w["embed.word"])[ids]
        if "embed.position" in self.w:
            x = x + self.w["embed.position"][: len(ids)]
        if "embed.type" in self.w:
            x = x + self.w["embed.type"][0]
        if not self.c.norm_first:
            x = self.norm("embed.norm", x)
        for i in range(self.c.num_layers):
            for part, name in ((self.attention, "attention"), (self.ffn, "ffn")):
                at, norm = f"layers.{i}.{name}.", f"layers.{i}.{name}_norm"
                x = x + part(at, self.norm(norm, x)) if self.c.norm_first else self.norm(norm, x + part(at, x))
        return self.norm("final_norm", x) if self.c.norm_first else x

    def logits(self, hidden):
        return self.linear("head", self.code("head.input", hidden))


class _Softmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx, scores, p):
        ctx.save_for_backward(p)
        return p.clone()

    @staticmethod
    def backward(ctx, g):
        (p,) = ctx.saved_tensors
        return p * (g - (g * p).sum(-1, keepdim=True)), None
