"""A folder that several hosts have as their storage pool (docs/decisions/0021-shared-pools.md)."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TypeVar

from kvmd.core.backing import Dependents
from kvmd.core.checkpoint import Checkpoint
from kvmd.core.garbage import Remnant
from kvmd.core.machine import is_machine_file
from kvmd.core.placement import Placement, Stored
from kvmd.errors import ExistsError, InUseError, MadeElsewhereError, NoSpaceError, StoreError
from kvmd.log import get_logger
from kvmd.ports import Holder, VolumeRequest
from kvmd.store.calls import translated
from kvmd.store.descriptors import opened
from kvmd.store.directory import DirectoryStore
from kvmd.store.partial import PartialVolume
from kvmd.store.shared.leases import Holding, Leases, Taken
from kvmd.store.shared.leftovers import Leftover, Leftovers
from kvmd.store.shared.references import References
from kvmd.store.wrapped import WrappedVolume
from kvmwire.digest import Algorithm
from kvmwire.status import PoolStatus

log = get_logger(__name__)

T = TypeVar("T")


class SharedStore:
    """Implements the ports ``Store``, ``Keeper`` and ``Sharing`` on a DirectoryStore. ``host`` is this host's name.

    ``lease_s``: a host that shows no life for so many seconds is taken for gone, and another one goes on with its download.
    """

    def __init__(self, inner: DirectoryStore, path: Path, *, executor: Executor, host: str, lease_s: float) -> None:
        self._inner = inner
        self._path = path
        self._executor = executor
        self._leases = Leases(path, host=host, lease_s=lease_s)
        self._leftovers = Leftovers(path, host=host)
        self._references = References(path, host=host)

    async def open(self, request: VolumeRequest) -> SharedVolume:
        """See the port. Raises InUseError where another host makes the volume."""
        holding = await self._take(request.name)
        own = replace(request, key=request.key + holding.token)
        try:
            inner = await self._go_on(own)
        except BaseException:
            await self.end(own, holding)
            raise
        return SharedVolume(inner, own, holding, store=self)

    async def find(self, name: str, *, known: Placement | None, algorithm: Algorithm) -> Stored | None:
        """See the port."""
        return await self._inner.find(name, known=known, algorithm=algorithm)

    async def reread(self, placement: Placement, *, rate: int) -> Placement | None:
        """See the port ``Keeper``."""
        return await self._inner.reread(placement, rate=rate)

    async def dependents(self, path: str) -> Dependents:
        """See the port ``Keeper``. A volume that another host needs stays anyway, whatever reads from it.

        The disk of another host's machine, which often only that host can read, stands on what its host has noted as needed.
        """
        volume, others = Path(path), tuple[str, ...]()
        if volume.parent == self._path:
            others = await self._on_thread(f"looking who needs {path}", self._references.others, volume.name)
        if others:
            return Dependents()
        found = await self._inner.dependents(path)
        unread = {one: why for one, why in found.unread.items() if not is_machine_file(Path(one).name)}
        return replace(found, unread=unread)

    async def whereabouts(self, placement: Placement) -> str:
        """See the port ``Keeper``."""
        return await self._inner.whereabouts(placement)

    async def remove(self, placement: Placement) -> bool:
        """See the port. Raises KeptForOthersError where another host needs the volume; this one does not any more."""
        return await self._on_thread(f"removing {placement.path}", self._references.remove, placement)

    async def discard(self, name: str) -> None:
        """See the port. While there is no volume, what other hosts have downloaded of it is left to them."""
        await self._on_thread(f"discarding partial data of {self._path / name}", self._discard, name)

    async def remnants(self, *, unlocked_since: datetime) -> Sequence[Remnant]:
        """See the port ``Sweeper``: what any host has left."""
        return await self._inner.remnants(unlocked_since=unlocked_since)

    async def sweep(self, remnant: Remnant) -> bool:
        """See the port ``Sweeper``. Nothing of a volume that a host is making is deleted."""
        if await self._on_thread(f"looking who makes {remnant.volume}", self._leases.look, remnant.volume) is not None:
            return False
        return await self._inner.sweep(remnant)

    async def status(self) -> PoolStatus:
        """See the port."""
        return await self._inner.status()

    async def holder(self, name: str) -> Holder | None:
        """See the port ``Sharing``."""
        return await self._on_thread(f"looking who makes {self._path / name}", self._holder, name)

    async def hold(self, placement: Placement, *, is_ours: bool) -> bool:
        """See the port ``Sharing``."""
        what = f"noting that {placement.path} is needed"
        return await self._on_thread(what, partial(self._references.hold, placement, is_ours=is_ours))

    async def note_made(self, placement: Placement) -> None:
        """Note that this host is about to give the volume its name, and needs it."""
        await self._on_thread(f"noting that {placement.path} is needed", self._references.make, placement)

    async def drop(self, name: str) -> None:
        """Note that this host does not need the volume."""
        await self._on_thread(f"noting that {self._path / name} is not needed", self._references.drop, name)

    async def confirm(self, holding: Holding) -> bool:
        """Look whether the volume is still this host's to make."""
        return await self._on_thread("looking at a lease", holding.confirm)

    async def end(self, request: VolumeRequest, holding: Holding) -> None:
        """Let others go on with what was downloaded, whose files are closed. Where that fails the lease ends by itself."""
        what = f"letting go of {self._path / request.name}"
        try:
            await asyncio.shield(self._on_thread(what, self._let_go, request, holding))
        except StoreError as exc:
            log.warning("partial volume was not let go", volume=str(self._path / request.name), exc=exc)

    async def _take(self, name: str) -> Holding:
        what = f"taking the lease of {self._path / name}"
        with translated(what):
            taking = asyncio.get_running_loop().run_in_executor(self._executor, self._leases.take, name)
            try:
                taken = await asyncio.shield(taking)
            except asyncio.CancelledError:
                with suppress(OSError):  # the thread goes on, and nobody else would ever let go of what it took
                    late = await taking
                    if isinstance(late, Holding):
                        await asyncio.get_running_loop().run_in_executor(self._executor, late.release)
                raise
        if isinstance(taken, Taken):
            raise MadeElsewhereError(name, host=_holder_of(taken).host)
        return taken

    async def _go_on(self, own: VolumeRequest) -> PartialVolume:
        """Open the partial volume with whatever can be had of earlier holders' work."""
        left = await self._on_thread("looking for what is stored", self._leftovers.best, own)
        if left is None:
            return await self._inner.open(own)
        if not left.is_idle:
            return await self._copied(own, left)
        await self._on_thread("going on with what is stored", self._leftovers.claim, own, left)
        return await self._inner.open(own)

    async def _copied(self, own: VolumeRequest, left: Leftover) -> PartialVolume:
        """Open the partial volume with a copy of what a holder stored that may still write; without, where that cannot be had."""
        what = f"copying what is stored of {self._path / own.name}"
        try:
            volume = await self._inner.open(replace(own, copy_of=None))
        except NoSpaceError:
            await self._on_thread(what, self._leftovers.delete, own.name, left.key)
            return await self._inner.open(own)
        try:
            with translated(what):
                source = await opened(self._executor, self._leftovers.open, own, left)
            try:
                await volume.take_over(left.checkpoint, source)
            finally:
                os.close(source)
        except StoreError:
            await volume.close(discard=True)
            volume = await self._inner.open(own)
        except BaseException:
            await volume.close(discard=True)
            raise
        try:
            with suppress(StoreError):
                await self._on_thread(what, self._leftovers.delete, own.name, left.key)
        except BaseException:
            await volume.close(discard=False)
            raise
        return volume

    def _let_go(self, request: VolumeRequest, holding: Holding) -> None:
        try:
            self._leftovers.let_go(request)
        finally:
            holding.release()

    def _discard(self, name: str) -> None:
        is_there = os.path.lexists(self._path / name)
        self._leftovers.discard(name, is_everybodys=is_there and self._leases.look(name) is None)

    def _holder(self, name: str) -> Holder | None:
        if os.path.lexists(self._path / name):
            return None
        taken = self._leases.look(name)
        return None if taken is None else _holder_of(taken)

    async def _on_thread(self, what: str, work: Callable[..., T], *arguments: object) -> T:
        with translated(what):
            return await asyncio.get_running_loop().run_in_executor(self._executor, work, *arguments)


