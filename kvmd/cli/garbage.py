"""``kvmd gc``: what goes from the pools of this host, and why the rest stays."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys

from rich.console import Console
from rich.table import Table

from kvmd import log
from kvmd.app.collecting import collect
from kvmd.cli.output import human_size
from kvmd.config import load
from kvmd.core.garbage import Verdict
from kvmd.daemon.caretaker import told
from kvmd.daemon.surveyor import Surveyed
from kvmd.errors import ConfigError
from kvmwire.codes import Exit


def run(arguments: argparse.Namespace) -> int:
    """Delete what the policy says, or tell what would go; the exit code is 1 where a pool could not be looked into."""
    settings = load(arguments.config, os.environ).settings
    log.configure(settings.log)
    unknown = sorted({*(arguments.pool or ())} - settings.pools.keys())
    if unknown:
        raise ConfigError(
            f"--pool: this host has no pool {', '.join(unknown)}.", hint=f"It has: {', '.join(settings.pools)}."
        )
    is_dry_run: bool = arguments.dry_run
    found = asyncio.run(collect(settings, pools=arguments.pool, is_dry_run=is_dry_run))
    (_print_json if arguments.json else _print_table)(found, is_dry_run)
    for pool, why in found.skipped.items():
        print(f"kvmd: pool {pool} was not looked into: {why}", file=sys.stderr)
    return Exit.FAILED if found.skipped else Exit.DONE


def _print_json(found: Surveyed, is_dry_run: bool) -> None:  # noqa: FBT001 - called by one name or the other
    for item in found.items:
        print(told(item).model_dump_json())
    count, freed = _sum(found)
    summary = {"state": "done", "dry_run": is_dry_run, "deleted": count, "freed": freed, "skipped": dict(found.skipped)}
    print(json.dumps(summary))


def _print_table(found: Surveyed, is_dry_run: bool) -> None:  # noqa: FBT001 - see above
    table = Table("pool", "kind", "size", "", "path", "why", box=None)
    word = "would go" if is_dry_run else "deleted"
    for item in found.items:
        goes = item.verdict is Verdict.DELETE
        table.add_row(item.pool, item.kind.value, human_size(item.size), word if goes else "stays", item.path, item.why)
    if found.items:
        Console(soft_wrap=True).print(table, markup=False)
    count, freed = _sum(found)
    print(f"{count} of {len(found.items)} {word}, {human_size(freed)}.")


def _sum(found: Surveyed) -> tuple[int, int]:
    sizes = [one.size for one in found.items if one.verdict is Verdict.DELETE]
    return len(sizes), sum(sizes)
