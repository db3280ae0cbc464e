"""The replicas of this host as everybody in the daemon shares them: who changes one, who works on one, and who is told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Generator
from contextlib import contextmanager
from dataclasses import replace

from kvmd.core.agenda import VolumeName, names_of
from kvmd.core.desired import HostRecord, Replica, ReplicaKey
from kvmd.log import get_logger
from kvmd.ports import Clock, Journal
from kvmwire.status import ReplicaState

log = get_logger(__name__)


class Replicas:
    """Changes replicas in the journal, in memory and for all who listen, in this order, so that nothing announced is ever forgotten.

    ``working`` are those with a session; ``held`` are volumes that no session may begin to work on, until ``on_release``. ``say``
    announces.
    """

    def __init__(self, record: HostRecord, journal: Journal, *, say: Callable[[Replica], None]) -> None:
        self._record = record
        self._journal = journal
        self._say = say
        self.listeners: list[Callable[[], None]] = []
        self.working: set[ReplicaKey] = set()
        self.held: set[VolumeName] = set()
        self.on_release: Callable[[], None] = lambda: None
        self._changing = asyncio.Lock()

    async def keep(self, replica: Replica, *, is_told: bool = True) -> None:
        """Journal, remember, announce; with ``is_told`` False nobody hears of it yet."""
        async with self._changing:
            await self._put(replica)
        if is_told:
            self._tell(replica)

    async def amend(self, before: Replica, after: Replica, *, is_told: bool = True) -> bool:
        """Keep what somebody found out about a replica at rest; nothing, where it has changed in between or is worked on."""
        async with self._changing:
            if before.key in self.working or self._record.replicas.get(before.key) is not before:
                return False
            await self._put(after)
        if is_told:
            self._tell(after)
        return True

    async def _put(self, replica: Replica) -> None:
        await self._journal.save_replica(replica)
        self._record.replicas[replica.key] = replica

    def _tell(self, replica: Replica) -> None:
        self._say(replica)
        for listener in self.listeners:
            listener()
        status = replica.status
        log.info(
            "replica",
            template=status.template,
            pool=status.pool,
            state=status.state,
            session=status.session,
            code=status.code,
            message=status.message or None,
        )

    async def used(self, paths: Collection[str], *, clock: Clock) -> None:
        """Note that the ready volumes at these paths are in use now."""
        for replica in [*self._record.replicas.values()]:
            if replica.status.state is ReplicaState.READY and replica.status.path in paths:
                status = replica.status.model_copy(update={"last_used": clock.now()})
                await self.amend(replica, replace(replica, status=status))

    @contextmanager
    def hold(self, *names: VolumeName) -> Generator[bool]:
        """Keep sessions away from these volumes; False where one is at work on one of them, or somebody holds it."""
        busy = {name for key in self.working for name in names_of(self._record, key)} | self.held
        if busy & {*names}:
            yield False
            return
        self.held |= {*names}
        try:
            yield True
        finally:
            self.held -= {*names}
            self.on_release()
