"""The command `cq embed`."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain, islice
from pathlib import Path

import click
import numpy as np

from ..errors import CqError
from ..formats import load
from ..formats.columns import read_lines, read_texts
from ..formats.vectors import KINDS, written
from ..model import Transformer
from ..report.samples import Progress
from . import terminal
from .options import check_target
from .spread import spread

_AT_ONCE = 256  # texts of one part: between two moves of the progress bar, and of one task on a cluster


@click.command("embed")
@click.argument("model")
@click.argument("text", nargs=-1)
@click.option(
    "--input",
    "input_file",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path),
    help="Texts to embed: a column of a .csv, .jsonl or .parquet, or one text per line; - is stdin.",
)
@click.option("--column", help='The column of --input [default: "text", or the only one].')
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write one (texts, dim) float32 array as .npy, or texts and vectors as .parquet [default: a JSON object per "
    "text on stdout].",
)
@click.option("--prompt", help="Put before each text.")
@click.option("--prompt-name", help="The same, by a name that the model's files give it.")
@click.option("--dask", "address", metavar="ADDRESS", help="Work on the Dask cluster whose scheduler is there.")
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
    """One vector per TEXT, in order, and per text of --input, which may be longer than memory.

    MODEL is a Hugging Face folder, owner/name on its hub, a file or a cq checkpoint."""
    if column is not None and input_file is None:
        raise click.UsageError("--column is of --input")
    if output and output.suffix not in KINDS:
        raise click.UsageError(f"--output writes .npy or .parquet, got {output}")
    check_target(output)
    texts = _some(chain(text, _texts(input_file, column)))
    encoder = load(model)
    work: Callable[[Transformer, list[str]], np.ndarray] = partial(_embedded, prompt=prompt, prompt_name=prompt_name)
    parts = _in_parts(texts)
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


def _texts(path: Path | None, column: str | None) -> Iterator[str]:
    if path is None:
        return iter(())
    if str(path) == "-":
        return read_lines(click.open_file("-", encoding="utf-8"), "stdin")
    return read_texts(path, column)


def _some(texts: Iterator[str]) -> Iterator[str]:
    """The texts, of which there must be one: that is seen before a model is loaded."""
    try:
        first = next(texts, None)
    except CqError as error:
        raise click.UsageError(f"--input: {error}") from None
    if first is None:
        raise click.UsageError("no texts: give TEXT, or --input with a file of texts, - for stdin")
    return chain((first,), texts)


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
