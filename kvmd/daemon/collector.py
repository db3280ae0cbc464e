"""Deletes what the policy says, one thing after the other: partial data, former volumes, replicas that nobody uses."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace

from kvmd.core.agenda import VolumeName, names_of
from kvmd.core.desired import HostRecord, Replica
from kvmd.core.garbage import Item, Verdict, given_up, without
from kvmd.core.placement import Placement
from kvmd.daemon.replicas import Replicas
from kvmd.daemon.surveyor import Surveyed, Surveyor
from kvmd.daemon.users import Users
from kvmd.errors import KeptForOthersError, KvmdError
from kvmd.log import get_logger
from kvmd.ports import Clock, PoolStore
from kvmwire.status import GcKind

log = get_logger(__name__)

_PAUSE_S = 0.1
"""Between two deletions: a filesystem that frees many large files at once keeps everybody waiting."""
_BUSY = "somebody works on it just now, or it has changed"


class Collector:
    """One run at a time. What is deleted was decided by ``core.garbage``, and its users are asked once more right before."""

    def __init__(
        self,
        record: HostRecord,
        surveyor: Surveyor,
        *,
        stores: Mapping[str, PoolStore],
        users: Users,
        replicas: Replicas,
        clock: Clock,
    ) -> None:
        self._record = record
        self._surveyor = surveyor
        self._stores = stores
        self._users = users
        self._replicas = replicas
        self._clock = clock
        self._running = asyncio.Lock()

    async def collect(self, pools: Sequence[str] | None = None) -> Surveyed:
        """Look through these pools, or all, and delete what goes; give what became of everything."""
        async with self._running:
            found = await self._surveyor.survey(pools)
            items = [*found.items]
            await self._replicas.used([one.path for one in items if one.is_used], clock=self._clock)
            for i, item in enumerate(items):
                if item.verdict is Verdict.DELETE:
                    items[i] = await self._delete(item)
                    await asyncio.sleep(_PAUSE_S)
            return replace(found, items=tuple(items))

    async def _delete(self, item: Item) -> Item:
        """Delete one thing, and give what became of it; what cannot be deleted now is there for the next run."""
        try:
            why_not = await self._try(item)
        except KvmdError as exc:
            log.error("garbage could not be deleted", path=item.path, exc=exc)
            why_not = f"it could not be deleted: {exc.message}"
        if why_not:
            return replace(item, verdict=Verdict.KEEP, why=why_not)
        log.info("garbage deleted", kind=item.kind, path=item.path, size=item.size, why=item.why)
        return item

    async def _try(self, item: Item) -> str:
        """Delete it, or tell why not."""
        if item.remnant is not None:
            with self._replicas.hold(VolumeName(item.pool, item.remnant.volume)) as is_free:
                is_swept = is_free and await self._stores[item.pool].sweep(item.remnant)
            return "" if is_swept else _BUSY
        replica, placement = self._record.replicas.get(item.key), item.placement
        if replica is None or placement is None:
            return _BUSY
        names = names_of(self._record, item.key) | {VolumeName(item.pool, placement.name)}
        with self._replicas.hold(*names) as is_free:
            if not is_free:
                return _BUSY
            if item.kind is GcKind.FORMER:
                return await self._delete_former(replica, placement)
            return await self._delete_replica(replica, placement, item.why)

    async def _delete_former(self, replica: Replica, placement: Placement) -> str:
        if placement not in [one.placement for one in replica.formers]:
            return _BUSY
        if users := await self._used_by(replica.key.pool, placement):
            return f"in use by {', '.join(users)}"
        why_not = await self._remove(replica.key.pool, placement)
        await self._replicas.amend(replica, without(replica, placement), is_told=False)
        return why_not

    async def _delete_replica(self, before: Replica, placement: Placement, why: str) -> str:
        """Take it back first: from then on nobody begins to use it, and whoever does so already is seen."""
        if before.placement != placement:
            return _BUSY
        after = given_up(before, why, now=self._clock.now())
        if not await self._replicas.amend(before, after, is_told=False):
            return _BUSY
        try:
            users = await self._used_by(before.key.pool, placement)
        except BaseException:
            await asyncio.shield(self._replicas.amend(after, before, is_told=False))
            raise
        if users:
            await self._replicas.amend(after, before, is_told=False)
            return f"in use by {', '.join(users)}"
        try:
            why_not = await self._remove(before.key.pool, placement)
        except KvmdError:
            await self._replicas.amend(after, after)  # nobody knows what is left of it: the next run sees to that
            raise
        await self._replicas.amend(after, without(after, placement))
        return why_not

    async def _used_by(self, pool: str, placement: Placement) -> Sequence[str]:
        return await self._users.of(await self._stores[pool].whereabouts(placement))

    async def _remove(self, pool: str, placement: Placement) -> str:
        """Delete that very file; what is left of it is nobody's on this host."""
        try:
            is_removed = await self._stores[pool].remove(placement)
        except KeptForOthersError as exc:
            return exc.message
        return "" if is_removed else "it was gone already, or is not the file that kvmd put there; nothing was touched"
