"""A libvirt pool, whatever type it has now: of files or of block devices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

from kvmd.core.backing import Dependents
from kvmd.core.garbage import Remnant
from kvmd.core.placement import Placement, Stored
from kvmd.errors import KvmdError
from kvmd.hypervisor.connection import Connection
from kvmd.hypervisor.pools import BLOCKS, FOLDERS, PoolFacts, active_pool, pool_facts, unsuitable_pool
from kvmd.ports import Holder, PoolStore, Volume, VolumeRequest
from kvmd.store.block.store import BlockStore
from kvmd.store.listed import ListedStore
from kvmwire.digest import Algorithm
from kvmwire.status import PoolState, PoolStatus

STATUS_S = 4.0
"""So long libvirt is waited for to describe a pool."""


class LibvirtStore:
    """Implements the ports ``Store``, ``Keeper`` and ``Sharing`` on libvirt's pool ``pool``.

    ``folder`` makes the store of its target path, where it has one; ``block`` serves it where its volumes are devices.
    """

    def __init__(
        self, name: str, pool: str, connection: Connection, *, folder: Callable[[Path], PoolStore], block: BlockStore
    ) -> None:
        self._name = name
        self._pool = pool
        self._connection = connection
        self._make_folder = folder
        self._folders: dict[str, PoolStore] = {}
        self._block = block

    async def open(self, request: VolumeRequest) -> Volume:
        """See the port."""
        return await (await self._now()).open(request)

    async def find(self, name: str, *, known: Placement | None, algorithm: Algorithm) -> Stored | None:
        """See the port."""
        return await (await self._now()).find(name, known=known, algorithm=algorithm)

    async def reread(self, placement: Placement, *, rate: int) -> Placement | None:
        """See the port ``Keeper``."""
        return await (await self._now()).reread(placement, rate=rate)

    async def dependents(self, path: str) -> Dependents:
        """See the port ``Keeper``."""
        return await (await self._now()).dependents(path)

    async def whereabouts(self, placement: Placement) -> str:
        """See the port ``Keeper``."""
        return await (await self._now()).whereabouts(placement)

    async def remove(self, placement: Placement) -> bool:
        """See the port."""
        return await (await self._now()).remove(placement)

    async def discard(self, name: str) -> None:
        """See the port."""
        await (await self._now()).discard(name)

    async def holder(self, name: str) -> Holder | None:
        """See the port ``Sharing``."""
        now = await self._now()
        return await now.holder(name) if isinstance(now, ListedStore) else None

    async def hold(self, placement: Placement, *, is_ours: bool) -> bool:
        """See the port ``Sharing``."""
        now = await self._now()
        return await now.hold(placement, is_ours=is_ours) if isinstance(now, ListedStore) else False

    async def remnants(self, *, unlocked_since: datetime) -> Sequence[Remnant]:
        """See the port ``Sweeper``."""
        return await (await self._now()).remnants(unlocked_since=unlocked_since)

    async def sweep(self, remnant: Remnant) -> bool:
        """See the port ``Sweeper``."""
        return await (await self._now()).sweep(remnant)

    async def status(self) -> PoolStatus:
        """See the port. What the store tells is newer than what libvirt knows since its last refresh."""
        try:
            facts = await self._connection.call(
                lambda conn: pool_facts(conn, self._pool), what=self._what, timeout_s=STATUS_S
            )
        except KvmdError:
            return PoolStatus(name=self._name, type="libvirt", path="", state=PoolState.MISSING)
        status = PoolStatus(
            name=self._name,
            type=f"libvirt:{facts.type}",
            path=facts.path,
            state=PoolState.MISSING,
            capacity=facts.capacity if facts.is_active else None,
            allocation=facts.allocation if facts.is_active else None,
            available=facts.available if facts.is_active else None,
        )
        if not facts.is_active or facts.type not in FOLDERS | BLOCKS:
            return status
        now = await self._store_of(facts).status()
        found = now.model_dump(include={"state", "capacity", "allocation", "available"})
        return status.model_copy(update={key: value for key, value in found.items() if value is not None})

    @property
    def _what(self) -> str:
        return f"pool {self._name}"

    async def _now(self) -> PoolStore:
        """Give the store of what the pool is now. Raises PoolMissingError, PoolUnsupportedError..."""
        return self._store_of(await self._connection.call(lambda conn: active_pool(conn, self._pool), what=self._what))

    def _store_of(self, facts: PoolFacts) -> PoolStore:
        """Give the store of the type and the folder that the pool has now: a pool may be defined anew, elsewhere."""
        if facts.type in BLOCKS:
            return self._block
        if facts.type not in FOLDERS:
            raise unsuitable_pool(facts)
        if facts.path not in self._folders:
            inner = self._make_folder(Path(facts.path))
            self._folders[facts.path] = ListedStore(self._name, self._pool, self._connection, inner=inner)
        return self._folders[facts.path]
