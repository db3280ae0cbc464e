"""A libvirt pool whose volumes are files: a folder with the rules of the directory pool, and libvirt is told and asked."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

from kvmd.core.checkpoint import Checkpoint
from kvmd.core.image import FoundFormat, ImageHead
from kvmd.core.placement import Placement, Stored, Unusable
from kvmd.core.ranges import ByteRange
from kvmd.errors import FormatAmbiguousError, HypervisorUnreachableError, KvmdError, StoreIoError
from kvmd.hypervisor.connection import Connection
from kvmd.hypervisor.pools import (
    FOLDERS,
    PoolFacts,
    VolumeFacts,
    active_pool,
    listed_volume,
    pool_facts,
    refresh_pool,
    unsuitable_pool,
)
from kvmd.log import get_logger
from kvmd.ports import Converter, PoolStore, Store, Volume, VolumeRequest
from kvmwire.digest import Algorithm, Digest
from kvmwire.status import PoolState, PoolStatus

log = get_logger(__name__)

STATUS_S = 4.0
"""So long libvirt is waited for to describe a pool."""
PATIENCE_S = 30.0
"""A commit waits so long for a libvirtd that is being restarted; longer, and the replica waits and tries again."""
_PAUSE_S = 0.25
_FLAT = frozenset({"raw", "iso"})
_CALLED = {
    FoundFormat.QCOW2: {"qcow2"},
    FoundFormat.VMDK: {"vmdk"},
    FoundFormat.VHD: {"vpc"},
    FoundFormat.VDI: {"vdi"},
    FoundFormat.QED: {"qed"},
    FoundFormat.LUKS: {"luks", "raw"},
}
"""What libvirt calls our formats. It has no name for the others, and takes them for bytes."""
T = TypeVar("T")


class LibvirtStore:
    """Implements the ports ``Store`` and ``Keeper`` on libvirt's pool ``pool``. ``folder`` makes the store of its target path."""

    def __init__(self, name: str, pool: str, connection: Connection, *, folder: Callable[[Path], PoolStore]) -> None:
        self._name = name
        self._pool = pool
        self._connection = connection
        self._make_folder = folder
        self._folders: dict[str, PoolStore] = {}

    async def open(self, request: VolumeRequest) -> Volume:
        """See the port."""
        inner = self._folder_of(await self._facts())
        return ListedVolume(await inner.open(request), self._ready, partial(self._list, inner))

    async def find(self, name: str, *, known: Placement | None, algorithm: Algorithm) -> Stored | None:
        """See the port."""
        inner = self._folder_of(await self._facts())
        stored = await inner.find(name, known=known, algorithm=algorithm)
        if stored is not None:
            self._compare(stored, await self._listed(stored.placement.path, is_fresh=False))
        return stored

    async def reread(self, placement: Placement, *, rate: int) -> Placement | None:
        """See the port ``Keeper``."""
        return await self._folder_of(await self._facts()).reread(placement, rate=rate)

    async def dependents(self, path: str) -> Sequence[str]:
        """See the port ``Keeper``."""
        return await self._folder_of(await self._facts()).dependents(path)

    async def remove(self, placement: Placement) -> bool:
        """See the port."""
        is_removed = await self._folder_of(await self._facts()).remove(placement)
        if is_removed:
            with suppress(KvmdError):  # it is gone; that libvirt still lists it is mended by any refresh
                await self._connection.call(lambda conn: refresh_pool(conn, self._pool), what=self._what)
        return is_removed

    async def discard(self, name: str) -> None:
        """See the port."""
        await self._folder_of(await self._facts()).discard(name)

    async def status(self) -> PoolStatus:
        """See the port. What the folder tells is newer than what libvirt knows since its last refresh."""
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
        if not facts.is_active or facts.type not in FOLDERS:
            return status
        now = await self._folder_of(facts).status()
        found = now.model_dump(include={"state", "capacity", "allocation", "available"})
        return status.model_copy(update={key: value for key, value in found.items() if value is not None})

    @property
    def _what(self) -> str:
        return f"pool {self._name}"

    async def _facts(self) -> PoolFacts:
        return await self._connection.call(lambda conn: active_pool(conn, self._pool), what=self._what)

    def _folder_of(self, facts: PoolFacts) -> PoolStore:
        """Give the store of the folder that the pool has now: a pool may be defined anew, elsewhere."""
        if facts.type not in FOLDERS:
            raise unsuitable_pool(facts)
        if facts.path not in self._folders:
            self._folders[facts.path] = self._make_folder(Path(facts.path))
        return self._folders[facts.path]

    async def _ready(self) -> None:
        """Return when libvirt answers and the pool is active; patient with a libvirtd that is away. Raises PoolMissingError."""
        await self._patiently(self._facts)

    async def _list(self, inner: Store, stored: Stored) -> None:
        """Have libvirt list a finished volume, and compare. Raises FormatAmbiguousError, and then the volume is gone."""
        listed = await self._patiently(lambda: self._listed(stored.placement.path, is_fresh=True))
        try:
            self._compare(stored, listed)
        except FormatAmbiguousError:
            await inner.remove(stored.placement)
            await self._connection.call(lambda conn: refresh_pool(conn, self._pool), what=self._what)
            raise

    async def _listed(self, path: str, *, is_fresh: bool) -> VolumeFacts | None:
        return await self._connection.call(
            lambda conn: listed_volume(conn, self._pool, path, is_fresh=is_fresh), what=self._what
        )

    async def _patiently(self, ask: Callable[[], Awaitable[T]]) -> T:
        loop = asyncio.get_running_loop()
        until = loop.time() + PATIENCE_S
        while True:
            try:
                return await ask()
            except HypervisorUnreachableError:
                if loop.time() >= until:
                    raise
            await asyncio.sleep(_PAUSE_S)

    def _compare(self, stored: Stored, listed: VolumeFacts | None) -> None:
        """Check that libvirt knows the volume as we do: whoever starts a machine from it believes libvirt."""
        placement = stored.placement
        if listed is None:
            raise StoreIoError(
                f"volume {placement.path}: it is there, and libvirt does not list it in its pool {self._pool}.",
                hint=f"Look at what virsh pool-refresh {self._pool} and libvirtd's log say.",
            )
        formats = _CALLED.get(stored.image.format, _FLAT)
        capacity = placement.size if listed.format in _FLAT else stored.image.virtual_size
        is_same = listed.is_file and listed.format in formats and listed.physical == placement.size
        if not is_same or capacity not in {None, listed.capacity}:
            raise FormatAmbiguousError(
                f"volume {placement.path}: expected {stored.image.format} of {placement.size} bytes, virtual size {capacity}; "
                f"libvirt takes it for {listed.format or 'no file'} of {listed.physical} bytes, virtual size {listed.capacity}. "
                "It is not offered as ready.",
                hint="Do not use this file: machines that are started from it may see something else than was verified.",
            )


