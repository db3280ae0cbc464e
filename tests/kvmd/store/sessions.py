"""A program that runs sessions as the daemon does, each in a fresh process that may be killed: one JSON line in, one line out.

It has loaded everything before the first, so that a session takes no longer than its work. Downloads have small steps, and tell in the
file ``told`` what is saved of them and how they end.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kvmd.app.parts import converter_of, disk_threads, environment_of, images_of, inspector_of, limits_of, open_sources
from kvmd.clock import SystemClock
from kvmd.config import Settings
from kvmd.core.checkpoint import Checkpoint
from kvmd.core.placement import Placement
from kvmd.core.session import (
    Absent,
    Cancelled,
    Downloading,
    Failed,
    Ready,
    RemovalStarted,
    Started,
    State,
    Terms,
    Waiting,
)
from kvmd.engine.job import Job
from kvmd.engine.runner import Edges, Listener, Session
from kvmd.engine.shaping import Shaper
from kvmd.store.directory import DirectoryStore
from kvmd.store.partial import PartialVolume
from kvmd.store.zeros import Allocation
from kvmwire.digest import Digest
from kvmwire.images import ImageFormat
from kvmwire.source import SourceUrl
from kvmwire.status import Progress
from tests.kvmd.engine.small_windows import BLOCK, make_small

VOLUME = "disk"


@dataclass(frozen=True)
class Order:
    """What a session is to do with the volume in the pool; ``placed`` is the placement of the one that kvmd made before."""

    pool: str
    told: str
    url: str
    expected: str
    placed: Mapping[str, Any] | None = None
    removes: bool = False
    is_raw: bool = False
    allocation: str = Allocation.SPARSE.value


class Teller:
    """Writes to a file what is done, line by line, as it is done."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def tell(self, **fields: object) -> None:
        """Write a line."""
        os.write(self._fd, json.dumps(fields).encode() + b"\n")


async def run(order: Order) -> None:
    """Run the session."""
    teller = Teller(order.told)
    _tell_saves(teller)
    settings = Settings.model_validate({"host": "kvm01", "transfer": {"connections": 2, "connections_per_source": 2}})
    url, clock, progress = SourceUrl.parse(order.url), SystemClock(), list[Progress]()
    expected = Digest.parse(order.expected)
    terms = Terms(VOLUME, expected, ImageFormat.AUTO, images=images_of(settings.policy), is_raw=order.is_raw)

    async def on_state(state: State) -> None:
        if isinstance(state, Downloading):
            teller.tell(downloads=True)
        if isinstance(state, Ready | Waiting | Failed | Cancelled | Absent):
            teller.tell(**_outcome(state, progress))

    with disk_threads(settings) as executor:
        async with open_sources(settings, environment_of(settings, executor, typed=[url])) as sources:
            store = DirectoryStore("pool", Path(order.pool), executor=executor, allocation=Allocation(order.allocation))
            job = Job(uuid.uuid4().hex, terms, [url])
            if order.placed is not None:
                fields: dict[str, Any] = {**order.placed, "digest": Digest.parse(order.placed["digest"])}
                job = replace(job, placed=Placement(**fields), is_ours=True)
            edges = Edges(
                sources,
                store,
                clock,
                limits_of(settings),
                Shaper(0, clock),
                inspector_of(settings.inspector),
                converter_of(settings.inspector),
            )
            opening = RemovalStarted() if order.removes else Started()
            await Session(job, edges, Listener(on_state, progress.append)).run(opening)


def _tell_saves(teller: Teller) -> None:
    """Tell how many bytes are saved as soon as the volume says so."""
    save = PartialVolume.save

    async def saved(self: PartialVolume, checkpoint: Checkpoint) -> None:
        await save(self, checkpoint)
        teller.tell(saved=checkpoint.stored.length)

    PartialVolume.save = saved  # type: ignore[method-assign]  # only in this process


def _outcome(state: State, progress: Sequence[Progress]) -> Mapping[str, object]:
    resumed = progress[-1].resumed_from if progress else 0
    match state:
        case Waiting(_, failure, _) | Failed(failure) | Cancelled(failure):
            return {"state": "failed", "code": failure.code.value, "message": failure.message, "resumed": resumed}
        case Absent():
            return {"state": "absent", "code": "", "resumed": resumed}
        case _:
            return {"state": "ready", "code": "", "resumed": resumed}


def _in_a_child(line: str) -> int:
    """Run one order in a process group of its own, and give what os.waitstatus_to_exitcode makes of its end."""
    pid = os.fork()
    if pid == 0:
        os.setsid()
        fields: dict[str, Any] = json.loads(line)
        asyncio.run(run(Order(**fields)))
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


if __name__ == "__main__":
    make_small(window=2 * BLOCK)
    for one in sys.stdin:
        sys.stdout.write(f"{_in_a_child(one)}\n")
        sys.stdout.flush()
