"""A small language model from a text, written as a folder of a model. Knows no strategy and no terminal."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

from ..formats import load
from ..formats.files import write_whole
from ..formats.huggingface import read_settings, write_folder
from ..formats.tokenizer_files import read_tokenizer
from ..model import Transformer
from ..strategies import Training
from .data import Windows, encode_text, split_text
from .loop import random_weights, train


def train_folder(
    text: Path,
    out: Path,
    like: Path,
    training: Training,
    half: bool = False,
    checkpoint: Path | None = None,
    progress: Callable[[int, int, float], None] | None = None,
) -> tuple[Transformer, Windows, dict]:
    """Trains on the first 90 % of `text` what the folder `like` describes, and writes it as the folder `out`, in
    float16 if `half`, with the rest of the text as calibration.txt and evaluation.txt. Returns the model as the folder
    gives it, the windows of text that it was trained on, and a record of the training. progress(done, steps, loss) is
    called after each step.

    Raises what cq.train raises, FormatError where `like` or the text is no such thing, OSError."""
    config, tokenizer = read_settings(like).config, read_tokenizer(like, False)
    start, *rest = split_text(text.read_bytes(), str(text))
    windows = Windows(encode_text(start, tokenizer), config.max_positions, training.seed)
    begin = time.perf_counter()
    model = train(
        Transformer(config, random_weights(config, training.seed), tokenizer), windows, training, checkpoint, progress
    )
    seconds = time.perf_counter() - begin
    weights = model.weights()
    write_folder(out, like, weights, config.family, "float16" if half else "float32")
    for name, part in zip(("calibration", "evaluation"), rest):
        write_whole(out / f"{name}.txt", part.encode())
    record = {"parameters": sum(array.size for array in weights.values())} | dataclasses.asdict(training)
    return load(out), windows, record | {"seconds": round(seconds)}
