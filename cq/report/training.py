"""A small language model from a text: trained in float32, then behind int8, and what came out of both. Knows no terminal."""
import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..formats import load, save
from ..formats.huggingface import read_settings, read_tokenizer, write_folder
from ..model import Transformer
from ..quantize import quantize
from ..strategies import QAT, Training
from ..train import Windows, encode_text, random_weights, split_text, train
from . import metrics, samples


def train_folder(text: Path, out: Path, like: Path, training: Training, half: bool = False, qat: int | None = None,
                 checkpoint: Path | None = None, progress: Callable[[str, int, int], None] | None = None) -> dict:
    """Trains on the first 90 % of `text` what the folder `like` describes, and writes it as the folder `out`, in float16 if
    `half`, with the rest of the text as calibration.txt and evaluation.txt. qat: steps of quantization-aware training after it,
    for qat.safetensors. Gives the record that training.json holds; progress is called with (what, done, total).
    Raises what cq.train raises, FormatError where `like` or the text is no such thing, OSError."""
    progress = progress or (lambda what, done, total: None)
    config, tokenizer = read_settings(like).config, read_tokenizer(like, False)
    start, *rest = split_text(text.read_bytes(), str(text))
    windows = Windows(encode_text(start, tokenizer), config.max_positions, training.seed)
    begin = time.perf_counter()
    model = train(Transformer(config, random_weights(config, training.seed), tokenizer), windows, training, checkpoint,
                  lambda done, total, loss: progress("train", done, total))
    seconds = time.perf_counter() - begin
    weights = model.weights()
    write_folder(out, like, weights, config.family, "float16" if half else "float32")
    for name, part in zip(("calibration", "evaluation"), rest):
        (out / f"{name}.txt").write_text(part, encoding="utf-8", newline="")
    model = load(out)
    record = {"parameters": sum(array.size for array in weights.values())} | dataclasses.asdict(training)
    record |= {"seconds": round(seconds)} | _bits(model, out)
    if qat:
        choices = QAT(steps=qat, batch_size=training.batch_size, learning_rate=training.learning_rate / 30, seed=training.seed)
        model = quantize(model, choices, windows.consecutive(), lambda done, total: progress("quantization-aware", done, total))
        save(model, out / "qat.safetensors")
        record |= {"qat_steps": qat} | {f"qat_{name}": value for name, value in _bits(model, out).items()}
    (out / "training.json").write_text(json.dumps(record, indent=1) + "\n")
    return record


def _bits(model: Transformer, folder: Path) -> dict[str, float]:
    """Mean bits per token of the two texts beside a language model."""
    found = {}
    for name in ("calibration", "evaluation"):
        tokens = samples.read(folder / f"{name}.txt", model).tokens
        nll = [metrics.token_nll(model.logits([ids])[0], ids) for ids in tokens]
        found[f"{name}_bits_per_token"] = round(metrics.bits_per_token(np.concatenate(nll)), 4)
    return found
