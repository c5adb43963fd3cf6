"""The command `cq rank`."""

import json
from typing import TextIO

import click

from ..formats import load


@click.command("rank", short_help="Order texts by how well they answer a query.")
@click.argument("model")
@click.argument("query")
@click.argument("text", nargs=-1)
@click.option("--input", "input_file", type=click.File("r", encoding="utf-8"), help="One text per line; - is stdin.")
def rank_command(model: str, query: str, text: tuple[str, ...], input_file: TextIO | None) -> None:
    """A JSON object per TEXT, the best answer to QUERY first. MODEL is a cross-encoder: a sequence classifier with one
    label."""
    try:
        texts = list(text) + [line.rstrip("\n") for line in input_file or ()]
    except UnicodeDecodeError as error:
        raise click.UsageError(f"--input is not UTF-8 text: {error.reason}") from None
    if not texts:
        raise click.UsageError("no texts: give TEXT, or --input with a file of lines, - for stdin")
    for row in load(model).rank(query, texts):
        click.echo(json.dumps(row | {"text": texts[row["corpus_id"]]}, ensure_ascii=False))
