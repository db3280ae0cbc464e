"""When garbage is looked for: every so often, when a pool runs out of space, and when somebody asks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta

from kvmd.core.garbage import Item, Verdict
from kvmd.daemon.collector import Collector
from kvmd.daemon.surveyor import Surveyed, Surveyor
from kvmd.errors import KvmdError
from kvmd.log import get_logger
from kvmd.ports import Clock
from kvmwire.status import GcItem, GcSkipped, GcStatus, PoolStatus

log = get_logger(__name__)

FIRST_S = 600.0
"""The first look unasked comes so long after the start: by then what was published meanwhile has arrived."""
LOOK_S = 5.0
"""So often it is seen whether a pool has less free than low_space."""
SPACE_PAUSE_S = 300.0
"""Want of space causes a run at most so often: what is in use is not less in use a second later."""
MAX_ITEMS = 200
"""More are not announced: a status has to fit into a message."""
MAX_REQUESTS = 16


@dataclass(frozen=True, slots=True)
class GcRequest:
    """What a command asks for; ``pool`` None means all."""

    event: str
    pool: str | None = None
    is_dry_run: bool = False


@dataclass(frozen=True, slots=True)
class GcRules:
    """``every`` is how often it is looked unasked, None: never; ``low_space`` is bytes, 0: want of space causes nothing."""

    every: timedelta | None
    low_space: int = 0


class Caretaker:
    """One loop. Requests are taken on in their order; they live as long as the daemon, because a look unasked comes anyway."""

    def __init__(
        self,
        host: str,
        surveyor: Surveyor,
        collector: Collector,
        rules: GcRules,
        *,
        pools: Callable[[], Sequence[PoolStatus]],
        say: Callable[[GcStatus], None],
        clock: Clock,
    ) -> None:
        self._host = host
        self._surveyor = surveyor
        self._collector = collector
        self._rules = rules
        self._pools = pools
        self._say = say
        self._clock = clock
        self._requests: list[GcRequest] = []
        self._wake = asyncio.Event()
        self._due = clock.monotonic() + FIRST_S if rules.every is not None else None
        self._space_due = clock.monotonic()

    def ask(self, request: GcRequest) -> None:
        """Take on a request; one too many is passed over, with a word in the log."""
        if len(self._requests) >= MAX_REQUESTS:
            log.warning("too many requests to look for garbage: one is passed over", event_id=request.event)
            return
        self._requests.append(request)
        self._wake.set()

    def wake(self) -> None:
        """Look again whether a pool has less free than low_space."""
        self._wake.set()

    async def run(self) -> None:
        """Take care for ever."""
        while True:
            self._wake.clear()
            await self._pass()
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._wake.wait()

    async def _pass(self) -> None:
        while self._requests:
            request = self._requests.pop(0)
            await self._collect(request.pool, event=request.event, is_dry_run=request.is_dry_run)
        now = self._clock.monotonic()
        if self._due is not None and self._rules.every is not None and now >= self._due:
            self._due = now + self._rules.every.total_seconds()
            await self._collect(None)
        elif now >= self._space_due and self._is_short():
            self._space_due = now + SPACE_PAUSE_S
            await self._collect(None)

    def _is_short(self) -> bool:
        return any(one.available is not None and one.available < self._rules.low_space for one in self._pools())

    async def _collect(self, pool: str | None, *, event: str | None = None, is_dry_run: bool = False) -> None:
        since = self._clock.now()
        try:
            look = self._surveyor.survey if is_dry_run else self._collector.collect
            found = await look(None if pool is None else [pool])
        except KvmdError as exc:
            log.error("garbage could not be looked for", exc=exc)
            return
        status = status_of(found, host=self._host, event=event, is_dry_run=is_dry_run, since=since)
        log.info("garbage", event_id=event, dry_run=is_dry_run, deleted=status.deleted, freed=status.freed)
        self._say(status)


def status_of(found: Surveyed, *, host: str, event: str | None, is_dry_run: bool, since: datetime) -> GcStatus:
    """Give what is announced of a run."""
    gone = [one for one in found.items if one.verdict is Verdict.DELETE]
    kept = [one for one in found.items if one.verdict is not Verdict.DELETE]
    return GcStatus(
        host=host,
        event=event,
        dry_run=is_dry_run,
        deleted=len(gone),
        freed=sum(one.size for one in gone),
        kept=len(kept),
        items=tuple(map(told, [*gone, *kept][:MAX_ITEMS])),
        skipped=tuple(GcSkipped(pool=pool, why=why) for pool, why in found.skipped.items()),
        since=since,
    )


def told(item: Item) -> GcItem:
    """Give an item as it is announced."""
    return GcItem(
        pool=item.pool,
        path=item.path,
        kind=item.kind,
        template=item.template,
        size=item.size,
        goes=item.verdict is Verdict.DELETE,
        why=item.why,
    )
