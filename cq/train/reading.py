"""Sites and the layers that read them, forward and in reverse. Knows no blocks."""

from collections.abc import Mapping

import numpy as np

from ..model.sites import Graph
from ..plan import Plan
from .fake import Codes, Exact, Learned, Ranged, Resting, Stretching
from .layers import Linear

Fake = Exact | Ranged | Learned | Resting | Stretching  # what a site does to what flows through it


class Reading:
    """sites: those with codes, by name. linears: all layers that are trained, by name."""

    def __init__(self, plan: Plan, graph: Graph, sites: Mapping[str, Fake], linears: Mapping[str, Linear]):
        self.plan, self.graph, self.sites, self.linears = plan, graph, sites, linears

    def code(self, site: str, x: np.ndarray) -> Codes:
        return self.sites[site](x) if site in self.sites else Codes(x)

    def code_back(self, site: str, g: np.ndarray) -> np.ndarray:
        return self.sites[site].backward(g) if site in self.sites else g

    def read(self, site: str, x: np.ndarray) -> list[np.ndarray]:
        """What each layer that reads a site makes of it; those that stay float32 read it uncoded."""
        coded, names = self.code(site, x), self.graph.readers(site)
        return [self.linears[name].forward(coded if self.plan.coded(name) else Codes(x)) for name in names]

    def read_back(self, site: str, gradients: list[np.ndarray]) -> np.ndarray:
        through = past = None
        for name, g in zip(self.graph.readers(site), gradients):
            d = self.linears[name].backward(g)
            if self.plan.coded(name):
                through = d if through is None else np.add(through, d, out=through)
            else:
                past = d if past is None else np.add(past, d, out=past)
        if through is not None:
            through = self.code_back(site, through)
            return through if past is None else np.add(through, past, out=through)
        assert past is not None, f"something reads {site}"
        return past
