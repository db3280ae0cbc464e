"""A libvirt pool whose volumes are files: a folder with the rules of the directory pool, and libvirt is told and asked."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import datetime
from functools import partial

from kvmd.core.backing import Dependents
from kvmd.core.garbage import Remnant
from kvmd.core.image import FoundFormat
from kvmd.core.placement import Placement, Stored
from kvmd.errors import FormatAmbiguousError, KvmdError, StoreIoError
from kvmd.hypervisor.connection import Connection
from kvmd.hypervisor.pools import VolumeFacts, active_pool, listed_volume, refresh_pool
from kvmd.ports import Holder, PoolStore, Volume, VolumeRequest
from kvmd.store.patience import patiently
from kvmd.store.shared.store import SharedStore
from kvmd.store.wrapped import WrappedVolume
from kvmwire.digest import Algorithm
from kvmwire.status import PoolStatus

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


class ListedStore:
    """Implements the ports ``Store`` and ``Keeper`` on libvirt's pool ``pool`` by ``inner``, the store of its target path.

    And ``Sharing``, where other hosts have that folder, too.
    """

    def __init__(self, name: str, pool: str, connection: Connection, *, inner: PoolStore) -> None:
        self._name = name
        self._pool = pool
        self._connection = connection
        self._inner = inner

    async def open(self, request: VolumeRequest) -> Volume:
        """See the port."""
        return ListedVolume(await self._inner.open(request), self._ready, self._list)

    async def find(self, name: str, *, known: Placement | None, algorithm: Algorithm) -> Stored | None:
        """See the port."""
        stored = await self._inner.find(name, known=known, algorithm=algorithm)
        if stored is not None:
            self._compare(stored, await self._listed(stored.placement.path, is_fresh=False))
        return stored

    async def reread(self, placement: Placement, *, rate: int) -> Placement | None:
        """See the port ``Keeper``."""
        return await self._inner.reread(placement, rate=rate)

    async def dependents(self, path: str) -> Dependents:
        """See the port ``Keeper``."""
        return await self._inner.dependents(path)

    async def whereabouts(self, placement: Placement) -> str:
        """See the port ``Keeper``."""
        return await self._inner.whereabouts(placement)

    async def remove(self, placement: Placement) -> bool:
        """See the port."""
        is_removed = await self._inner.remove(placement)
        if is_removed:
            with suppress(KvmdError):  # it is gone; that libvirt still lists it is mended by any refresh
                await self._refresh()
        return is_removed

    async def discard(self, name: str) -> None:
        """See the port."""
        await self._inner.discard(name)

    async def remnants(self, *, unlocked_since: datetime) -> Sequence[Remnant]:
        """See the port ``Sweeper``."""
        return await self._inner.remnants(unlocked_since=unlocked_since)

    async def sweep(self, remnant: Remnant) -> bool:
        """See the port ``Sweeper``."""
        return await self._inner.sweep(remnant)

    async def status(self) -> PoolStatus:
        """See the port."""
        return await self._inner.status()

    async def holder(self, name: str) -> Holder | None:
        """See the port ``Sharing``."""
        return await self._inner.holder(name) if isinstance(self._inner, SharedStore) else None

    async def hold(self, placement: Placement, *, is_ours: bool) -> bool:
        """See the port ``Sharing``."""
        return await self._inner.hold(placement, is_ours=is_ours) if isinstance(self._inner, SharedStore) else False

    @property
    def _what(self) -> str:
        return f"pool {self._name}"

    async def _ready(self) -> None:
        """Return when libvirt answers and the pool is active; patient with a libvirtd that is away. Raises PoolMissingError."""
        await patiently(lambda: self._connection.call(partial(active_pool, name=self._pool), what=self._what))

    async def _list(self, stored: Stored) -> None:
        """Have libvirt list a finished volume, and compare. Raises FormatAmbiguousError, and then the volume is gone."""
        listed = await patiently(lambda: self._listed(stored.placement.path, is_fresh=True))
        try:
            self._compare(stored, listed)
        except FormatAmbiguousError:
            await self._inner.remove(stored.placement)
            await self._refresh()
            raise

    async def _refresh(self) -> None:
        await self._connection.call(partial(refresh_pool, name=self._pool), what=self._what)

    async def _listed(self, path: str, *, is_fresh: bool) -> VolumeFacts | None:
        return await self._connection.call(
            lambda conn: listed_volume(conn, self._pool, path, is_fresh=is_fresh), what=self._what
        )

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


class ListedVolume(WrappedVolume):
    """A volume that libvirt lists once it is committed.

    ``ready`` is awaited before it gets its final name, ``list_it`` after: a libvirtd that is away delays only that.
    """

    def __init__(
        self, inner: Volume, ready: Callable[[], Awaitable[None]], list_it: Callable[[Stored], Awaitable[None]]
    ) -> None:
        super().__init__(inner)
        self._ready = ready
        self._list = list_it

    async def commit(self, *, replaces: Placement | None = None) -> Placement:
        """See the port. Where libvirt fails after the rename the volume stays: it is found, and listed, by the next attempt."""
        if self._sealed is None:
            return await self._inner.commit(replaces=replaces)  # which refuses
        await self._ready()
        placement = await self._inner.commit(replaces=replaces)
        await self._list(self._sealed)
        return placement
