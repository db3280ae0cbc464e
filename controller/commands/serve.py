"""``kvmctl serve``."""

from __future__ import annotations

import os

from controller import log
from controller.commands.invocation import Invocation, Parsers, add_parser
from controller.notify import Notifier
from controller.serve import serve as run
from kvmwire.codes import Exit


def add(parsers: Parsers) -> None:
    """Add the parser."""
    add_parser(parsers, "serve", serve, "the long-running controller: resends until receipt, restores a wiped broker")


async def serve(invocation: Invocation) -> Exit:
    """Run until SIGTERM; logs go to stderr, as JSON with --json."""
    level = "debug" if getattr(invocation.arguments, "verbose", False) else "info"
    log.configure(level=level, is_json=invocation.output.is_json)
    await run(invocation.settings, Notifier.from_environ(os.environ))
    return Exit.DONE
