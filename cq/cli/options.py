"""Options and arguments that several commands share: models, samples and files to write."""

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import click

from ..errors import CqError
from ..formats import load
from ..formats.columns import read_lines, read_texts
from ..formats.files import write_whole
from ..model import Transformer
from ..prepare.rotate import rotate
from ..report import samples
from ..strategies import EFFORTS, QAT

CALIBRATION_SAMPLES = 500  # evenly spread over the files given: more change little and take longer

rotated_option = click.option(
    "--rotate",
    "rotated",
    is_flag=True,
    help="Rotate the hidden features of a Llama-type model before quantization, which spreads outliers.",
)
effort_option = click.option(
    "--effort",
    type=click.Choice([effort for effort in EFFORTS if effort]),
    help="best: prepare the model on the samples of --calibration first; a decoder's features are rotated, and weights "
    "rounded so that they compensate each other's errors. Takes minutes; a decoder with quantized activations then "
    "runs up to 5 % slower.",
)
learning_rate_option = click.option(
    "--learning-rate", type=float, help=f"QAT: peak learning rate [default: {QAT.learning_rate:g}]."
)

input_option = click.option(
    "--input",
    "input_file",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path),
    help="File of texts: a column of a .csv, .jsonl or .parquet file, or one text per line; - reads stdin.",
)
column_option = click.option("--column", help='Column of --input [default: "text", or the only one].')


def texts_of(text: tuple[str, ...], path: Path | None, column: str | None) -> Iterator[str]:
    """The texts of the command line, and after them those of --input, of which there must be one: that is seen before a
    model is loaded."""
    if column is not None and path is None:
        raise click.UsageError("--column is for --input")
    texts: Iterator[str] = iter(text)
    if path is not None and str(path) == "-":
        texts = chain(texts, read_lines(click.open_file("-", encoding="utf-8-sig"), "stdin"))
    elif path is not None:
        texts = chain(texts, read_texts(path, column))
    try:
        first = next(texts, None)
    except CqError as error:
        raise click.UsageError(f"--input: {error}") from None
    if first is None:
        raise click.UsageError("no texts: give TEXT, or --input with a file of texts, - for stdin")
    return chain((first,), texts)


def opened(path: str | Path, rotated: bool) -> Transformer:
    model = load(path)
    return rotate(model) if rotated else model


def calibration_of(
    paths: Sequence[str | Path], model: Transformer, most: int | None = CALIBRATION_SAMPLES
) -> samples.Samples | None:
    """At most so many, unlabeled: single sentences even where the files hold pairs."""
    if not paths:
        return None
    found = samples.read([Path(path) for path in paths], model)
    found = samples.Samples(found.tokens, sources=found.sources)
    return found if most is None else found.limit(most)


def listing(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def size_of(path: Path) -> int:
    """Bytes of a model's file, or of the weights in its folder."""
    return sum(file.stat().st_size for file in path.rglob("*.safetensors")) if path.is_dir() else path.stat().st_size


def check_target(target: str | Path | None) -> None:
    """Fails before the work is done rather than after it."""
    if target not in (None, "-") and not Path(target).parent.is_dir():
        raise FileNotFoundError(f"cannot write {target}: no such folder {Path(target).parent}")
    if target not in (None, "-") and Path(target).is_dir():
        raise IsADirectoryError(f"cannot write {target}: it is a folder")


def write(target: str | None, text: str) -> None:
    if target == "-":
        click.echo(text, nl=False)
    elif target:
        data = text.encode("utf-8", "backslashreplace")
        if Path(target).exists() and not Path(target).is_file():  # a pipe, a terminal
            Path(target).write_bytes(data)
        else:
            write_whole(target, data)
