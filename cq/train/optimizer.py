"""AdamW with warm-up and cosine decay, over flat parameters. Knows no layers and no losses."""

import math

import numpy as np

from .. import functions
from .parameters import Parameters
from .passes import adamw, dot

EPSILON = 1e-8


def learning_rate(step: int, steps: int, peak: float, warmup: int) -> float:
    """Of step 0 … steps - 1: up in a line to `peak` over `warmup` steps, then down along half a cosine to 0
    (Loshchilov, Hutter 2017)."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return float(peak * 0.5 * (1 + functions.cos(math.pi * (step - warmup) / max(1, steps - warmup))))


class AdamW:
    """Adam with decoupled weight decay (Loshchilov, Hutter 2019); matrices and tables decay, norms, biases and scales
    do not, and norms and biases may move faster (Parameters.vectors). A learned scale moves by its unit step and in
    proportion to itself, so that it stays above 0.

    mean, square: the moving averages, flat like the parameters; steps: taken so far."""

    def __init__(self, parameters: Parameters, weight_decay: float, betas: tuple[float, float]):
        self.parameters, self.weight_decay, self.betas = parameters, weight_decay, betas
        self.mean, self.square = np.zeros_like(parameters.flat), np.zeros_like(parameters.flat)
        self.steps = 0

    def step(self, rate: float, clip_norm: float, passes: int = 1) -> float:
        """One step along the gradients, which are sums over `passes`: along their mean, scaled down to a global norm of
        at most clip_norm. Returns the mean's norm before that."""
        p, g = self.parameters.flat, self.parameters.flat_gradient
        norm = math.sqrt(dot(g, g))
        norm /= passes
        clip = min(1.0, clip_norm / max(norm, 1e-30)) / passes
        self.steps += 1
        first, second = (1 - float(functions.power(beta, self.steps)) for beta in self.betas)
        b1, b2 = self.betas
        moves = b1, b2, clip * (1 - b1), clip * clip * (1 - b2), 1 / math.sqrt(second), EPSILON
        rate, keep, faster = rate / first, 1 - rate * self.weight_decay, rate / first * self.parameters.vectors

        start, plain = 0, self.parameters.plain
        parts: list[tuple] = []
        for size, row_rates in self.parameters.matrices:
            parts.append((slice(start, start + size), None, (rate, keep), row_rates))
            start += size
        parts.append((slice(start, plain), None, (faster, 1.0), None))
        parts.append((slice(plain, p.size), self.parameters.units, (rate, 1.0), None))
        for part, units, ends, row_rates in parts:
            adamw(p[part], g[part], self.mean[part], self.square[part], units, (*moves, *ends), row_rates)
        return norm
