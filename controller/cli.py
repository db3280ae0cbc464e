"""The entry point of ``kvmctl``: it imports next to nothing, so that Ctrl-C may come while the rest is imported."""

from __future__ import annotations

import signal
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run kvmctl; the exit code is kvmwire's ``Exit``."""
    handler = signal.getsignal(signal.SIGINT)
    if handler is signal.default_int_handler:  # in mid-import it shows a traceback, or is lost
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from controller.program import run_program  # noqa: PLC0415 - a third of a second

    if handler is signal.default_int_handler:
        signal.signal(signal.SIGINT, handler)
    return run_program(argv)
