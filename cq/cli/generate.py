"""The command `cq generate`: parse, call the library, show what comes as it comes. Decides nothing that a Python caller
could not."""

import sys
from typing import Any

import click

from ..formats import load
from ..quantize import quantize
from ..strategies import STRATEGIES


@click.command("generate", short_help="Continue a text, or answer it.")
@click.argument("model")
@click.argument("prompt")
@click.option(
    "--max-new-tokens",
    type=click.IntRange(min=1),
    help="Number of tokens to generate at most [default: the checkpoint's setting, or 128].",
)
@click.option(
    "--temperature",
    type=float,
    help="Temperature for sampling; 0 always takes the best token. Here and below, the default is the checkpoint's "
    "setting, or off.",
)
@click.option("--top-k", type=click.IntRange(min=0), help="Sample from the K best tokens; 0 samples from all.")
@click.option(
    "--top-p", type=float, help="Sample from the smallest set of best tokens whose probabilities sum to this."
)
@click.option(
    "--min-p", type=float, help="Sample from tokens whose probability is at least this share of the best token's."
)
@click.option("--repetition-penalty", type=float, help="Divide the scores of tokens that already occurred by this.")
@click.option(
    "--no-repeat-ngram-size",
    type=click.IntRange(min=0),
    help="Never repeat a sequence of this many tokens; 0 allows it.",
)
@click.option("--min-new-tokens", type=click.IntRange(min=0), help="Number of tokens to generate at least.")
@click.option("--seed", type=click.IntRange(min=0), help="Random seed for sampling [default: random].")
@click.option("--stop", multiple=True, metavar="TEXT", help="Stop before this text. May be repeated.")
@click.option(
    "--strategy",
    type=click.Choice([name for name in STRATEGIES if name != "static"]),
    help="Quantize MODEL in memory first.",
)
@click.option(
    "--cache",
    type=click.Choice(["float32", "int8"]),
    help="Type of the cached keys and values [default: the type in which the model's attention computes].",
)
@click.option("--raw", is_flag=True, help="Continue PROMPT itself, without the model's chat template.")
def generate_command(model: str, prompt: str, strategy: str | None, raw: bool, **options: Any) -> None:
    """Print what MODEL generates after PROMPT, token by token. - reads the prompt from stdin.

    MODEL is a language model: a Hugging Face folder, a name on the Hub, a .gguf or .safetensors file, or a checkpoint.
    If it has a chat template, PROMPT is a question to it."""
    try:
        prompt = sys.stdin.read() if prompt == "-" else prompt
    except UnicodeDecodeError as error:
        raise click.UsageError(f"stdin is not UTF-8 text: {error.reason}") from None
    speaker = load(model)
    if strategy:
        speaker = quantize(speaker, STRATEGIES[strategy]())
    answers = speaker.config.chat_template is not None and not raw
    for piece in speaker.stream([{"role": "user", "content": prompt}] if answers else prompt, **options):
        sys.stdout.write(piece)
        sys.stdout.flush()
    click.echo()
