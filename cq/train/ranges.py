"""Where learned ranges begin: narrower than extremes or least squared error have them, where the loss gains (loss-aware
quantization, Nahshan et al. 2019, arXiv:1911.07190). Knows no optimizer.

What it costs to clip an outlier, the norm behind it may undo; what a wide range costs all others in rounding, nothing
does. One weight of MiniLM's first ffn.down is 175 times their deviation: clipped at 22 times, as ffn.down alone is
coded, embeddings lose 2.3e-4 of cosine, in the range of least squared error 14e-4. Steps of training move a scale by a
few thousandths."""

import numpy as np

from .network import Network
from .objectives import Objective

SHARES = (0.8, 0.64, 0.5, 0.4, 0.3, 0.22, 0.16, 0.12)  # of a range's farther end, tried one after another
MISSES = 2  # tries in a row that gain nothing, after which no more are made


def narrow(network: Network, objective: Objective, samples: list[np.ndarray]) -> None:
    """Clips one learned range after another, in the order of work, where that lessens the loss on the samples, and
    moves zero points along. Only where weights have one scale each: by channel, outliers have their own, and
    activations are smoothed for it."""
    if not (network.coarse and network.learns):
        return
    targets = objective.targets(samples)
    least, _ = objective.loss(samples, targets)
    for fake, refresh in network.learned_ranges():
        scale, zero_point, (lo, hi), misses = fake.scale.copy(), fake.zero_point, fake.ends(), 0
        for share in SHARES:
            limit = share * max(-lo, hi)
            fake.span(max(lo, -limit), min(hi, limit))
            refresh()
            found, _ = objective.loss(samples, targets)
            if found < least:
                least, scale, zero_point, misses = found, fake.scale.copy(), fake.zero_point, 0
            elif (misses := misses + 1) == MISSES:
                break
        fake.scale[...], fake.zero_point = scale, zero_point
        refresh()
