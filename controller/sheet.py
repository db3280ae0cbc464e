"""How things are written for people: tables that stay readable in 80 columns, sizes, times, and what hosts say, made harmless."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_STEP = 1024
_NAMED = 8
_DIGEST_LENGTH = 12
_STYLES = {
    **dict.fromkeys(("ready", "online", "good", "done", "accepted", "active", "running"), "green"),
    **dict.fromkeys(("failed", "bad", "refused", "cancelled"), "bold red"),
    **dict.fromkeys(("waiting", "degraded", "offline", "unknown", "stale", "missing", "readonly"), "yellow"),
}


class Sheet:
    """A table of short cells, and below it what is too long for a cell: messages, each with the names it is about."""

    def __init__(self, title: str, *columns: str, wide: Sequence[str] = ()) -> None:
        """Begin with no rows; the ``wide`` columns, which are the last, wrap where the terminal is narrow."""
        self.table = Table(title=title, title_justify="left", title_style="bold", header_style="bold", box=None)
        self.table.pad_edge = False
        for column in columns:
            self.table.add_column(column, no_wrap=True, overflow="ellipsis")
        for column in wide:
            self.table.add_column(column, overflow="fold")
        self._notes = dict[str, dict[str, None]]()

    def add_row(self, *cells: object) -> None:
        """Add a row; what is not a Text already is shown literally."""
        self.table.add_row(*(cell if isinstance(cell, Text) else text(cell) for cell in cells))

    def note(self, about: str, message: str) -> None:
        """Add a message; the same one about several is shown once. An empty one is none."""
        if message:
            self._notes.setdefault(plain(message), {})[about] = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw the table, an empty line, and the messages."""
        yield self.table
        if self._notes:
            yield ""
        for message, about in self._notes.items():
            yield Text(f"{some(about)}: {message}")


def plain(words: str) -> str:
    """Escape what could steer a terminal or hide among letters: control and format characters, line ends included."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in words)


def text(value: object) -> Text:
    """Show a value literally: what hosts send is no markup."""
    return Text("-" if value is None or value == "" else plain(str(value)))


def state(word: str) -> Text:
    """Colour a word that tells how something is."""
    return Text(plain(word), _STYLES.get(word, ""))


def some(names: Iterable[str]) -> str:
    """Name the first few, and count the others."""
    found = list(names)
    hidden = len(found) - _NAMED
    return ", ".join(found[:_NAMED]) + (f" and {hidden} more" if hidden > 0 else "")


def pairs(labels: Mapping[str, str]) -> str:
    """Write labels, in the order of their names."""
    return ", ".join(f"{key}={value}" for key, value in sorted(labels.items()))


def short(checksum: str | None) -> str:
    """Shorten a checksum for the eye; programs and careful people read it whole with --json."""
    if checksum is None:
        return "-"
    algorithm, _, digest = checksum.rpartition("}")
    return f"{algorithm}}}{digest[:_DIGEST_LENGTH]}…" if algorithm and len(digest) > _DIGEST_LENGTH else checksum


def size(count: int | None) -> str:
    """Write bytes for a person."""
    if count is None:
        return "-"
    if count < _STEP:
        return f"{count} B"
    power = min((count.bit_length() - 1) // 10, len(_UNITS) - 1)
    tenths = count * 10 // _STEP**power  # whole numbers: what a host says may be larger than any float
    return f"{tenths // 10}.{tenths % 10} {_UNITS[power]}"


def day(time: datetime | None) -> str:
    """Write the day of a time for a person, in the zone of this machine."""
    return moment(time).partition(" ")[0]


def moment(time: datetime | None) -> str:
    """Write a time for a person, in the zone of this machine."""
    if time is None:
        return "-"
    with contextlib.suppress(OverflowError, ValueError):  # at the ends of the calendar no other zone has this moment
        time = time.astimezone()
    return time.replace(tzinfo=None).isoformat(sep=" ", timespec="seconds")
