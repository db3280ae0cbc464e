"""What every command is given, and the options that several of them share."""

from __future__ import annotations

import argparse
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from pydantic import BaseModel

from controller.config import Settings
from controller.errors import ControlError
from controller.output import Output
from kvmwire.codec import validate
from kvmwire.codes import Exit, FailureCode, WireError
from kvmwire.names import NAME_PATTERN, is_name

M = TypeVar("M", bound=BaseModel)
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_UNITS_BYTES = {"": 1, "k": 1024, "m": 1024**2, "g": 1024**3, "t": 1024**4}


@dataclass(frozen=True, slots=True)
class Invocation:
    """One call of kvmctl."""

    arguments: argparse.Namespace
    settings: Settings
    output: Output


Run = Callable[[Invocation], Awaitable[Exit]]
Parsers = Any  # argparse's type of what add_subparsers() gives is private


def add_parser(parsers: Parsers, name: str, run: Run, summary: str) -> argparse.ArgumentParser:
    """Add a command that is done by ``run``."""
    parser: argparse.ArgumentParser = parsers.add_parser(name, help=summary, description=summary)
    parser.set_defaults(run=run)
    add_common(parser)
    return parser


def add_common(parser: argparse.ArgumentParser) -> None:
    """Add what may stand before and after the command's name."""
    group = parser.add_argument_group("for every command")
    keep = argparse.SUPPRESS  # a default here would undo what was given before the command's name
    group.add_argument("--config", metavar="FILE", default=keep, help="settings; see $KVMCTL_CONFIG")
    group.add_argument("--mqtt", metavar="URL", default=keep, help="the broker, such as mqtt://127.0.0.1:1883")
    group.add_argument("--json", action="store_true", default=keep, help="one JSON object a line")
    group.add_argument("--verbose", action="store_true", default=keep, help="log what is done; tracebacks of defects")


def add_waiting(parser: argparse.ArgumentParser, what: str) -> None:
    """Add ``--wait`` and ``--timeout``."""
    parser.add_argument("--wait", action="store_true", help=f"until {what}; Ctrl-C only detaches")
    parser.add_argument(
        "--timeout", type=duration_s, metavar="TIME", help="with --wait: at most so long, such as 90s or 2h"
    )


def add_hosts(parser: argparse.ArgumentParser, *, help_text: str) -> None:
    """Add ``--host``, which may be repeated."""
    parser.add_argument("--host", action="append", type=name, default=[], metavar="HOST", help=help_text)


def name(text: str) -> str:
    """Read a name of a template, host, pool or deployment."""
    if not is_name(text):
        raise argparse.ArgumentTypeError(f"{text[:80]!a} is no name: expected {NAME_PATTERN}")
    return text


def pair(text: str) -> tuple[str, str]:
    """Read ``key=value``."""
    key, found, value = text.partition("=")
    if not found or not is_name(key) or not value:
        raise argparse.ArgumentTypeError(f"{text[:80]!a}: expected KEY=VALUE")
    return key, value


def header(text: str) -> tuple[str, str]:
    """Read ``Name: value``; kvmwire says whether it is a good one."""
    key, found, value = text.partition(":")
    if not found:
        raise argparse.ArgumentTypeError("a header is written 'Name: value'; there is no colon")
    return key.strip(), value.strip()


def duration_s(text: str) -> float:
    """Read a time span: seconds, or a number with s, m, h or d."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smhd]?)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text[:80]!a}: expected a time span such as 90s, 30m, 2h or 1d")
    return float(match[1]) * _UNITS_S[match[2] or "s"]


def duration(text: str) -> timedelta:
    """Read a time span that can be added to a time."""
    try:
        return timedelta(seconds=duration_s(text))
    except OverflowError:
        raise argparse.ArgumentTypeError(f"{text[:80]!a}: expected a shorter time") from None


def deadline(text: str) -> datetime:
    """Read a moment as of RFC 3339, or a time span from now on."""
    try:
        return datetime.now(UTC) + duration(text)
    except (argparse.ArgumentTypeError, OverflowError):
        pass
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise argparse.ArgumentTypeError(f"{text[:80]!a}: expected 2h, or 2030-01-31T18:00:00Z with its zone")
    return moment


def byte_count(text: str) -> int:
    """Read a number of bytes: 1048576, 1024K, 1MiB."""
    match = re.fullmatch(r"([0-9]+)([kmgt]?)(?:i?b)?", text.lower())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text[:80]!a}: expected bytes such as 1048576, 10M or 2GiB")
    return int(match[1]) * _UNITS_BYTES[match[2]]


def build(model: type[M], values: Mapping[str, Any]) -> M:
    """Make an event's data. Raises ControlError with the code of what is wrong with it."""
    try:
        return validate(model, {key: value for key, value in values.items() if value is not None})
    except WireError as exc:
        raise ControlError(f"{exc.message} Nothing was published.", hint=exc.hint, code=exc.code) from exc


def no_host() -> ControlError:
    """Say that there is nobody to wait for."""
    return ControlError(
        "no host that the event is meant for has announced itself; the event is retained and they get it when they come.",
        hint="Start kvmd on the hosts; see who is there with: kvmctl hosts",
        code=FailureCode.SOURCE_UNREACHABLE,
    )
