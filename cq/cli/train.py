"""The command `cq train`."""

import json
from pathlib import Path

import click

from ..errors import CqError
from ..formats import save
from ..formats.files import write_whole
from ..model import Transformer
from ..quantize import quantize
from ..report import samples
from ..report.evaluate import Evaluation
from ..strategies import QAT, Training
from ..train.folder import train_folder
from . import terminal
from .options import check_target, listing


@click.command("train", short_help="Train a small language model on a text.")
@click.argument("text", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--like",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder whose config.json and tokenizer.json describe the model to train "
    "[default: the byte-level model that comes with cq].",
)
@click.option("--steps", type=click.IntRange(min=1), default=2600, show_default=True, help="Number of optimizer steps.")
@click.option(
    "--batch-size", type=click.IntRange(min=1), default=12, show_default=True, help="Number of windows in a step."
)
@click.option("--learning-rate", type=float, default=3e-3, show_default=True, help="Peak learning rate.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Random seed.")
@click.option("--half", is_flag=True, help="Store the weights in float16.")
@click.option(
    "--qat",
    type=click.IntRange(min=1),
    metavar="STEPS",
    help="Then train behind static int8 for STEPS steps, with the float32 model's logits as targets, and save "
    "OUT/qat.safetensors.",
)
@click.option(
    "--checkpoint",
    type=click.Path(dir_okay=False, path_type=Path),
    help=".safetensors file to save the state of the training to. If it exists, the training continues from it.",
)
@click.option("--force", is_flag=True, help="Overwrite a model in OUT.")
def train_command(
    text: Path,
    out: Path,
    like: Path | None,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    half: bool,
    qat: int | None,
    checkpoint: Path | None,
    force: bool,
) -> None:
    """Train a language model on the first 90 % of TEXT and write it as the folder OUT.

    The next 5 % of TEXT are written to OUT/calibration.txt and the last 5 % to OUT/evaluation.txt. OUT/training.json
    records the settings and the bits per token on both."""
    check_target(out / "model.safetensors" if out.exists() else out)
    if (out / "model.safetensors").exists() and not force:
        raise CqError(f"{out} holds a model: choose another name or add --force")
    training = Training(
        steps=steps, batch_size=batch_size, learning_rate=learning_rate, warmup=min(100, steps // 10), seed=seed
    )
    like = like or samples.shipped_model()
    with terminal.progress() as progress:
        model, windows, record = train_folder(
            text, out, like, training, half, checkpoint, lambda done, total, loss: progress("train", done, total)
        )
        record |= _bits(model, out)
        if qat:
            choices = QAT(steps=qat, batch_size=batch_size, learning_rate=learning_rate / 30, seed=seed)
            trained = quantize(
                model, choices, windows.consecutive(), lambda done, total: progress("quantization-aware", done, total)
            )
            save(trained, out / "qat.safetensors")
            record |= {"qat_steps": qat} | {f"qat_{name}": value for name, value in _bits(trained, out).items()}
    write_whole(out / "training.json", (json.dumps(record, indent=1) + "\n").encode())
    terminal.console().print("\n".join(f"{name}: {listing(value)}" for name, value in record.items()))


def _bits(model: Transformer, folder: Path) -> dict[str, float]:
    """Mean bits per token of the two texts beside a language model."""
    found = {}
    for name in ("calibration", "evaluation"):
        text = samples.read(folder / f"{name}.txt", model)
        found[f"{name}_bits_per_token"] = round(
            Evaluation(model, text, ("bits_per_token",))([model])[0]["bits_per_token"], 4
        )
    return found
