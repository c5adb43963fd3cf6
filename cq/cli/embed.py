"""The command `cq embed`."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path

import click
import numpy as np

from ..formats import load
from ..formats.vectors import KINDS, written
from ..model import Transformer
from ..report.samples import Progress
from . import terminal
from .options import check_target, column_option, input_option, texts_of
from .spread import spread

_AT_ONCE = 256  # texts of one part: between two moves of the progress bar, and of one task on a cluster


@click.command("embed", short_help="Compute embeddings of texts.")
@click.argument("model")
@click.argument("text", nargs=-1)
@input_option
@column_option
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write a (texts, dim) float32 array as .npy, or texts and vectors as .parquet [default: a JSON object per "
    "text on stdout].",
)
@click.option("--prompt", help="Text to put before each text.")
@click.option("--prompt-name", help="Name of the prompt in the model's files to put before each text.")
@click.option("--dask", "address", metavar="ADDRESS", help="Address of the scheduler of a Dask cluster to work on.")
def embed_command(
    model: str,
    text: tuple[str, ...],
    input_file: Path | None,
    column: str | None,
    output: Path | None,
    prompt: str | None,
    prompt_name: str | None,
    address: str | None,
) -> None:
    """Compute the embedding of each TEXT, then of each text of --input, which is read in parts and may be larger than
    memory.

    MODEL is a Hugging Face folder, a name such as owner/name on the Hub, a .safetensors, .npz or .gguf file, or a
    checkpoint."""
    if output and output.suffix not in KINDS:
        raise click.UsageError(f"--output writes .npy or .parquet, got {output}")
    check_target(output)
    parts = _in_parts(texts_of(text, input_file, column))
    encoder = load(model)
    work: Callable[[Transformer, list[str]], np.ndarray] = partial(_embedded, prompt=prompt, prompt_name=prompt_name)
    found: Iterable[tuple[list[str], np.ndarray]] = ((part, work(encoder, part)) for part in parts)
    if address:
        found = spread(address, encoder, parts, work)
    with terminal.progress(hidden=not output and sys.stdout.isatty()) as progress:
        shown = _counted(found, progress)
        if output:
            with written(output, encoder.config.embedding_size) as writer:
                for part, rows in shown:
                    writer.write(part, rows)
            return
        for part, rows in shown:
            for one, vector in zip(part, rows):
                row = {"text": one, "embedding": [float(str(x)) for x in vector]}
                click.echo(json.dumps(row, ensure_ascii=False))


def _in_parts(texts: Iterator[str]) -> Iterator[list[str]]:
    while part := list(islice(texts, _AT_ONCE)):
        yield part


def _embedded(model: Transformer, texts: list[str], prompt: str | None, prompt_name: str | None) -> np.ndarray:
    return model.embed(texts, prompt=prompt, prompt_name=prompt_name)


def _counted(
    found: Iterable[tuple[list[str], np.ndarray]], progress: Progress
) -> Iterator[tuple[list[str], np.ndarray]]:
    done = 0
    for part, rows in found:
        done += len(part)
        progress("embed", done, None)
        yield part, rows
