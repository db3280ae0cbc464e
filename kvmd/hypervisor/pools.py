"""What libvirt knows of storage pools and their volumes, as values. Each function runs on the thread of a ``Connection``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from kvmd.errors import PoolMissingError, PoolUnsupportedError
from kvmd.hypervisor.library import load_libvirt

if TYPE_CHECKING:
    from libvirt import virConnect, virStoragePool, virStorageVol

FOLDERS = frozenset({"dir", "fs", "netfs", "gluster"})
"""Types of pools whose volumes are files in a folder of this machine."""
FIXED = frozenset({"iscsi-direct"})
"""Types of pools whose volumes are made elsewhere: libvirt neither makes nor deletes them."""
NUMBERED = frozenset({"disk"})
"""Types of pools that name their volumes themselves."""
REMOTE = frozenset({"iscsi-direct", "rbd"})
"""Types of pools to whose volumes no device of this machine leads."""
BLOCKS = frozenset({"logical"}) | NUMBERED | REMOTE
"""Types of pools whose volumes are block devices."""


@dataclass(frozen=True, slots=True)
class PoolFacts:
    """A pool that libvirt knows. Sizes are bytes, as of the last refresh; ``path`` is the target's, empty where it has none."""

    name: str
    type: str
    path: str
    is_active: bool
    capacity: int
    allocation: int
    available: int


@dataclass(frozen=True, slots=True)
class VolumeFacts:
    """A volume that libvirt lists. ``capacity`` is what a guest would see, ``physical`` what the file or device has."""

    name: str
    path: str
    is_file: bool
    format: str
    capacity: int
    physical: int


def pool_facts(connect: virConnect, name: str) -> PoolFacts:
    """Describe a pool, active or not. Raises libvirtError where it is not defined."""
    pool = connect.storagePoolLookupByName(name)
    tree = ET.fromstring(pool.XMLDesc(0))  # noqa: S314 - libvirt's own words
    state, capacity, allocation, available = map(int, pool.info())  # its annotations say otherwise
    return PoolFacts(
        name=name,
        type=tree.get("type", ""),
        path=tree.findtext("target/path", ""),
        is_active=state == load_libvirt().VIR_STORAGE_POOL_RUNNING,
        capacity=capacity,
        allocation=allocation,
        available=available,
    )


def active_pool(connect: virConnect, name: str) -> PoolFacts:
    """Describe a pool that can be used now. Raises PoolMissingError, or libvirtError where it is not defined."""
    facts = pool_facts(connect, name)
    if not facts.is_active:
        raise PoolMissingError(
            f"libvirt's pool {name} is defined and not active; kvmd starts no pools.",
            hint=f"Start it: virsh pool-start {name} (virsh pool-autostart {name} does so at every boot); then it goes on by itself.",
        )
    return facts


def check_pool(connect: virConnect, name: str) -> PoolFacts:
    """Describe the pool. Raises the StoreError that says why volumes cannot be put into it, libvirtError where it is not defined."""
    facts = active_pool(connect, name)
    if facts.type not in FOLDERS | BLOCKS:
        raise unsuitable_pool(facts)
    return facts


def unsuitable_pool(facts: PoolFacts) -> PoolUnsupportedError:
    """Give the error for a pool of a type that volumes cannot be put into."""
    return PoolUnsupportedError(
        f"libvirt's pool {facts.name} is of type {facts.type}, which this version puts no volumes into; nothing was downloaded.",
        hint=f"Name a pool of type {', '.join(sorted(FOLDERS | BLOCKS))}.",
    )


def listed_volume(connect: virConnect, name: str, path: str, *, is_fresh: bool) -> VolumeFacts | None:
    """Look a volume of the pool up by its path; None where libvirt does not list it.

    ``is_fresh``: refresh the pool first. It is refreshed in any case before libvirt's word counts that it is not there.
    """
    pool = connect.storagePoolLookupByName(name)
    if is_fresh:
        pool.refresh(0)
    found = _by_path(pool, path)
    if found is None and not is_fresh:
        pool.refresh(0)
        found = _by_path(pool, path)
    return None if found is None else volume_facts(found)


def refresh_pool(connect: virConnect, name: str) -> None:
    """Have libvirt look at the pool anew."""
    connect.storagePoolLookupByName(name).refresh(0)


def volume_facts(volume: virStorageVol) -> VolumeFacts:
    """Describe a volume."""
    libvirt = load_libvirt()
    tree = ET.fromstring(volume.XMLDesc(0))  # noqa: S314 - libvirt's own words
    kind, capacity, _ = map(int, volume.info())
    is_file = kind == libvirt.VIR_STORAGE_VOL_FILE
    physical = int(volume.infoFlags(libvirt.VIR_STORAGE_VOL_GET_PHYSICAL)[2]) if is_file else capacity
    form = tree.find("target/format")
    return VolumeFacts(
        name=volume.name(),
        path=volume.path(),
        is_file=is_file,
        format="" if form is None else form.get("type", ""),
        capacity=capacity,
        physical=physical,
    )


def _by_path(pool: virStoragePool, path: str) -> virStorageVol | None:
    """Look only in this pool: several may have the same folder. A volume has the name of its file or device."""
    libvirt = load_libvirt()
    try:
        found = pool.storageVolLookupByName(path.rpartition("/")[2])
    except libvirt.libvirtError as exc:
        if exc.get_error_code() == libvirt.VIR_ERR_NO_STORAGE_VOL:
            return None
        raise
    return found if found.path() == path else None
