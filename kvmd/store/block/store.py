"""A libvirt pool whose volumes are block devices: images are made ready in a folder, and then placed on a volume of the pool."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TypeVar

from kvmd.core.allotment import Holding, Vacant
from kvmd.core.backing import Dependents
from kvmd.core.checkpoint import Checkpoint
from kvmd.core.domain import QEMU_FORMATS
from kvmd.core.entity import Entity
from kvmd.core.garbage import Remnant
from kvmd.core.image import FoundFormat
from kvmd.core.placement import Placement, Stored
from kvmd.core.ranges import ByteRange, RangeSet
from kvmd.errors import (
    ConvertError,
    ExistsError,
    KvmdError,
    PoolMissingError,
    PoolReadonlyError,
    StoreError,
    StoreIoError,
)
from kvmd.hypervisor.connection import Connection
from kvmd.hypervisor.pools import FIXED, REMOTE
from kvmd.hypervisor.volumes import BlockPool, Server, server_of
from kvmd.ports import Volume, VolumeRequest
from kvmd.store.block import placed
from kvmd.store.block.allotting import Allotter
from kvmd.store.calls import translated
from kvmd.store.descriptors import opened
from kvmd.store.directory import DirectoryStore
from kvmd.store.partial import PartialVolume
from kvmd.store.patience import patiently
from kvmd.store.staging import STAGING
from kvmd.store.wrapped import WrappedVolume
from kvmwire.digest import Algorithm
from kvmwire.status import PoolState, PoolStatus

_CONTAINERS = frozenset(QEMU_FORMATS) - {FoundFormat.RAW}
"""Formats of disks whose bytes are not those that a machine is to see."""
STATUS_S = 4.0
_STAGING_MODE = 0o700
T = TypeVar("T")
Place = Callable[[Stored, int, Placement | None], Awaitable[Placement]]


class BlockStore:
    """Implements the ports ``Store`` and ``Keeper`` on libvirt's pool ``pool``.

    ``staging`` is the store of a folder on a filesystem: downloads are made ready there. ``notes`` is the folder for what
    is placed where: it must stay the same, for what no note tells of counts as free. ``units`` are the volumes of a
    pool that libvirt makes none in which may be overwritten. ``is_sparse``: the space of zeros is given back where the device can.
    """

    def __init__(
        self,
        name: str,
        pool: str,
        connection: Connection,
        *,
        staging: DirectoryStore,
        notes: Path,
        units: Sequence[str],
        is_sparse: bool,
        executor: Executor,
    ) -> None:
        self._name = name
        self._pool = pool
        self._connection = connection
        self._staging = staging
        self._folder = staging.path
        self._is_sparse = is_sparse
        self._executor = executor
        self._allotter = Allotter(
            name,
            pool,
            connection,
            notes=notes,
            units=units,
            is_as_left=self._is_as_left,
            executor=executor,
        )

    async def open(self, request: VolumeRequest) -> Volume:
        """See the port. Room in the pool is looked for, and taken only when the image is known to be good."""
        pool = await self._allotter.look()
        if request.size is not None:
            await self._allotter.expect_room(pool, request.name, request.size)
        await self._on_thread(self._make_folder)
        inner = await self._staging.open(replace(request, copy_of=None))
        if request.copy_of is not None and inner.checkpoint is None and request.copy_of.size == request.size:
            inner = await self._filled(inner, request, pool)
        return StagedVolume(inner, partial(self._place, request))

    async def find(self, name: str, *, known: Placement | None, algorithm: Algorithm) -> Stored | None:
        """See the port. Only what a note of ours tells of a volume that is there is believed."""
        pool = await self._allotter.look()
        holding = await self._allotter.holding(name, pool)
        if holding is None:
            return None
        server = await self._server(pool)
        work = partial(placed.examine, holding, server=server, known=known, algorithm=algorithm)
        stored = await self._stoppably(f"reading {holding.slot.path}", work)
        with suppress(KvmdError):  # what a crash left after the volume was ready
            await self._forget_staged(holding)
            await self._allotter.vacate_superseded(pool)
        return stored

    async def reread(self, placement: Placement, *, rate: int) -> Placement | None:
        """See the port ``Keeper``."""
        pool = await self._allotter.look()
        holding = await self._allotter.holding_of(placement, pool)
        if holding is None:
            return None
        server, algorithm = await self._server(pool), placement.digest.algorithm
        work = partial(placed.reread, holding, server=server, algorithm=algorithm, rate=rate)
        return await self._stoppably(f"reading {placement.path}", work)

    async def dependents(self, path: str) -> Dependents:
        """See the port ``Keeper``. Of raw volumes only snapshots that libvirt tells of read from others."""
        pool = await self._allotter.look()
        return Dependents(tuple(snapshot for snapshot, of in pool.snapshots if of == path))

    async def whereabouts(self, placement: Placement) -> str:
        """See the port ``Keeper``."""
        holding = await self._allotter.holding_of(placement, await self._allotter.look())
        return placement.path if holding is None else holding.slot.path

    async def remove(self, placement: Placement) -> bool:
        """See the port. A volume that libvirt cannot delete stays kvmd's, and is overwritten by another one."""
        pool = await self._allotter.look()
        holding = await self._allotter.holding_of(placement, pool)
        if holding is None or not holding.placement().is_same_file(placement):
            return False
        server = await self._server(pool)
        work = partial(placed.is_untouched, holding, server=server)
        if not await self._stoppably(f"removing {placement.path}", work):
            return False
        await self._allotter.vacate(holding)
        return True

    async def discard(self, name: str) -> None:
        """See the port. ``name`` may be the last part of a placement's path, too."""
        for one in {name, *await self._allotter.names_at(name)}:
            with suppress(PoolMissingError):  # nothing was ever staged
                await self._staging.discard(one)

    async def remnants(self, *, unlocked_since: datetime) -> Sequence[Remnant]:
        """See the port ``Sweeper``: what lies in the staging folder."""
        try:
            return await self._staging.remnants(unlocked_since=unlocked_since)
        except PoolMissingError:
            return ()  # nothing was ever staged

    async def sweep(self, remnant: Remnant) -> bool:
        """See the port ``Sweeper``."""
        return await self._staging.sweep(remnant)

    async def status(self) -> PoolStatus:
        """See the port."""
        status = PoolStatus(name=self._name, type="libvirt", path="", state=PoolState.MISSING)
        try:
            pool = await self._allotter.look(is_fresh=False, timeout_s=STATUS_S)
            await self._on_thread(self._make_folder)
            staging = await self._staging.status()
            capacity, available = pool.capacity, pool.available
            if pool.type in FIXED:
                capacity, available = await self._allotter.units(pool)
        except PoolReadonlyError:
            return status.model_copy(update={"state": PoolState.READONLY})
        except KvmdError:
            return status
        return PoolStatus(
            name=self._name,
            type=f"libvirt:{pool.type}",
            path=pool.device,
            state=staging.state,
            capacity=capacity,
            allocation=capacity - available if pool.type in FIXED else pool.allocation,
            available=available,
        )

    async def _place(
        self, request: VolumeRequest, staged: Stored, source: int, replaces: Placement | None
    ) -> Placement:
        """Put the staged image, open as ``source``, onto a volume, and have it count once it was read back from there."""
        pool, before = await self._looked_up(request.name)
        if before is not None and not _is_replaced(before, replaces):
            raise _exists(before)
        size = staged.placement.size
        slot = await patiently(lambda: self._allotter.claim(request.name, size))
        try:
            server = await patiently(lambda: self._server(pool))
            work = partial(placed.put, slot, server=server, source=source, staged=staged, is_sparse=self._is_sparse)
            sample = await self._stoppably(f"placing {request.name} on {slot.path}", work)
            pool, now = await self._looked_up(request.name)
            if now != before:
                raise _exists(now or before)
            if slot not in pool.slots:
                raise PoolMissingError(f"volume {slot.path}: it is gone from libvirt's pool {self._pool} meanwhile.")
            placed_ns = max(time.time_ns(), before.placed_ns + 1 if before else 0)
            digest = staged.placement.digest
            made_of = staged.provenance
            holding = Holding(slot, request.name, request.key, size, digest, placed_ns, sample, made_of)
            await self._allotter.hold(holding)
        finally:
            self._allotter.let_go(slot)
        with suppress(KvmdError):  # then the next look at the volume does it
            await self._allotter.vacate_superseded(pool)
        return holding.placement()

    async def _filled(self, volume: PartialVolume, request: VolumeRequest, pool: BlockPool) -> PartialVolume:
        """Fill a fresh volume from the one of the same content, where a device of this machine leads to it. Else it is downloaded."""
        other = request.copy_of
        try:
            holding = None if other is None else await self._allotter.holding_of(other, pool)
            if other is None or holding is None or pool.type in REMOTE or not holding.placement().is_same_file(other):
                return volume
            whole = RangeSet((ByteRange(0, other.size),))
            checkpoint = Checkpoint(Entity(other.size, has_ranges=True), promised=(other.digest,), stored=whole)
            with translated(f"copying {holding.slot.path}"):
                source = await opened(self._executor, os.open, holding.slot.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                await volume.take_over(checkpoint, source)
            finally:
                os.close(source)
        except StoreError:
            await volume.close(discard=True)
            return await self._staging.open(replace(request, copy_of=None))
        except BaseException:
            await volume.close(discard=True)
            raise
        return volume

    async def _is_as_left(self, vacant: Vacant, pool: BlockPool) -> bool:
        work = partial(placed.is_as_left, vacant, server=await self._server(pool))
        return await self._stoppably(f"reading {vacant.slot.path}", work)

    async def _looked_up(self, name: str) -> tuple[BlockPool, Holding | None]:
        pool = await patiently(self._allotter.look)
        return pool, await self._allotter.holding(name, pool)

    async def _server(self, pool: BlockPool) -> Server | None:
        """Tell what the pool's volumes are reached through, None where they are devices of this machine."""
        if pool.type not in REMOTE:
            return None
        return await self._connection.call(partial(server_of, name=self._pool), what=f"pool {self._name}")

    async def _forget_staged(self, holding: Holding) -> None:
        """Delete the staged image that a crash left after it was placed."""
        if not await self._on_thread(self._is_staged, holding):
            return
        request = VolumeRequest(holding.name, holding.part, size=None, algorithms=())
        await (await self._staging.open(request)).close(discard=True)

    def _is_staged(self, holding: Holding) -> bool:
        return any((self._folder / STAGING).glob(f"{holding.name}.{holding.part}.*"))

    def _make_folder(self) -> None:
        with translated(f"the staging folder {self._folder}"):
            self._folder.mkdir(mode=_STAGING_MODE, parents=True, exist_ok=True)

    async def _on_thread(self, work: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work, *arguments)

    async def _stoppably(self, what: str, work: Callable[[threading.Event], T]) -> T:
        """Do long work on a thread; cancelled, it ends soon, and is waited for: nobody else may touch the device meanwhile."""
        stopped = threading.Event()
        working = asyncio.get_running_loop().run_in_executor(self._executor, work, stopped)
        try:
            with translated(what):
                return await asyncio.shield(working)
        except asyncio.CancelledError:
            stopped.set()
            await asyncio.wait({working})
            working.exception()
            raise


class StagedVolume(WrappedVolume):
    """A partial volume that lies in the staging folder, and is placed in the pool by its commit."""

    def __init__(self, inner: Volume, place_it: Place) -> None:
        super().__init__(inner)
        self._place = place_it
        self._is_placed = False

    @property
    def takes_only_raw(self) -> bool:
        """A device has no format."""
        return True

    async def commit(self, *, replaces: Placement | None = None) -> Placement:
        """See the port. Where it fails, what is staged is as good as before."""
        staged = self._sealed
        if staged is None:
            raise StoreIoError("the staged volume was not verified; refused.")
        if staged.image.format in _CONTAINERS:
            raise ConvertError(
                f"the image is {staged.image.format.value}, and the volumes of this pool are devices, on which a machine would see "
                "the file and not the disk in it; it was not placed.",
                hint="Publish the image as raw, or deploy it into a pool of files.",
            )
        source = await self._inner.open_sealed()
        try:
            placement = await self._place(staged, source, replaces)
        finally:
            os.close(source)
        self._is_placed = True
        return placement

    async def close(self, *, discard: bool) -> None:
        """See the port."""
        await self._inner.close(discard=discard or self._is_placed)


def _is_replaced(before: Holding, replaces: Placement | None) -> bool:
    """Whether it is what is to be replaced, as it was placed or as somebody changed it since."""
    known = (before.placement(), before.placement(is_sampled=False))
    return replaces is not None and any(one.is_same_file(replaces) for one in known)


def _exists(other: Holding | None) -> ExistsError:
    where = "" if other is None else f" on {other.slot.path}"
    return ExistsError(
        f"a volume of that name is in the pool{where}, or came while the image was placed; it was left as it is."
    )
