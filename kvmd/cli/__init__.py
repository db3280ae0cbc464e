"""The command ``kvmd``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from kvmd.cli.parser import build_parser
from kvmd.errors import ConfigError, KvmdError
from kvmwire.codes import CODES, Exit, WireError

__all__ = ["build_parser", "main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and give its exit code; every error is told in a line, never as a traceback."""
    parsed = build_parser().parse_args(arguments)
    try:
        return int(parsed.run(parsed))
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    except BrokenPipeError:
        return Exit.FAILED
    except ConfigError as exc:
        return _say(exc.message, exc.hint, code="", exit_code=Exit.USAGE)
    except (KvmdError, WireError) as exc:
        return _say(exc.message, exc.hint, code=exc.code.value, exit_code=CODES[exc.code].exit)


def _say(message: str, hint: str, *, code: str, exit_code: Exit) -> int:
    print(f"kvmd: {code + ': ' if code else ''}{message}", file=sys.stderr)
    print(f"      {hint}", file=sys.stderr)
    return exit_code