class ListedVolume:
    """Implements the port ``Volume``: another one, which libvirt lists once it is committed.

    ``ready`` is awaited before it gets its final name, ``list_it`` after: a libvirtd that is away delays only that.
    """

    def __init__(
        self, inner: Volume, ready: Callable[[], Awaitable[None]], list_it: Callable[[Stored], Awaitable[None]]
    ) -> None:
        self._inner = inner
        self._ready = ready
        self._list = list_it
        self._sealed: Stored | None = None

    @property
    def checkpoint(self) -> Checkpoint | None:
        """See the port."""
        return self._inner.checkpoint

    @property
    def takes_only_raw(self) -> bool:
        """See the port."""
        return self._inner.takes_only_raw

    async def write(self, offset: int, block: bytes | memoryview) -> None:
        """See the port."""
        await self._inner.write(offset, block)

    async def digest(self, part: ByteRange, algorithm: Algorithm) -> Digest:
        """See the port."""
        return await self._inner.digest(part, algorithm)

    async def save(self, checkpoint: Checkpoint) -> None:
        """See the port."""
        await self._inner.save(checkpoint)

    async def seal(self, size: int) -> Stored | Unusable:
        """See the port."""
        sealed = await self._inner.seal(size)
        self._sealed = sealed if isinstance(sealed, Stored) else None
        return sealed

    async def open_sealed(self) -> int:
        """See the port."""
        return await self._inner.open_sealed()

    async def convert(self, image: ImageHead, converter: Converter) -> Stored:
        """See the port."""
        self._sealed = await self._inner.convert(image, converter)
        return self._sealed

    async def commit(self, *, replaces: Placement | None = None) -> Placement:
        """See the port. Where libvirt fails after the rename the volume stays: it is found, and listed, by the next attempt."""
        if self._sealed is None:
            return await self._inner.commit(replaces=replaces)  # which refuses
        await self._ready()
        placement = await self._inner.commit(replaces=replaces)
        await self._list(self._sealed)
        return placement

    async def close(self, *, discard: bool) -> None:
        """See the port."""
        await self._inner.close(discard=discard)
