"""The command `cq embed`."""

import json
import sys
from pathlib import Path
from typing import TextIO

import click
import numpy as np

from ..formats import load
from ..formats.files import replacing
from . import terminal
from .options import check_target, input_option, texts_of

_AT_ONCE = 256  # texts between two moves of the progress bar


@click.command("embed")
@click.argument("model")
@click.argument("text", nargs=-1)
@input_option
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write one (texts, dim) float32 array as .npy [default: a JSON object per text on stdout].",
)
@click.option("--prompt", help="Put before each text.")
@click.option("--prompt-name", help="The same, by a name that the model's files give it.")
def embed_command(
    model: str,
    text: tuple[str, ...],
    input_file: TextIO | None,
    output: Path | None,
    prompt: str | None,
    prompt_name: str | None,
) -> None:
    """One vector per TEXT, in order."""
    texts = texts_of(text, input_file)
    if output and output.suffix != ".npy":
        raise click.UsageError(f"--output writes .npy, got {output}")
    check_target(output)
    encoder = load(model)
    arrays = []
    with terminal.progress(hidden=not output and sys.stdout.isatty()) as progress:
        for start in range(0, len(texts), _AT_ONCE):
            part = texts[start : start + _AT_ONCE]
            arrays.append(encoder.embed(part, prompt=prompt, prompt_name=prompt_name))
            if not output:
                for one, vector in zip(part, arrays.pop()):
                    click.echo(
                        json.dumps({"text": one, "embedding": [float(str(x)) for x in vector]}, ensure_ascii=False)
                    )
            progress("embed", start + len(part), len(texts))
    if output:
        with replacing(output) as file:
            np.save(file, np.concatenate(arrays))
