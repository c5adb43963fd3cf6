"""The command line: parse, call the library, show. Holds no arithmetic and decides nothing that a Python caller could
not."""

import click

from . import bench, compare, embed, export, generate, inspect, quantize, rank, terminal, train


@click.group(cls=terminal.Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="cquant", prog_name="cq", message="%(prog)s %(version)s")
def main() -> None:
    """Small and fast int8 transformers on ordinary CPUs."""


for command in (
    compare.compare_command,
    quantize.quantize_command,
    inspect.inspect_command,
    generate.generate_command,
    embed.embed_command,
    rank.rank_command,
    train.train_command,
    bench.bench_command,
    export.export_command,
    inspect.info_command,
):
    main.add_command(command)
