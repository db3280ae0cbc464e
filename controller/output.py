"""Where a command's words go: results to stdout as tables or JSON lines, everything else to stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from typing import Any, TextIO

from rich.console import Console, RenderableType
from rich.text import Text

from controller.errors import ControlError
from controller.sheet import plain

_NO_LIMIT = 100_000


class Output:
    """Prints tables for people, or one JSON object a line for programs."""

    def __init__(self, *, is_json: bool, stdout: TextIO | None = None, stderr: TextIO | None = None) -> None:
        """Print to other streams than this process's own where they are given."""
        self._stdout = stdout or sys.stdout
        self.is_json = is_json
        self.is_terminal = self._stdout.isatty()
        self.console = Console(file=self._stdout, highlight=False, width=None if self.is_terminal else _NO_LIMIT)
        self.notes = Console(file=stderr or sys.stderr, highlight=False, soft_wrap=True)

    def rows(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Print one JSON object a line, in ASCII: no terminal, locale or line splitter can misread it."""
        for row in rows:
            self._stdout.write(json.dumps(row, default=str) + "\n")
        self._stdout.flush()

    def show(self, rows: Iterable[Mapping[str, Any]], for_people: RenderableType) -> None:
        """Print the rows, or what shows the same to people: as wide as the terminal, or in a file as long as its words."""
        if self.is_json:
            self.rows(rows)
        elif self.is_terminal:
            self.console.print(for_people)
        else:
            with self.console.capture() as captured:
                self.console.print(for_people)
            self._stdout.write("".join(line.rstrip() + "\n" for line in captured.get().splitlines()))
            self._stdout.flush()

    def line(self, words: str) -> None:
        """Print one line at once, for people who read a file as it grows."""
        self._stdout.write(plain(words) + "\n")
        self._stdout.flush()

    def say(self, words: str) -> None:
        """Tell a person something that is no result."""
        self.notes.print(Text("\n".join(map(plain, words.split("\n")))))

    def fail(self, error: ControlError) -> None:
        """Tell why a command ends: code, what happened, what to do."""
        if self.is_json:
            self.rows([{"kind": "error", "code": error.code, "message": error.message, "hint": error.hint}])
        code = f"{error.code.value}: " if error.code else ""
        message = "\n".join(map(plain, error.message.split("\n")))
        self.notes.print(Text.assemble(("error: ", "bold red"), f"{code}{message}"))
        self.notes.print(Text(f"  {plain(error.hint)}"))
