"""For processes that tests start and interrupt."""

import signal


def heed_interrupts() -> None:
    """As preexec_fn of a process: a shell ignores Ctrl-C in what it runs in the background, and its children inherit
    that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
