"""Training interrupted and resumed: parameters, the optimizer's averages, ranges and the step in one safetensors file,
written whole or not at all. Knows no loop."""

import json
import os
from dataclasses import asdict
from pathlib import Path

import numpy as np

from ..errors import CqError, FormatError, one_line
from ..formats.tensors import read_tensors, write_safetensors
from ..formats.untrusted import as_name, parse_json
from ..model.deferred import Deferred
from ..strategies import Training
from .fake import Ranged
from .network import Network
from .optimizer import AdamW

KEY = "cq.training"


def checked(path: str | os.PathLike) -> Path:
    """The name of a checkpoint, before any work is done for it. Raises CqError, FileNotFoundError where its folder is
    missing."""
    name = as_name(path)
    if name.suffix != ".safetensors":
        raise CqError(f"checkpoint: {name}: give it a name that ends in .safetensors")
    if not name.parent.is_dir():
        raise FileNotFoundError(one_line(f"{name.parent}: no such folder"))
    return name


def _record(network: Network, training: Training) -> dict:
    """What must be the same for a checkpoint to be this training's: the choices and the model's shape."""
    choices = asdict(training) | {"kind": type(training).__name__}
    if network.plan.strategy is not None:
        choices["target"] = network.plan.strategy.to_dict()
    record: dict = json.loads(json.dumps({"training": choices, "config": network.config.to_dict()}))
    return record


def _moving(network: Network) -> list[Ranged]:
    return [site for site in network.sites.values() if isinstance(site, Ranged)]


def store(path: Path, network: Network, optimizer: AdamW, training: Training) -> None:
    """Writes `path`, a .safetensors file. Raises OSError."""
    tensors: dict[str, np.ndarray | Deferred] = {
        "parameters": network.parameters.flat,
        "mean": optimizer.mean,
        "square": optimizer.square,
        # as whole numbers, since the reader turns float64 to float32
        "ranges": np.array([site.state for site in _moving(network)], np.float64).view(np.int64).reshape(-1, 3),
    }
    record = _record(network, training) | {"step": optimizer.steps}
    write_safetensors(path, tensors, {KEY: json.dumps(record)})


def restore(path: Path, network: Network, optimizer: AdamW, training: Training) -> None:
    """Brings network and optimizer to where `store` left them; nothing where there is no such file. Raises FormatError
    for a file that is not this training's."""
    if not path.exists():
        return
    tensors, metadata = read_tensors(path)
    try:
        record = parse_json(metadata[KEY].encode("utf-8", "surrogatepass"), f"{path}: {KEY}", dict)
        step = record.pop("step")
    except KeyError:
        raise FormatError(f"{path}: not a checkpoint of a training") from None
    if record != _record(network, training):
        raise FormatError(
            f"{path}: the checkpoint of another training: its choices or its model differ; remove it, or give "
            "another name"
        )
    moving = _moving(network)
    wanted = {
        "parameters": network.parameters.flat,
        "mean": optimizer.mean,
        "square": optimizer.square,
        "ranges": np.empty((len(moving), 3), np.int64),
    }
    if (
        type(step) is not int
        or not 0 <= step <= training.steps
        or set(tensors) != set(wanted)
        or any(
            tensors[name].dtype != array.dtype or tensors[name].shape != array.shape for name, array in wanted.items()
        )
    ):
        raise FormatError(f"{path}: not a whole checkpoint of this training")
    for name, array in wanted.items():
        array[...] = tensors[name]
    for site, state in zip(moving, wanted["ranges"].view(np.float64)):
        site.state[...] = state
    optimizer.steps = step
    network.refresh()
