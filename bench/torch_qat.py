"""The rival of cq's quantization-aware training: the same encoder in eager torch, with torch's fused fake quantization
at the same places. Knows no timing."""

import numpy as np
import torch
import torch.nn.functional as F
from torch.ao.quantization import (
    FusedMovingAvgObsFakeQuantize,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
)


def _activation() -> FusedMovingAvgObsFakeQuantize:
    return FusedMovingAvgObsFakeQuantize(MovingAverageMinMaxObserver, quant_min=0, quant_max=255, dtype=torch.quint8)


class Linear(torch.nn.Module):
    def __init__(self, weight: np.ndarray, bias: np.ndarray):
        super().__init__()
        self.weight, self.bias = (torch.nn.Parameter(torch.tensor(array)) for array in (weight, bias))
        self.fake = FusedMovingAvgObsFakeQuantize(
            MovingAveragePerChannelMinMaxObserver,
            quant_min=-127,
            quant_max=127,
            dtype=torch.qint8,
            qscheme=torch.per_channel_symmetric,
            averaging_constant=1.0,
        )

    def forward(self, x):
        return F.linear(x, self.fake(self.weight), self.bias)


class Layer(torch.nn.Module):
    def __init__(self, config, weights: dict, at: str):
        super().__init__()
        self.heads, self.eps = config.num_heads, config.norm_eps
        linear = lambda name: Linear(weights[f"{at}.{name}.weight"], weights[f"{at}.{name}.bias"])
        norm = lambda name: torch.nn.ParameterList(
            [torch.tensor(weights[f"{at}.{name}.{leaf}"]) for leaf in ("weight", "bias")]
        )
        self.q, self.k, self.v, self.out = (linear("attention." + name) for name in ("query", "key", "value", "output"))
        self.up, self.down = linear("ffn.up"), linear("ffn.down")
        self.norm1, self.norm2 = norm("attention_norm"), norm("ffn_norm")
        self.fakes = torch.nn.ModuleList(_activation() for _ in range(7))

    def forward(self, x, mask):
        split = lambda y: y.unflatten(2, (self.heads, -1)).transpose(1, 2)
        first, q, k, v, context, second, hidden = self.fakes
        a = first(x)
        y = F.scaled_dot_product_attention(split(q(self.q(a))), split(k(self.k(a))), split(v(self.v(a))), mask)
        x = F.layer_norm(x + self.out(context(y.transpose(1, 2).flatten(2))), x.shape[-1:], *self.norm1, self.eps)
        return F.layer_norm(x + self.down(hidden(F.gelu(self.up(second(x))))), x.shape[-1:], *self.norm2, self.eps)


class Encoder(torch.nn.Module):
    """A BERT-type encoder from weights by cq's canonical names, which pools by mean."""

    def __init__(self, config, weights: dict[str, np.ndarray]):
        super().__init__()
        self.tables = torch.nn.ParameterList(
            [torch.tensor(weights[f"embed.{name}"]) for name in ("word", "position", "type")]
        )
        self.norm = torch.nn.ParameterList([torch.tensor(weights[f"embed.norm.{leaf}"]) for leaf in ("weight", "bias")])
        self.layers = torch.nn.ModuleList(Layer(config, weights, f"layers.{i}") for i in range(config.num_layers))
        self.eps = config.norm_eps

    def forward(self, ids, mask):
        """ids, mask (batch, length) → embeddings (batch, hidden), not normalized."""
        word, position, kind = self.tables
        x = F.layer_norm(
            F.embedding(ids, word) + position[: ids.shape[1]] + kind[0], word.shape[1:], *self.norm, self.eps
        )
        seen = None if mask.all() else mask[:, None, None].bool()
        for layer in self.layers:
            x = layer(x, seen)
        return (x * mask[..., None]).sum(1)


def step_of(config, weights: dict[str, np.ndarray], threads: int):
    """A function (ids, mask, targets) that does one step of distillation, as cq's does, and gives the loss."""
    torch.set_num_threads(threads)
    encoder = Encoder(config, weights)
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-5, betas=(0.9, 0.999), weight_decay=0.0, fused=True)

    def step(ids: torch.Tensor, mask: torch.Tensor, targets: torch.Tensor) -> float:
        loss = (1 - F.cosine_similarity(encoder(ids, mask), targets)).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
        optimizer.step()
        return float(loss.detach())

    return step
