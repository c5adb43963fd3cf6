"""The training loop: steps, checkpoints, and what comes out. Knows no files' formats and no conversion."""

import math
import os
from collections.abc import Callable, Iterable

import numpy as np

from ..errors import CqError
from ..model import Config, Transformer
from ..model.batch import check_tokens
from ..model.sites import Graph
from ..plan import Plan
from ..strategies import QAT, Training
from .checkpoint import checked, restore, store
from .data import Shuffled, Windows
from .network import Network
from .objectives import OBJECTIVES
from .optimizer import AdamW, learning_rate
from .passes import freed_memory_kept
from .ranges import narrow

SAVE_EVERY = 100  # steps between two checkpoints

Progress = Callable[[int, int, float], None]  # (steps done, of how many, loss)


def train(
    model: Transformer | Config,
    data: Iterable | Windows,
    training: Training = Training(),
    checkpoint: str | os.PathLike | None = None,
    progress: Progress | None = None,
) -> Transformer:
    """Trains a language model or an encoder in float32, without torch.

    Beside the model it takes 16 bytes of memory for each parameter, up to 22 behind codes, a pass's scores of words,
    and some 512 MB of activations: where a pass would keep more, its blocks keep only their inputs, and the reverse
    computes one after another anew (gradient checkpointing, Chen et al. 2016, arXiv:1604.06174), to the same bits
    and in a fifth more time.

    Args:
        model: A float32 `Transformer`, whose weights are the start, or a `Config`, for random weights.
        data: Samples, each a text or a 1-D int array of token ids, of at least two tokens for the loss "next_token";
            for "pairs" tuples (text or ids, text or ids, score from -1 to 1).
        training: Steps, batch size, learning rate and loss.
        checkpoint: A .safetensors file to save to every 100 steps and at the end. If it exists, the training continues
            from it, to the same bits as without the break.
        progress: Called with (steps done, steps, loss) after each step.

    Returns:
        A new float32 `Transformer`.

    Raises:
        CqError: The data do not fit the loss, or the loss stops being finite.
        UnsupportedError: The model has no outputs for the loss.
        FormatError: The checkpoint is of another training.
    """
    if type(training) is not Training:
        raise CqError(f"training: need a cq.Training, got {type(training).__name__}; QAT goes through cq.quantize")
    if isinstance(model, Config):
        model = Transformer(model, random_weights(model, training.seed))
    if not isinstance(model, Transformer) or model.strategy is not None:
        raise CqError(f"model: need a float32 cq.Transformer or a cq.Config, got {model!r:.60}")
    if progress is not None and not callable(progress):
        raise CqError(f"progress: need a function of (done, total, loss), got {type(progress).__name__}")
    network = Network(model.config, Plan.float32(model.graph), model.weights())
    fit(model, data, training, network, checkpoint, progress)
    return Transformer(model.config, network.weights(), model.tokenizer)


@freed_memory_kept()
def fit(
    model: Transformer,
    data: Iterable | Windows,
    training: Training,
    network: Network,
    checkpoint: str | os.PathLike | None = None,
    progress: Progress | None = None,
) -> None:
    """What `train` does, and QAT: `network` learns from the data or from what `model` gives, beginning with the weights
    that it has. Learned ranges are clipped first where the loss on the first batch gains (ranges.py)."""
    optimizer = AdamW(network.parameters, training.weight_decay, training.betas)
    objective = OBJECTIVES[training.loss](model, network)
    if isinstance(data, Windows):
        check_tokens([data.stream], model.config.vocab_size, len(data.stream))
        check_tokens([data.stream[: data.length]], model.config.vocab_size, model.config.max_positions)
        source: Windows | Shuffled = data
    else:
        source = Shuffled(objective.samples(data), training.seed)
    narrow(network, objective, source.batch(0, training.batch_size))
    untrained = _untrained(network)
    if checkpoint is not None:
        checkpoint = checked(checkpoint)
        restore(checkpoint, network, optimizer, training)
    freeze = (training.freeze or (training.steps + 1) // 2) if isinstance(training, QAT) else 0
    for step in range(optimizer.steps, training.steps):
        network.observe(step < freeze)
        network.parameters.clear()
        total = 0.0
        for part in range(training.accumulate):
            total += objective(source.batch(step * training.accumulate + part, training.batch_size))
        loss = total / training.accumulate
        if not np.isfinite(loss):
            raise CqError(f"training: the loss became {loss} at step {step}; lower the learning rate")
        network.settle()
        rate = learning_rate(step, training.steps, training.learning_rate, training.warmup)
        optimizer.step(rate, training.clip_norm, training.accumulate)
        network.refresh()
        if checkpoint is not None and (optimizer.steps % SAVE_EVERY == 0 or optimizer.steps == training.steps):
            store(checkpoint, network, optimizer, training)
        if progress is not None:
            progress(step + 1, training.steps, loss)
    for name, array in untrained.items():
        network.parameters.values[name][...] = array


def _untrained(network: Network) -> dict[str, np.ndarray]:
    """Copies of the heads that no loss reaches, only decay does."""
    heads = set(network.graph.reads).difference(network.trunk) | {"transform.norm"}
    values = network.parameters.values
    return {name: array.copy() for name, array in values.items() if name.rpartition(".")[0] in heads}


def random_weights(config: Config, seed: int) -> dict[str, np.ndarray]:
    """Normal with deviation 0.04, those that end a residual branch smaller by sqrt(2 * layers) (Radford et al. 2019);
    norms begin at 1. No biases but those of layer norms, which begin at 0."""
    writers = Graph(config).residual_writers
    rng, weights = np.random.default_rng(seed), {}
    for name, shape in config.shapes().items():
        if name.endswith("norm.weight"):
            weights[name] = np.ones(shape, np.float32)
            if config.norm == "layer":
                weights[name.removesuffix("weight") + "bias"] = np.zeros(shape, np.float32)
        else:
            last = name.removesuffix(".weight") in writers
            deviation = 0.04 / math.sqrt(2 * config.num_layers) if last else 0.04
            weights[name] = deviation * rng.standard_normal(shape, np.float32)
    return weights
