"""Range finders: streaming, mergeable accumulators that see arrays go by and then name the range worth quantizing.

They must not know layers, models or who feeds them. Their common interface is base.Observer's; like_torch and
like_onnxruntime hold those that give other libraries' parameters.
"""

from collections.abc import Callable

from cq.errors import CqError
from cq.observers import like_onnxruntime, like_torch
from cq.observers.base import Observer
from cq.observers.entropy import Entropy
from cq.observers.extremes import MinMax, MovingAverage
from cq.observers.histogram import Histogram
from cq.observers.mse import MSE
from cq.observers.percentile import Percentile

__all__ = [
    "MSE",
    "Entropy",
    "Histogram",
    "MinMax",
    "MovingAverage",
    "Observer",
    "Percentile",
    "like_onnxruntime",
    "like_torch",
    "make",
]

_KINDS: dict[str, Callable[..., Observer]] = {
    "minmax": MinMax,
    "moving_average": MovingAverage,
    "percentile": Percentile,
    "token_percentile": lambda percentile=99.9: Percentile(percentile, of="tokens"),
    "histogram": Histogram,
    "mse": MSE,
    "entropy": Entropy,
}


def make(name: str) -> Observer:
    """Makes an observer by name.

    Args:
        name: "minmax", "moving_average", "percentile", "token_percentile" (99.9 % of tokens), "histogram", "mse" or
            "entropy", with usual settings; or with its first setting after a colon, as in "percentile:99.9",
            "moving_average:0.05" or "histogram:3".

    Returns:
        An `Observer` that has seen nothing yet.

    Raises:
        CqError: The name or the setting is unknown.
    """
    kind, colon, setting = name.partition(":") if isinstance(name, str) else ("", "", "")
    if kind not in _KINDS:
        raise CqError(f"observer: got {name!r}, wanted one of {', '.join(map(repr, _KINDS))}")
    if not colon:
        return _KINDS[kind]()
    if kind in ("minmax", "mse", "entropy"):
        raise CqError(f"observer: got {name!r}, but {kind} has no setting")
    try:
        value = float(setting)
    except ValueError:
        raise CqError(f"observer: got {name!r}, wanted a number after the colon") from None
    return _KINDS[kind](value)
