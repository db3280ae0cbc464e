"""``kvmd fetch``: one image, one destination, and an answer that programs can read."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import time
from pathlib import Path

from kvmd.app import fetching
from kvmd.cli.output import tls_files
from kvmd.cli.progress import Report
from kvmd.config import Settings, load
from kvmd.core.metalink import file_name
from kvmd.core.session import Cancelled, Failed, Ready, State, Waiting
from kvmd.engine.runner import Listener
from kvmd.errors import KvmdError, PoolMissingError
from kvmd.plugin import TlsFiles
from kvmwire.codes import CODES, Exit, FailureCode
from kvmwire.digest import Digest
from kvmwire.source import SourceUrl
from kvmwire.status import Failure
from kvmwire.status import Progress as ProgressStatus

_INTERRUPTED = Failure(
    code=FailureCode.CANCELLED,
    message="interrupted; what was downloaded is kept.",
    hint="Run the same command again to go on from there.",
)


def run(arguments: argparse.Namespace) -> int:
    """Fetch, and give the exit code of what came out."""
    settings, tls = _settings(arguments.config), tls_files(arguments)
    started = time.monotonic()
    report = Report(is_quiet=arguments.json)
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
        checksum=arguments.checksum if isinstance(arguments.checksum, Digest) else None,
        checksum_url=arguments.checksum if isinstance(arguments.checksum, SourceUrl) else None,
        checksum_of=arguments.checksum_of,
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
        folder, name = given, file_name(arguments.urls[0])
        if not name:
            raise PoolMissingError(
                f"DEST {given} is a folder, and the URL has no file name at its end.", hint="Name a file as DEST."
            )
    else:
        folder, name = given.parent, given.name
    if not folder.is_dir():
        raise PoolMissingError(f"DEST: the folder {folder} is not there.", hint="Create it, or name another one.")
    return folder.resolve(), name


async def _interruptible(request: fetching.FetchRequest, settings: Settings, report: Report) -> State:
    """Fetch until it is done or SIGTERM comes; what is synced is kept either way."""
    task = asyncio.current_task()
    if task is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await fetching.fetch(request, settings, Listener(report.on_state, report.on_progress))


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
        "found_checksums": [],
        "resumed_from": progress.resumed_from if progress else 0,
        "refetched": progress.refetched if progress else 0,
        "connections": progress.connections if progress else 0,
        "retries": progress.retries if progress else 0,
        "sources": [one.model_dump(mode="json", exclude_none=True) for one in progress.sources] if progress else [],
        "seconds": seconds,
    }
    if isinstance(state, Ready):
        placement, image, found = state.placement, state.image, state.found
        result["found_checksums"] = [
            {"checksum": str(d), "where": found.where, "signed": found.is_vouched} for d in found.digests
        ]
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
