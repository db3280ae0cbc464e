"""``kvmd run``."""

from __future__ import annotations

import argparse
import asyncio
import os

from kvmd import log
from kvmd.app import daemon
from kvmd.config import load


def run(arguments: argparse.Namespace) -> int:
    """Run the daemon until SIGTERM."""
    settings = load(arguments.config, os.environ).settings
    log.configure(settings.log)
    try:
        return asyncio.run(daemon.run(settings, os.environ))
    finally:
        log.give_up()
