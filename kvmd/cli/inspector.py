"""``kvmd inspector``."""

from __future__ import annotations

import argparse

from kvmd.sandbox.server import serve
from kvmwire.codes import Exit


def run(arguments: argparse.Namespace) -> int:
    """Serve the one request that comes over standard input, which is a socket."""
    del arguments
    serve(0)
    return Exit.DONE
