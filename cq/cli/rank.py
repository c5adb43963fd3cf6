"""The command `cq rank`."""

import json
from pathlib import Path

import click

from ..formats import load
from .options import column_option, input_option, texts_of


@click.command("rank", short_help="Rank texts by how well they answer a query.")
@click.argument("model")
@click.argument("query")
@click.argument("text", nargs=-1)
@input_option
@column_option
def rank_command(model: str, query: str, text: tuple[str, ...], input_file: Path | None, column: str | None) -> None:
    """Print a JSON object per TEXT, the best answer to QUERY first.

    MODEL is a cross-encoder: a sequence classifier with one label."""
    texts = list(texts_of(text, input_file, column))
    for row in load(model).rank(query, texts):
        click.echo(json.dumps(row | {"text": texts[row["corpus_id"]]}, ensure_ascii=False))
