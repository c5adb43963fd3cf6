"""`python -m cq`: the command line."""

from .cli import main

main(prog_name="python -m cq")
