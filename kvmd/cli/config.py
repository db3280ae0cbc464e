"""``kvmd config``."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from dataclasses import asdict
from datetime import UTC, datetime

from rich.console import Console
from rich.table import Table

from kvmd.app.pools import check_pools
from kvmd.config import describe, load
from kvmd.config.checking import check
from kvmwire.codes import Exit


def run(arguments: argparse.Namespace) -> int:
    """Show every setting with its origin; with --check also what is wrong with the files they name."""
    loaded = load(arguments.config, os.environ)
    described = describe(loaded)
    if arguments.json:
        for one in described:
            print(json.dumps(one._asdict()))
    else:
        table = Table("setting", "value", "from", box=None)
        for one in described:
            table.add_row(one.key, one.value, one.origin)
        Console(soft_wrap=True).print(table, markup=False)
    if not arguments.check:
        return Exit.DONE
    findings = check(loaded.settings, now=datetime.now(UTC)) + asyncio.run(check_pools(loaded.settings))
    for finding in findings:
        if arguments.json:
            print(json.dumps(asdict(finding)))
        else:
            print(f"{finding.severity}: {finding.key}: {finding.message}. {finding.hint}", file=sys.stderr)
    return Exit.FAILED if any(finding.severity == "error" for finding in findings) else Exit.DONE
