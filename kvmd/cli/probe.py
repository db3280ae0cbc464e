"""``kvmd probe``: one table row a source."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kvmd.app import fetching
from kvmd.cli.output import human_size, tls_files
from kvmd.config import load
from kvmd.engine.report import overall, source_probe
from kvmwire.codes import CODES, Exit
from kvmwire.status import SourceProbe, Verdict

_NO_LIMIT = 100_000
"""Columns of what is no terminal: nothing is folded there."""


def run(arguments: argparse.Namespace) -> int:
    """Probe every URL; the exit code is that of the overall verdict."""
    settings = load(arguments.config, os.environ).settings
    findings = asyncio.run(
        fetching.probe(arguments.urls, settings, headers=dict(arguments.header), tls=tls_files(arguments))
    )
    probes = [source_probe(finding) for finding in findings]
    verdict, failure = overall(probes)
    if arguments.json:
        for probe in probes:
            print(probe.model_dump_json(exclude_none=True))
    else:
        _show(probes)
    return Exit.DONE if verdict is not Verdict.BAD or failure is None else CODES[failure.code].exit


def _show(probes: list[SourceProbe]) -> None:
    """Print one row a source, short enough for 80 columns, and below what is wrong with each, in lines of its own."""
    table = Table(box=None, pad_edge=False)
    table.add_column("source", overflow="fold")
    for name in ("status", "size", "ranges", "format", "virtual", "seconds"):
        table.add_column(name, no_wrap=True)
    for probe in probes:
        table.add_row(
            Text(probe.url + (f"\n-> {probe.redirect}" if probe.redirect else "")),
            " ".join(str(part) for part in (probe.status, probe.tls) if part is not None) or "-",
            human_size(probe.size),
            {True: "yes", False: "no", None: "-"}[probe.ranges],
            probe.format or "-",
            human_size(probe.virtual_size),
            f"{probe.seconds:.2f}",
        )
    has_width = sys.stdout.isatty() or "COLUMNS" in os.environ
    console = Console(width=None if has_width else _NO_LIMIT)
    with console.capture() as captured:
        console.print(table)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))
    for probe in probes:
        if probe.code is not None:
            print(f"{probe.code}: {probe.message} {probe.hint}")
