"""Shows a download on standard error: bars on a terminal, else a plain line now and then."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from kvmd.cli.output import human_size
from kvmd.core.session import State
from kvmd.engine.report import replica_state
from kvmwire.status import Progress as ProgressStatus
from kvmwire.status import SourceProgress

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_PLAIN_LINE_S = 5.0
_MOST_SOURCES = 16
"""So many sources have a line of their own."""


class Report:
    """Listens to one session; ``last`` is the newest progress."""

    def __init__(self, *, is_quiet: bool) -> None:
        self.last: ProgressStatus | None = None
        self._is_quiet = is_quiet
        self._told = time.monotonic()
        self._said = ""
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> None:
        if not self._is_quiet and sys.stderr.isatty():
            self._bars = _bars()
            self._tasks[""] = self._bars.add_task("starting", total=None, rate="")
            self._bars.start()

    def __exit__(self, *_: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    async def on_state(self, state: State) -> None:
        """Say the state, each once."""
        text = replica_state(state).value
        if self._bars is not None:
            self._bars.update(self._tasks[""], description=text)
        elif not self._is_quiet and text != self._said:
            print(text, file=sys.stderr)
        self._said = text

    def on_progress(self, progress: ProgressStatus) -> None:
        """Move the bars, or say the figures when some time went by."""
        self.last = progress
        if self._bars is not None:
            self._move(self._bars, progress)
        elif not self._is_quiet and time.monotonic() - self._told >= _PLAIN_LINE_S:
            self._told = time.monotonic()
            print("\n".join(_lines(progress)), file=sys.stderr)

    def _move(self, bars: Progress, progress: ProgressStatus) -> None:
        rate = f"{human_size(progress.bytes_per_second)}/s"
        bars.update(self._tasks[""], completed=progress.done, total=progress.size, rate=rate)
        for source in _shown(progress):
            if source.url not in self._tasks:
                self._tasks[source.url] = bars.add_task(f"  {source.url}", total=progress.size, rate="")
            bars.update(self._tasks[source.url], completed=source.bytes, total=progress.size, rate=_standing(source))


def _bars() -> Progress:
    # Loaded only where somebody looks: it costs 25 ms and 2 MiB.
    from rich.console import Console  # noqa: PLC0415 - see above
    from rich.progress import (  # noqa: PLC0415 - see above
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True))
    rate = TextColumn("{task.fields[rate]}")
    return Progress(*columns, rate, TimeRemainingColumn(), console=Console(stderr=True))


def _lines(progress: ProgressStatus) -> list[str]:
    share = f" ({100 * progress.done / progress.size:.0f} %)" if progress.size else ""
    rate = human_size(progress.bytes_per_second)
    total = f"{human_size(progress.done)} of {human_size(progress.size)}{share}, {rate}/s"
    return [total, *(f"  {one.url}: {human_size(one.bytes)}, {_standing(one)}" for one in _shown(progress))]


def _shown(progress: ProgressStatus) -> tuple[SourceProgress, ...]:
    """Give the sources that have a line: none of a single one, whose figures are those of the whole."""
    return progress.sources[:_MOST_SOURCES] if len(progress.sources) > 1 else ()


def _standing(source: SourceProgress) -> str:
    return f"{human_size(source.bytes_per_second)}/s {source.state}" + (f" ({source.code})" if source.code else "")
