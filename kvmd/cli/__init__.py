"""The command ``kvmd``."""

from __future__ import annotations

import gc
import signal
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and give its exit code; every error is told in a line, never as a traceback."""
    if (sys.argv[1:] if arguments is None else [*arguments]) == ["inspector"]:
        return _inspector()
    handler = signal.getsignal(signal.SIGINT)
    if handler is signal.default_int_handler:  # in mid-import it shows a traceback, or is lost
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    gc.disable()  # what is imported stays: looking for garbage meanwhile doubles the time to start
    parsed, run = _load(arguments)
    gc.freeze()
    gc.enable()
    if handler is signal.default_int_handler:
        signal.signal(signal.SIGINT, handler)
    return _guarded(run, parsed)


def _inspector() -> int:
    """Serve without parsing: it starts for every image, and what it imports it can be attacked through."""
    from argparse import Namespace  # noqa: PLC0415 - see main

    from kvmd.cli.inspector import run  # noqa: PLC0415 - see main

    return run(Namespace())


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of all commands; the reference is generated from it."""
    from kvmd.cli.parser import build_parser as build  # noqa: PLC0415 - see main: imported only when needed

    return build()


def _load(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, Callable[[argparse.Namespace], int]]:
    """Parse the arguments and import the module of the chosen command alone."""
    parsed = build_parser().parse_args(arguments)
    return parsed, import_module(f"kvmd.cli.{parsed.module}").run


def _guarded(run: Callable[[argparse.Namespace], int], parsed: argparse.Namespace) -> int:
    from kvmd.errors import ConfigError, KvmdError  # noqa: PLC0415 - see main
    from kvmwire.codes import CODES, Exit, WireError  # noqa: PLC0415 - see main

    try:
        return run(parsed)
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    except BrokenPipeError:
        return Exit.FAILED
    except ConfigError as exc:
        return _say(exc.message, exc.hint, code="", exit_code=Exit.USAGE)
    except (KvmdError, WireError) as exc:
        return _say(exc.message, exc.hint, code=exc.code.value, exit_code=CODES[exc.code].exit)


def _say(message: str, hint: str, *, code: str, exit_code: int) -> int:
    print(f"kvmd: {code + ': ' if code else ''}{message}", file=sys.stderr)
    print(f"      {hint}", file=sys.stderr)
    return exit_code
