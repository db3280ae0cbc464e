"""kvmctl's command line: reads it, runs the command, and gives every end its exit code."""

from __future__ import annotations

import argparse
import asyncio
import io
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from controller import log
from controller.commands import (
    broker_config,
    command,
    credential,
    deploy,
    enroll,
    events,
    gc,
    keys,
    lab,
    machine,
    register,
    serve,
    show,
    sign,
    watch,
)
from controller.commands.invocation import Invocation, add_common
from controller.config import load
from controller.errors import ControlError
from controller.output import Output
from kvmwire import __version__
from kvmwire.codes import Exit, FailureCode

_MODULES = (
    register,
    deploy,
    machine,
    command,
    gc,
    credential,
    show,
    watch,
    events,
    serve,
    lab,
    keys,
    enroll,
    sign,
    broker_config,
)


def build_parser() -> argparse.ArgumentParser:
    """Make the parser of all commands; the reference is generated from it."""
    parser = argparse.ArgumentParser(
        prog="kvmctl",
        description="Put virtual-machine images into the storage of KVM hosts, and see how they get on.",
        epilog="Exit: 0 done, 1 failed, 2 usage, 3 verification failed, 4 not reachable, 5 refused by policy, 130 interrupted.",
    )
    parser.add_argument("--version", action="version", version=f"kvmctl {__version__}")
    add_common(parser)
    parsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in _MODULES:
        module.add(parsers)
    return parser


def run_program(argv: Sequence[str] | None = None) -> int:
    """Run kvmctl from its arguments to its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a locale without some letter is no reason to fail
    try:
        try:
            return _run(argv)
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # `kvmctl ... | head`: Python flushes at its end
        return Exit.DONE


def _run(argv: Sequence[str] | None) -> int:
    """Parse, run, and give every end but that of a reader who left its exit code."""
    arguments = build_parser().parse_args(argv)
    is_verbose = getattr(arguments, "verbose", False)
    output = Output(is_json=getattr(arguments, "json", False))
    log.configure(level="debug" if is_verbose else "warning", is_json=False)
    try:
        return asyncio.run(run(arguments, output, environ=os.environ))
    except BrokenPipeError:
        raise
    except Exception as exc:
        if is_verbose:
            raise
        output.fail(
            ControlError(
                f"{type(exc).__name__}: {exc}.",
                hint="This is a defect of kvmctl. Run it again with --verbose and report what it says.",
                code=FailureCode.INTERNAL,
            )
        )
        return Exit.FAILED


async def run(arguments: argparse.Namespace, output: Output, *, environ: Mapping[str, str]) -> int:
    """Run one parsed command in this event loop, and give its exit code."""
    config: str | None = getattr(arguments, "config", None)
    url: str | None = getattr(arguments, "mqtt", None)
    try:
        settings = await asyncio.to_thread(load, Path(config) if config else None, environ, url=url)
        code: Exit = await arguments.run(Invocation(arguments, settings, output))
    except ControlError as exc:
        output.fail(exc)
        return exc.exit
    return code
