"""Where a command's words go: results to stdout as tables or JSON lines, everything else to stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from controller.errors import ControlError

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_STEP = 1024
_PIPE_WIDTH = 300
_STYLES = {
    **dict.fromkeys(("ready", "online", "good", "done", "accepted", "active"), "green"),
    **dict.fromkeys(("failed", "bad", "refused", "cancelled"), "bold red"),
    **dict.fromkeys(("waiting", "degraded", "offline", "unknown", "stale", "missing", "readonly"), "yellow"),
}


class Output:
    """Prints tables for people, or one JSON object a line for programs."""

    def __init__(self, *, is_json: bool, stdout: TextIO | None = None, stderr: TextIO | None = None) -> None:
        """Print to other streams than this process's own where they are given."""
        self._stdout = stdout or sys.stdout
        self.is_json = is_json
        width = None if self._stdout.isatty() else _PIPE_WIDTH
        self.console = Console(file=self._stdout, highlight=False, width=width)
        self.notes = Console(file=stderr or sys.stderr, highlight=False, soft_wrap=True)

    def rows(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Print one JSON object a line."""
        for row in rows:
            self._stdout.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")
        self._stdout.flush()

    def show(self, rows: Iterable[Mapping[str, Any]], as_table: Table) -> None:
        """Print the rows, or the table that shows the same."""
        if self.is_json:
            self.rows(rows)
        else:
            self.console.print(as_table)

    def say(self, text: str) -> None:
        """Tell a person something that is no result."""
        self.notes.print(text, markup=False)

    def fail(self, error: ControlError) -> None:
        """Tell why a command ends: code, what happened, what to do."""
        if self.is_json:
            self.rows([{"kind": "error", "code": error.code, "message": error.message, "hint": error.hint}])
        code = f"{error.code.value}: " if error.code else ""
        self.notes.print(Text.assemble(("error: ", "bold red"), f"{code}{error.message}"))
        self.notes.print(f"  {error.hint}", markup=False)


def table(title: str, *columns: str) -> Table:
    """Make an empty table."""
    made = Table(title=title, title_justify="left", title_style="bold", header_style="bold", box=None, pad_edge=False)
    for column in columns:
        made.add_column(column, overflow="fold")
    return made


def state(word: str) -> Text:
    """Colour a word that tells how something is."""
    return Text(word, _STYLES.get(word, ""))


def size(count: int | None) -> str:
    """Write bytes for a person."""
    if count is None:
        return "-"
    value = float(count)
    for unit in _UNITS:
        if value < _STEP or unit == _UNITS[-1]:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= _STEP
    raise AssertionError("unreachable: the last unit takes everything")


def moment(time: datetime | None) -> str:
    """Write a time for a person, in the zone of this machine."""
    return "-" if time is None else time.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def text(value: object) -> Text:
    """Show a value literally: what hosts send is no markup."""
    return Text("-" if value in {None, ""} else str(value))
