"""Channels made more alike where a weight will have one scale for all of them, with the same function. Runs no model.

Cross-layer equalization (Nagel et al. 2019, arXiv:1906.04721) of values with what reads them: what makes a channel
small in one weight makes it large in the other.

Outlier channel splitting (Zhao et al. 2019, arXiv:1901.09504) of feed-forward layers: a hidden unit with a large weight
is halved between itself and a copy, which computes the same and halves the range. The paper adds units; here the copy
takes the place of the unit that matters least, so the shape stays. Models like BERT need it: a few hidden units drive
one outlier feature (Kovaleva et al. 2021, arXiv:2105.06990), by weights so large that a range which holds them leaves
the others a handful of codes. What a unit gave that leaves, training makes up for."""

import numpy as np

from .. import functions
from ..model import Config
from ..model.sites import AttentionPart, FeedForwardPart
from ..observers.tokens import Tokens

SHARE = 192  # one unit in so many may give up its place
OUTLIER = 16  # weights beyond so many times the layer's root mean square are split


def equalize_values(weights: dict[str, np.ndarray], attention: AttentionPart, config: Config) -> dict[str, np.ndarray]:
    """What changes of `weights` (by canonical name) in a block's attention: of each value's feature the largest weight
    that makes it, and the largest that reads it, become one."""
    names = attention.value + ".weight", attention.value + ".bias", attention.output + ".weight"
    heads = config.num_kv_heads, config.num_heads // config.num_kv_heads, config.head_dim
    made, read = weights[names[0]], weights[names[2]].reshape(-1, *heads)
    given, taken = np.abs(made).max(axis=1), np.abs(read).max(axis=(0, 2)).reshape(-1)
    factor = np.ones_like(given)
    np.divide(given, taken, out=factor, where=(given > 0) & (taken > 0))
    factor = np.sqrt(factor)
    factor /= functions.exp(functions.log(factor).mean(dtype=np.float64)).astype(factor.dtype)
    changed = {names[0]: made / factor[:, None]}
    if names[1] in weights:
        changed[names[1]] = weights[names[1]] / factor
    return changed | {names[2]: (read * factor.reshape(config.num_kv_heads, 1, -1)).reshape(weights[names[2]].shape)}


def split_outliers(weights: dict[str, np.ndarray], ffn: FeedForwardPart, hidden: Tokens) -> dict[str, np.ndarray]:
    """What changes of `weights` (by canonical name) in a block's feed-forward layers, for the hidden values that
    calibration kept; nothing where no weight is an outlier."""
    down, bias = weights[ffn.down + ".weight"].copy(), weights.get(ffn.down + ".bias")
    mean = hidden.rows.mean(0, dtype=np.float64) if bias is not None else np.zeros(down.shape[1])
    spread = np.square(hidden.rows - mean).mean(0)
    reach = np.abs(down).max(0)  # of each unit
    spare = np.argsort(spread * np.square(down, dtype=np.float64).sum(0), kind="stable")[: down.shape[1] // SHARE]
    limit = OUTLIER * np.sqrt(np.mean(np.square(down, dtype=np.float64)))
    source, offset = np.arange(down.shape[1]), np.zeros(len(down))
    for unit in spare:
        loud = int(reach.argmax())
        if reach[loud] <= limit:
            break
        offset += down[:, unit] * mean[unit]
        down[:, loud] *= 0.5
        down[:, unit], source[unit] = down[:, loud], source[loud]
        reach[[loud, unit]] = reach[loud] * 0.5
    if (source == np.arange(len(source))).all():
        return {}
    inner = [key for layer in ffn.projections for key in (f"{layer}.weight", f"{layer}.bias") if key in weights]
    changed = {key: weights[key][source] for key in inner} | {ffn.down + ".weight": down}
    return changed if bias is None else changed | {ffn.down + ".bias": (bias + offset).astype(bias.dtype)}
