"""AdamW with warm-up and cosine decay, over flat parameters. Knows no layers and no losses."""
import math

import numpy as np

from .parameters import Parameters

CHUNK = 1 << 14  # elements of each of four arrays at a time, which stay in the level-2 cache from one pass to the next
EPSILON = 1e-8


def learning_rate(step: int, steps: int, peak: float, warmup: int) -> float:
    """Of step 0 … steps - 1: up in a line to `peak` over `warmup` steps, then down along half a cosine to 0 (Loshchilov,
    Hutter 2017)."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


class AdamW:
    """Adam with decoupled weight decay (Loshchilov, Hutter 2019); matrices and tables decay, norms, biases and scales do not.
    A learned scale moves by its unit step and in proportion to itself, so that it stays above 0.

    mean, square: the moving averages, flat like the parameters; steps: taken so far."""

    def __init__(self, parameters: Parameters, weight_decay: float, betas: tuple[float, float]):
        self.parameters, self.weight_decay, self.betas = parameters, weight_decay, betas
        self.mean, self.square = np.zeros_like(parameters.flat), np.zeros_like(parameters.flat)
        self.steps = 0

    def step(self, rate: float, clip_norm: float, passes: int = 1) -> float:
        """One step along the gradients, which are sums over `passes`: along their mean, scaled down to a global norm of at most
        clip_norm. Returns the mean's norm before that."""
        p, g = self.parameters.flat, self.parameters.flat_gradient
        norm = math.sqrt(sum(float(np.vdot(part, part)) for part in np.array_split(g, 1 + g.size // (1 << 20))))
        norm /= passes
        clip = min(1.0, clip_norm / max(norm, 1e-30)) / passes
        self.steps += 1
        first, second = (1 - beta ** self.steps for beta in self.betas)
        scratch = np.empty(min(CHUNK, p.size), p.dtype)
        edges = (0, self.parameters.decayed, self.parameters.plain, p.size)
        for kind, (start, end) in enumerate(zip(edges[:-1], edges[1:])):
            for at in range(start, end, CHUNK):
                part = slice(at, min(at + CHUNK, end))
                update = self._update(g[part], self.mean[part], self.square[part], scratch[:part.stop - at], clip, second)
                update *= rate / first
                if kind == 0 and self.weight_decay:
                    p[part] *= 1 - rate * self.weight_decay
                if kind == 2:
                    update *= self.parameters.units[at - start:part.stop - start]
                    update *= p[part]
                    np.clip(update, -0.5 * p[part], 0.5 * p[part], out=update)
                p[part] -= update
        return norm

    def _update(self, g, mean, square, out, clip: float, second: float) -> np.ndarray:
        """mean / (sqrt(square / second) + EPSILON), both averages moved on first, written to `out`."""
        b1, b2 = self.betas
        np.multiply(g, clip * (1 - b1), out=out)
        mean *= b1
        mean += out
        np.multiply(g, g, out=out)
        out *= clip * clip * (1 - b2)
        square *= b2
        square += out
        np.sqrt(square, out=out)
        out *= 1 / math.sqrt(second)
        out += EPSILON
        return np.divide(mean, out, out=out)
