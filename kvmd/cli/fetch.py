"""``kvmd fetch``: one image, one destination, and an answer that programs can read."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import time
from pathlib import Path, PurePosixPath

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from kvmd.app import fetching
from kvmd.cli.output import human_size, tls_files
from kvmd.config import Settings, load
from kvmd.core.session import Cancelled, Failed, Ready, State, Waiting
from kvmd.engine.report import replica_state
from kvmd.engine.runner import Listener
from kvmd.errors import KvmdError, PoolMissingError
from kvmd.plugin import TlsFiles
from kvmwire.codes import CODES, Exit, FailureCode
from kvmwire.status import Failure
from kvmwire.status import Progress as ProgressStatus

_PLAIN_LINE_S = 5.0
_INTERRUPTED = Failure(
    code=FailureCode.CANCELLED,
    message="interrupted; what was downloaded is kept.",
    hint="Run the same command again to go on from there.",
)


def run(arguments: argparse.Namespace) -> int:
    """Fetch, and give the exit code of what came out."""
    settings, tls = _settings(arguments.config), tls_files(arguments)
    started = time.monotonic()
    report = _Report(is_quiet=arguments.json)
    is_interrupted = False
    try:
        request = _request(arguments, tls)
        with report:
            state = asyncio.run(_interruptible(request, settings, report))
    except KvmdError as exc:
        state = Failed(exc.failure)
    except (KeyboardInterrupt, asyncio.CancelledError):
        is_interrupted = True
        state = Cancelled(_INTERRUPTED)
    result = _result(state, report.last, seconds=round(time.monotonic() - started, 3))
    if arguments.json:
        print(json.dumps(result))
    else:
        _say(result)
    return Exit.INTERRUPTED if is_interrupted else _exit_code(state)


def _request(arguments: argparse.Namespace, tls: TlsFiles) -> fetching.FetchRequest:
    folder, name = _destination(arguments)
    return fetching.FetchRequest(
        urls=arguments.urls,
        folder=folder,
        name=name,
        checksum=arguments.checksum,
        format=arguments.format,
        headers=dict(arguments.header),
        tls=tls,
    )


def _settings(path: Path | None) -> Settings:
    """Without a file the default policy holds, whatever the daemon of this machine has been told."""
    return load(path, os.environ).settings if path is not None else Settings()


def _destination(arguments: argparse.Namespace) -> tuple[Path, str]:
    """Split DEST into a folder that exists and a file name; a folder gets the name at the end of the first URL."""
    given = Path(arguments.destination)
    if given.is_dir() or arguments.destination.endswith("/"):
        folder, name = given, PurePosixPath(arguments.urls[0].path).name
        if not name:
            raise PoolMissingError(
                f"DEST {given} is a folder, and the URL has no file name at its end.", hint="Name a file as DEST."
            )
    else:
        folder, name = given.parent, given.name
    if not folder.is_dir():
        raise PoolMissingError(f"DEST: the folder {folder} is not there.", hint="Create it, or name another one.")
    return folder.resolve(), name


async def _interruptible(request: fetching.FetchRequest, settings: Settings, report: _Report) -> State:
    """Fetch until it is done or SIGTERM comes; what is synced is kept either way."""
    task = asyncio.current_task()
    if task is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await fetching.fetch(request, settings, Listener(report.on_state, report.on_progress))


class _Report:
    """Shows what happens on standard error: a bar on a terminal, else a plain line now and then."""

    def __init__(self, *, is_quiet: bool) -> None:
        self.last: ProgressStatus | None = None
        self._is_quiet = is_quiet
        self._told = 0.0
        self._said = ""
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> None:
        console = Console(stderr=True)
        if not self._is_quiet and console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True))
            self._bar = Progress(*columns, TransferSpeedColumn(), TimeRemainingColumn(), console=console)
            self._task = self._bar.add_task("starting", total=None)
            self._bar.start()

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    async def on_state(self, state: State) -> None:
        text = replica_state(state).value
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, description=text)
        elif not self._is_quiet and text != self._said:
            print(text, file=sys.stderr)
        self._said = text

    def on_progress(self, progress: ProgressStatus) -> None:
        self.last = progress
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=progress.done, total=progress.size)
        elif not self._is_quiet and time.monotonic() - self._told >= _PLAIN_LINE_S:
            self._told = time.monotonic()
            share = f" ({100 * progress.done / progress.size:.0f} %)" if progress.size else ""
            print(
                f"{human_size(progress.done)} of {human_size(progress.size)}{share}, "
                f"{human_size(progress.bytes_per_second)}/s",
                file=sys.stderr,
            )


def _failure(state: State) -> Failure | None:
    match state:
        case Failed(failure) | Cancelled(failure):
            return failure
        case Waiting(_, failure, _):
            # The daemon would try again by itself; here the person does.
            hint = failure.hint.replace("; it is tried again by itself.", ".")
            return failure.model_copy(update={"hint": f"{hint} Run the same command again to go on."})
        case _:
            return None


def _result(state: State, progress: ProgressStatus | None, *, seconds: float) -> dict[str, object]:
    failure = _failure(state)
    result: dict[str, object] = {
        "state": "ready" if isinstance(state, Ready) else "failed",
        "code": failure.code.value if failure else None,
        "message": failure.message if failure else "",
        "hint": failure.hint if failure else "",
        "path": None,
        "size": None,
        "checksum": None,
        "format": None,
        "virtual_size": None,
        "resumed_from": progress.resumed_from if progress else 0,
        "sources": [one.model_dump(mode="json", exclude_none=True) for one in progress.sources] if progress else [],
        "seconds": seconds,
    }
    if isinstance(state, Ready):
        placement, image = state.placement, state.image
        result |= {"path": placement.path, "size": placement.size, "checksum": str(placement.digest)}
        result |= {"format": image.format.value, "virtual_size": image.virtual_size} if image else {}
    return result


def _exit_code(state: State) -> int:
    failure = _failure(state)
    return Exit.DONE if failure is None else CODES[failure.code].exit


def _say(result: dict[str, object]) -> None:
    if result["state"] == "ready":
        print(
            f"{result['path']}  {result['checksum']}  {result['size']} bytes, {result['format']}, {result['seconds']} s"
        )
        return
    print(f"kvmd: {result['code']}: {result['message']}\n      {result['hint']}", file=sys.stderr)
