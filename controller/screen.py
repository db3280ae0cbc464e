"""Showing how hosts get on: one bar a host on a terminal, a line a change otherwise."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Sequence
from typing import Protocol

from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

from controller.outcome import Phase, Standing
from controller.output import Output, moment, size, state

_TENTHS = 10


class Screen(Protocol):
    """Is given all standings again and again, and shows what is new."""

    def update(self, standings: Sequence[Standing]) -> None:
        """Show them."""
        ...


class Bars:
    """One progress bar a host."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}

    def update(self, standings: Sequence[Standing]) -> None:
        """Move the bars."""
        for standing in standings:
            task = self._tasks.get(standing.host)
            if task is None:
                task = self._progress.add_task(standing.host, total=None, state="", note="")
                self._tasks[standing.host] = task
            total, done = _figures(standing)
            self._progress.update(
                task, total=total, completed=done, state=state(standing.state).markup, note=_note(standing)
            )


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
                self._output.say(f"{standing.host}: {line}")


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
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=output.notes) as progress:
        yield Bars(progress)


def _figures(standing: Standing) -> tuple[int | None, int]:
    """Size and bytes done; an empty bar before anything is known, a full one at the end."""
    if standing.phase is Phase.DONE:
        whole = getattr(standing.status, "size", None) or 1
        return whole, whole
    if standing.progress is None:
        return (None, 0) if standing.phase is Phase.PENDING else (1, 0)
    return standing.progress.size, standing.progress.done


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
