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
@click.option("--max-new-tokens", type=click.IntRange(min=1), help="[default: the checkpoint's, else 128]")
@click.option(
    "--temperature",
    type=float,
    help="0: the best token each time; else one is drawn. [default, here and below: the checkpoint's, else off]",
)
@click.option("--top-k", type=click.IntRange(min=0), help="Draw among the K best tokens; 0: among all.")
@click.option("--top-p", type=float, help="Draw among the fewest best tokens that make up this probability.")
@click.option("--min-p", type=float, help="Draw among tokens of at least this share of the best one's probability.")
@click.option("--repetition-penalty", type=float, help="Scores of tokens that were there are divided by it.")
@click.option("--no-repeat-ngram-size", type=click.IntRange(min=0), help="No run of so many tokens comes twice.")
@click.option("--min-new-tokens", type=click.IntRange(min=0), help="No end before so many tokens.")
@click.option("--seed", type=click.IntRange(min=0), help="Random seed for sampling [default: random].")
@click.option("--stop", multiple=True, metavar="TEXT", help="End before this text; may be repeated.")
@click.option(
    "--strategy",
    type=click.Choice([name for name in STRATEGIES if name != "static"]),
    help="Quantize a float32 MODEL first, in memory.",
)
@click.option(
    "--cache",
    type=click.Choice(["float32", "int8"]),
    help="Type of the kept keys and values [default: what the model's attention computes in].",
)
@click.option(
    "--raw",
    is_flag=True,
    help="Continue the text itself where MODEL has a chat template, which else makes a question of it.",
)
def generate_command(model: str, prompt: str, strategy: str | None, raw: bool, **options: Any) -> None:
    """What MODEL says after PROMPT (-: stdin), as it comes.

    MODEL is a Hugging Face folder, owner/name on its hub, .gguf, .safetensors or a cq checkpoint of a language
    model."""
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