class SharedVolume(WrappedVolume):
    """Implements the port ``Volume``: a partial volume that is given up as soon as another host has taken over."""

    def __init__(self, inner: PartialVolume, request: VolumeRequest, holding: Holding, *, store: SharedStore) -> None:
        super().__init__(inner)
        self._request = request
        self._holding = holding
        self._store = store
        self._is_useless = False
        self._is_closed = False

    async def write(self, offset: int, block: bytes | memoryview) -> None:
        """See the port."""
        self._check_held()
        await super().write(offset, block)

    async def save(self, checkpoint: Checkpoint) -> None:
        """See the port."""
        self._check_held()
        await super().save(checkpoint)
        self._holding.tell(done=checkpoint.stored.length, size=checkpoint.entity.size)

    async def commit(self, *, replaces: Placement | None = None) -> Placement:
        """See the port. Nothing is replaced in a shared pool. Raises InUseError where another host was faster."""
        if replaces is not None:
            raise ExistsError(f"volume {replaces.path}: the pool is shared, and nothing in it is replaced.")
        if self._sealed is None:
            return await super().commit()  # which refuses
        if not await self._store.confirm(self._holding):
            self._check_held()
        await self._store.note_made(self._sealed.placement)
        try:
            return await super().commit()
        except StoreError as exc:
            await self._store.drop(self._request.name)
            is_held = await self._store.confirm(self._holding)
            if is_held and not isinstance(exc, ExistsError):
                raise
            self._is_useless = True
            raise InUseError(
                f"volume {self._request.name}: another host gave it its name first; what was downloaded here is discarded, and "
                "that one is looked at."
            ) from exc

    async def close(self, *, discard: bool) -> None:
        """See the port."""
        if self._is_closed:
            return
        self._is_closed = True
        try:
            await super().close(discard=discard or self._is_useless or self._holding.is_lost)
        finally:
            await self._store.end(self._request, self._holding)

    def _check_held(self) -> None:
        if self._holding.is_lost:
            raise InUseError(
                f"volume {self._request.name}: this host showed no life for too long, and another one goes on with it; what was "
                "downloaded here since is discarded."
            )


def _holder_of(taken: Taken) -> Holder:
    lease = taken.lease
    return Holder("") if lease is None else Holder(lease.host, lease.done, lease.size)
