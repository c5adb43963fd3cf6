"""The same model written in torch, in float64 and one sequence at a time, with torch's own reverse: what gradients are
checked against. Fake quantization is written as its papers write it."""

import numpy as np
import scipy.linalg
import torch
import torch.nn.functional as F
from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position
from transformers.models.t5.modeling_t5 import T5Attention

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


def transformed(x, block):
    """x with Hadamard transforms taken of its blocks of neighbours, or as it is."""
    if block is None:
        return x
    return (x.reshape(-1, block) @ torch.tensor(scipy.linalg.hadamard(block) / block**0.5)).reshape(x.shape)


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

    def rotate(self, x, theta):
        """(length, heads, dim)."""
        dim, t = self.c.rotary_dim or self.c.head_dim, torch.arange(len(x))
        angle = torch.outer(t.float(), 1 / (theta ** (torch.arange(0, dim, 2) / dim))).double()[:, None]
        (a, b), rest = x[..., :dim].chunk(2, -1), x[..., dim:]
        return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin(), rest], -1)

    def attention(self, at, x):
        c, n, i = self.c, len(x), int(at.split(".")[1])
        window, theta, _ = c.layer(i)
        q, k, v = (
            self.linear(at + part, self.code(at + "input", x, at + part)).view(n, heads, c.head_dim)
            for part, heads in (("query", c.num_heads), ("key", c.num_kv_heads), ("value", c.num_kv_heads))
        )
        if c.qk_norm:
            flat = (lambda y: y.reshape(n, -1)) if c.qk_norm_joint else (lambda y: y)
            q, k = (self.norm(at + name, flat(y)).view(y.shape) for name, y in (("query_norm", q), ("key_norm", k)))
        if theta is not None:
            q, k = self.rotate(q, theta), self.rotate(k, theta)
            q, k = (transformed(y, c.head_hadamard) for y in (q, k))
        q, k, v = (self.code(at + part, y) for part, y in (("query", q), ("key", k), ("value", v)))
        k, v = (y.repeat_interleave(c.num_heads // c.num_kv_heads, 1) for y in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q, k) * (c.attention_scale or c.head_dim**-0.5)
        if c.attention_cap is not None:
            scores = c.attention_cap * torch.tanh(scores / c.attention_cap)
        if (c.position_bias or {}).get("kind") == "disentangled":
            scores = scores + self.by_position(at, q, k) * (c.attention_scale or c.head_dim**-0.5)
        elif c.position_bias is not None:
            buckets, far = c.position_bias["buckets"], c.position_bias["distance"]
            bucket = T5Attention._relative_position_bucket(
                torch.arange(n) - torch.arange(n)[:, None], True, buckets, far
            )
            scores = scores + self.w["embed.buckets"][bucket].permute(2, 0, 1)
        back = torch.arange(n)[:, None] - torch.arange(n)
        unseen = back < 0 if c.causal else back != back
        if window is not None:
            unseen = unseen | (back >= window if c.causal else back.abs() > window)
        scores = scores.masked_fill(unseen, -torch.inf)
        return self.linear(at + "output", self.code(at + "context", self.attend(scores, v).reshape(n, -1)))

    def by_position(self, at, q, k):
        """q, k (length, heads, dim) with the keys and queries of relative positions (heads, queries, keys)."""
        kind, n = self.c.position_bias, len(q)
        row, half = torch.arange(n)[:, None] - torch.arange(n), kind["buckets"] or kind["distance"]
        if kind["buckets"]:
            row = make_log_bucket_position(row, kind["buckets"], kind["distance"]).long()
        row, total = (row + half).clamp(0, 2 * half - 1).expand(q.shape[1], n, n), 0
        for part, x, at_key in (("keys", q, False), ("queries", k, True)):
            if kind[part]:
                table = self.w[f"{at}relative_{part}"].view(*q.shape[1:], 2 * half)
                met = torch.einsum("nhd,hdp->hnp", x, table)
                total = total + (met.gather(2, row.mT).mT if at_key else met.gather(2, row))
        return total

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
        return self.linear(at + "down", self.code(at + "hidden", transformed(hidden, self.c.hadamard)))

    def convolved(self, x):
        """(length, hidden)."""
        weight, kernel = self.w["convolution.weight"], self.c.convolution["kernel"]
        weight = weight.view(len(weight), kernel, -1).transpose(1, 2)
        y = F.conv1d(x.T, weight, self.w.get("convolution.bias"), padding=kernel // 2).T
        return ACTIVATIONS[self.c.convolution["activation"]](y)

    def forward(self, ids):
        """ids (length,) → final hidden states (length, hidden)."""
        ids = torch.as_tensor(ids)
        c, x = self.c, self.code_weight("embed.word", self.w["embed.word"])[ids] * self.c.embedding_scale
        if "embed.position" in self.w:
            x = x + self.w["embed.position"][self.c.position_offset :][: len(ids)]
        if "embed.type" in self.w:
            x = x + self.w["embed.type"][0]
        ends = c.norm_first or c.norm_outputs
        if not ends:
            x = self.norm("embed.norm", x)
        if c.embedding_width is not None:
            x = self.linear("embed.project", self.code("embed.input", x, "embed.project"))
        first = x
        for i in range(c.num_layers):
            begin = x
            for part, name in ((self.attention, "attention"), (self.ffn, "ffn")):
                at, norm = f"layers.{i}.{name}.", f"layers.{i}.{name}_norm"
                read = begin if c.parallel else x
                y = part(at, self.norm(norm, read) if c.norm_first else read)
                y = self.norm(at + "output_norm", y) if c.norm_outputs else y
                x = x + c.residual_scale * y
                x = x if ends else self.norm(norm, x)
            if i == 0 and c.convolution is not None:
                x = self.norm("convolution.norm", x + self.convolved(first))
        return self.norm("final_norm", x) if ends else x

    def logits(self, hidden):
        scores, cap = self.linear("head", self.code("head.input", hidden)) * self.c.logits_scale, self.c.logits_cap
        return scores if cap is None else cap * torch.tanh(scores / cap)


class _Softmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx, scores, p):
        ctx.save_for_backward(p)
        return p.clone()

    @staticmethod
    def backward(ctx, g):
        (p,) = ctx.saved_tensors
        return p * (g - (g * p).sum(-1, keepdim=True)), None
