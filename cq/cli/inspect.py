"""The commands `cq inspect` and `cq info`: what a model and a machine are made of."""

import json

import click

from ..formats import load
from ..report.trials import in_words
from ..strategies import Mixed
from ..system import info
from . import terminal
from .options import listing


@click.command("inspect", short_help="Show where each layer of a model runs.")
@click.argument("model")
@click.option(
    "--tokens",
    type=click.IntRange(min=1),
    help="Sequence length for which multiply-adds are counted [default: 128, or all positions if there are fewer].",
)
def inspect_command(model: str, tokens: int | None) -> None:
    """Show the configuration of MODEL, where each layer runs, and the int32 overflow headroom of its sums in bits."""
    opened = load(model)
    coverage, console, strategy = opened.coverage(tokens), terminal.console(), opened.strategy
    console.print("\n".join(f"{key}: {value}" for key, value in opened.config.to_dict().items()))
    console.print(f"strategy: {strategy.name if strategy else 'none (float32)'}")
    if isinstance(strategy, Mixed):
        console.print(f"  {in_words(strategy)}")
    elif strategy:
        choices = strategy.to_dict()
        choices |= choices.pop("scheme")
        console.print("\n".join(f"  {key}: {listing(value)}" for key, value in choices.items() if key != "name"))
    console.print(terminal.placements(coverage, opened.headroom()))
    console.print(coverage.summary)
    console.print(f"weights in memory: {opened.nbytes / 1e6:.2f} MB")


@click.command("info")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def info_command(as_json: bool) -> None:
    """Show the CPU, the instruction set in use and why, threads and versions."""
    facts = info()
    lines = "\n".join(f"{key}: {listing(value)}" for key, value in facts.items())
    click.echo(json.dumps(facts, indent=1) if as_json else lines)
