"""Volumes of libvirt's block pools, as values. Each function runs on the thread of a ``Connection``."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast
from xml.etree import ElementTree as ET

from kvmd.core.allotment import Slot
from kvmd.errors import ExistsError, InUseError, PoolUnsupportedError
from kvmd.hypervisor.library import load_libvirt
from kvmd.hypervisor.pools import NUMBERED, active_pool

if TYPE_CHECKING:
    from libvirt import libvirtError, virConnect, virStoragePool, virStorageVol

_IN_USE = ("in use", "being used", "is busy", "device or resource busy")
_NO_PARTITION = "partition doesn't exist"


@dataclass(frozen=True, slots=True)
class Server:
    """Where the volumes of a pool lie that no device of this machine leads to. ``secret`` is what ``user`` proves itself with."""

    type: str
    hosts: tuple[tuple[str, str], ...]
    source: str
    initiator: str = ""
    user: str = ""
    secret: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class BlockPool:
    """A block pool and all its volumes. Sizes are bytes; ``device`` is the disk that a pool of type ``disk`` lies on.

    ``snapshots`` are pairs of a volume's path and the path of the one that it reads from.
    """

    name: str
    uuid: str
    type: str
    device: str
    slots: Sequence[Slot]
    snapshots: Sequence[tuple[str, str]]
    capacity: int
    allocation: int
    available: int
    room: int


def block_pool(connect: virConnect, name: str, *, is_fresh: bool = True) -> BlockPool:
    """Describe an active pool. ``is_fresh``: have libvirt look at it anew first. Raises PoolMissingError, or libvirtError.

    ``room`` is what the largest new volume could have.
    """
    facts = active_pool(connect, name)
    pool = connect.storagePoolLookupByName(name)
    if is_fresh:
        pool.refresh(0)
        facts = active_pool(connect, name)
    tree = ET.fromstring(pool.XMLDesc(0))  # noqa: S314 - libvirt's own words
    described = [_described(one, pool) for one in pool.listAllVolumes(0)]
    extents = [int(one.get("end", 0)) - int(one.get("start", 0)) for one in tree.iter("freeExtent")]
    return BlockPool(
        name=name,
        uuid=pool.UUIDString(),
        type=facts.type,
        device=_device(tree),
        slots=[slot for slot, _ in described],
        snapshots=[(slot.path, backing) for slot, backing in described if backing],
        capacity=facts.capacity,
        allocation=facts.allocation,
        available=facts.available,
        room=max(extents, default=0) if facts.type in NUMBERED else facts.available,
    )


def create_volume(connect: virConnect, pool: str, name: str, size: int) -> None:
    """Make a volume of at least ``size`` bytes. Raises ExistsError where one has the name, or libvirtError."""
    storage = connect.storagePoolLookupByName(pool)
    if _lookup(storage, name) is not None:
        raise ExistsError(f"libvirt's pool {pool} has a volume {name} already; it was left as it is.")
    volume = ET.Element("volume")
    ET.SubElement(volume, "name").text = name
    for what in ("capacity", "allocation"):
        ET.SubElement(volume, what, unit="bytes").text = str(size)
    storage.createXML(ET.tostring(volume, encoding="unicode"), 0)


def delete_volume(connect: virConnect, pool: str, slot: Slot) -> bool:
    """Delete that very volume; False where libvirt cannot. Raises InUseError, or libvirtError.

    libvirt deletes no partitions of disks whose names end in a digit, as NVMe's: it tells parted ``p1`` for 1 (up to 11 at least).
    """
    libvirt = load_libvirt()
    storage = connect.storagePoolLookupByName(pool)
    volume = _lookup(storage, slot.volume)
    if volume is None or not _is_same(_described(volume, storage)[0], slot):
        return True
    try:
        volume.delete(0)
    except libvirt.libvirtError as exc:
        return _is_refused(exc, slot)
    return True


def server_of(connect: virConnect, name: str) -> Server:
    """Tell how the volumes of a pool are reached through the network, with the secret that libvirt keeps for it."""
    tree = ET.fromstring(connect.storagePoolLookupByName(name).XMLDesc(0))  # noqa: S314 - libvirt's own words
    kind, source = tree.get("type", ""), tree.find("source")
    if source is None:
        raise PoolUnsupportedError(f"libvirt's pool {name} of type {kind} says nothing of its source.")
    hosts = tuple((one.get("name", ""), one.get("port", "")) for one in source.findall("host"))
    initiator = source.find("initiator/iqn")
    auth = source.find("auth")
    return Server(
        type=kind,
        hosts=hosts,
        source=_device(tree) or source.findtext("name", ""),
        initiator="" if initiator is None else initiator.get("name", ""),
        user="" if auth is None else auth.get("username", ""),
        secret=b"" if auth is None else _secret(connect, auth, kind),
    )


def _is_same(there: Slot, slot: Slot) -> bool:
    """Whether it is the volume, as far as libvirt tells: it knows nothing of the keys of partitions."""
    return (there.capacity, there.start) == (slot.capacity, slot.start) and (
        slot.start is not None or there.key == slot.key
    )


def _device(tree: ET.Element) -> str:
    device = tree.find("source/device")
    return "" if device is None else device.get("path", "")


def _described(volume: virStorageVol, pool: virStoragePool) -> tuple[Slot, str]:
    """Give the volume, and the path of the one that it reads from. A partition gets no key here: libvirt takes its path for it."""
    tree = ET.fromstring(volume.XMLDesc(0))  # noqa: S314 - libvirt's own words
    extent = tree.find("source/device/extent") if _type(pool) in NUMBERED else None
    slot = Slot(
        pool=pool.UUIDString(),
        volume=volume.name(),
        key=volume.key() if _type(pool) not in NUMBERED else "",
        path=volume.path(),
        capacity=int(tree.findtext("capacity", "0")),
        start=None if extent is None else int(extent.get("start", "0")),
    )
    return slot, tree.findtext("backingStore/path", "")


def _type(pool: virStoragePool) -> str:
    return ET.fromstring(pool.XMLDesc(0)).get("type", "")  # noqa: S314 - libvirt's own words


def _lookup(pool: virStoragePool, name: str) -> virStorageVol | None:
    libvirt = load_libvirt()
    try:
        return pool.storageVolLookupByName(name)
    except libvirt.libvirtError as exc:
        if exc.get_error_code() == libvirt.VIR_ERR_NO_STORAGE_VOL:
            return None
        raise


def _is_refused(error: libvirtError, slot: Slot) -> bool:
    """Give False where libvirt cannot delete the volume. Raises InUseError, or the error."""
    if error.get_error_code() == load_libvirt().VIR_ERR_NO_SUPPORT or _NO_PARTITION in str(error).lower():
        return False
    if any(words in str(error).lower() for words in _IN_USE):
        raise InUseError(
            f"volume {slot.path}: libvirt says: {error}.", hint="Stop whatever uses it, then it goes on by itself."
        ) from error
    raise error


def _secret(connect: virConnect, auth: ET.Element, kind: str) -> bytes:
    libvirt = load_libvirt()
    named = auth.find("secret")
    if named is None:
        return b""
    if named.get("uuid"):
        secret = connect.secretLookupByUUIDString(named.get("uuid", ""))
    else:
        usage = libvirt.VIR_SECRET_USAGE_TYPE_CEPH if kind == "rbd" else libvirt.VIR_SECRET_USAGE_TYPE_ISCSI
        secret = connect.secretLookupByUsage(usage, named.get("usage", ""))
    value = cast("bytes", secret.value())
    return base64.b64encode(value) if kind == "rbd" else value  # what QEMU's drivers take
