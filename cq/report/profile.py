"""Where the time of one forward pass goes, part by part. Knows no model's insides: it takes whatever sites a model
shows."""

import re
import time
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ..errors import CqError
from ..model import Transformer
from ..model.sites import WORK

_LAYER = re.compile(r"layers\.(\d+)\.(.*)")
_START, _END = "start", "end"


@dataclass(frozen=True)
class Part:
    """One kind of work: seconds in all layers together, percent of the pass, and seconds by layer (empty where the work
    belongs to none)."""

    name: str
    seconds: float
    percent: float
    by_layer: dict[int, float]


@dataclass(frozen=True)
class Profile:
    """parts in order of work; layers: layer → seconds; seconds: all parts together; forward_s: a pass that nobody
    watches, which may be faster where a model skips what only a watcher needs. All are medians."""

    parts: tuple[Part, ...]
    layers: dict[int, float]
    seconds: float
    forward_s: float


def profile(model: Transformer, tokens: Iterable[np.ndarray], passes: int = 15) -> Profile:
    """Watches `passes` forward passes over `tokens` (a list of 1-D int arrays), and times as many unwatched ones in
    between.

    The time between two sites that `model.observe` shows is the cost of the part that ends at the second; each is the
    median of the passes. Raises CqError where the passes show different sites."""
    if passes < 1:
        raise CqError(f"passes must be at least 1, got {passes}")
    tokens = list(tokens)
    model.forward(tokens)
    watched, unwatched = [], []
    for _ in range(passes):
        watched.append(_watched(model, tokens))
        start = time.perf_counter()
        model.forward(tokens)
        unwatched.append(time.perf_counter() - start)
    sites = [[site for site, _ in marks] for marks in watched]
    if any(one != sites[0] for one in sites):
        raise CqError("profile: the model shows other sites in every pass; a profile needs the same work each time")
    moments = np.array([[moment for _, moment in marks] for marks in watched])  # (passes, sites)
    return _summed(sites[0], np.median(np.diff(moments, axis=1), axis=0), float(np.median(unwatched)))


def _watched(model: Transformer, tokens: list[np.ndarray]) -> list[tuple[str, float]]:
    """(site, moment), from the start to the end of one pass. What flows is not looked at: in int8 models it may be
    codes."""
    marks = [(_START, time.perf_counter())]
    model.observe(tokens, lambda site, _: marks.append((site, time.perf_counter())))
    return [*marks, (_END, time.perf_counter())]


def _summed(sites: list[str], seconds: np.ndarray, forward_s: float) -> Profile:
    """Adds up what lies between neighbouring sites, by kind and by layer."""
    parts: dict[str, dict[int | None, float]] = {}
    layers: dict[int, float] = {}
    for before, after, spent in zip(sites, sites[1:], seconds.tolist()):
        (layer, kind), (_, next_kind) = _split(before), _split(after)
        name = WORK.get((kind, next_kind), f"{kind} → {next_kind}")
        here = parts.setdefault(name, {})
        here[layer] = here.get(layer, 0.0) + spent
        if layer is not None:
            layers[layer] = layers.get(layer, 0.0) + spent
    total = float(seconds.sum())
    return Profile(
        tuple(
            Part(
                name,
                sum(here.values()),
                100 * sum(here.values()) / total,
                {layer: spent for layer, spent in here.items() if layer is not None},
            )
            for name, here in parts.items()
        ),
        layers,
        total,
        forward_s,
    )


def _split(site: str) -> tuple[int | None, str]:
    """ "layers.3.attention.context" → (3, "attention.context"); the work after a site is its layer's."""
    match = _LAYER.fullmatch(site)
    return (int(match[1]), match[2]) if match else (None, site)
