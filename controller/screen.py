"""Showing how hosts get on: one bar a host on a terminal, a line a change otherwise."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable, Sequence
from typing import Protocol

from rich.console import RenderableType
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn
from rich.text import Text

from controller.outcome import Phase, Standing
from controller.output import Output
from controller.sheet import moment, plain, size, state

_TENTHS = 10
_OTHER_LINES = 4
_FEWEST_BARS = 5
_LARGEST = 2**63  # bytes: a bar is drawn with floats, and a host may say what it likes


class Screen(Protocol):
    """Is given all standings again and again, and shows what is new."""

    def update(self, standings: Sequence[Standing]) -> None:
        """Show them."""
        ...


class _Bars(Progress):
    """rich's bars, and a line about those that there is no room for."""

    hidden = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        """Give what is drawn."""
        yield self.make_tasks_table(self.tasks)
        if self.hidden:
            yield Text(self.hidden)


class Bars:
    """One progress bar a host; of more hosts than the terminal has lines, those that are not settled come first."""

    def __init__(self, progress: _Bars) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}
        self._told: dict[str, str] = {}

    def update(self, standings: Sequence[Standing]) -> None:
        """Move the bars; what a host has to say stands above them."""
        room = max(self._progress.console.height - _OTHER_LINES, _FEWEST_BARS)
        ordered = sorted(standings, key=lambda one: one.is_settled) if len(standings) > room else standings
        for position, standing in enumerate(ordered):
            self._move(standing, is_visible=position < room)
        settled, left_out = sum(one.is_settled for one in standings), len(standings) - room
        self._progress.hidden = (
            f"and {left_out} more; {settled} of {len(standings)} are settled" if left_out > 0 else ""
        )

    def _move(self, standing: Standing, *, is_visible: bool) -> None:
        task = self._tasks.get(standing.host)
        if task is None and not is_visible:
            return  # rich draws all anew for each task that is added
        if task is None:
            task = self._progress.add_task(standing.host, total=None, state="", code="")
            self._tasks[standing.host] = task
        total, done = _figures(standing)
        self._progress.update(
            task,
            total=total,
            completed=done,
            state=state(standing.state).markup,
            code=standing.code.value if standing.code else "",
            visible=is_visible,
        )
        note = _note(standing)
        if note and is_visible and self._told.get(standing.host) != note:
            self._told[standing.host] = note
            self._progress.console.print(Text(plain(f"{standing.host}: {note}")))


class Lines:
    """One line a change of state, and one a tenth of a download."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._shown: dict[str, str] = {}

    def update(self, standings: Sequence[Standing]) -> None:
        """Print what changed."""
        for standing in standings:
            line = ": ".join(part for part in (_with_tenth(standing), _note(standing)) if part)
            if self._shown.get(standing.host) != line:
                self._shown[standing.host] = line
                self._output.say(plain(f"{standing.host}: {line}"))


@contextlib.contextmanager
def open_screen(output: Output) -> Generator[Screen, None, None]:
    """Give bars on a terminal, else lines."""
    if not output.notes.is_terminal or output.is_json:
        yield Lines(output)
        return
    columns = (
        TextColumn("{task.description}"),
        TextColumn("{task.fields[state]}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TextColumn("{task.fields[code]}", markup=False),
    )
    with _Bars(*columns, console=output.notes) as progress:
        yield Bars(progress)


def _figures(standing: Standing) -> tuple[int | None, int]:
    """Size and bytes done; an empty bar before anything is known, a full one at the end."""
    if standing.phase is Phase.DONE:
        whole = getattr(standing.status, "size", None) or 1
        return min(whole, _LARGEST), min(whole, _LARGEST)
    if standing.progress is None:
        return (None, 0) if standing.phase is Phase.PENDING else (1, 0)
    whole = standing.progress.size
    return None if whole is None else min(whole, _LARGEST), min(standing.progress.done, _LARGEST)


def _with_tenth(standing: Standing) -> str:
    figures = standing.progress
    if standing.is_settled or figures is None or not figures.size:
        return standing.state
    tenth = figures.done * _TENTHS // figures.size
    return f"{standing.state} {tenth * _TENTHS}% of {size(figures.size)}"


def _note(standing: Standing) -> str:
    code = f"{standing.code.value}: " if standing.code else ""
    again = f" (next attempt {moment(standing.next_attempt)})" if standing.next_attempt else ""
    return f"{code}{standing.message}{again}" if standing.phase is not Phase.DONE else ""
