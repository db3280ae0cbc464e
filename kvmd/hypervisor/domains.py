"""Which domains need a file, whoever defined them: asked of libvirt, and of the heads of the images that their disks are."""

from __future__ import annotations

import asyncio
import os
import posixpath
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from xml.etree import ElementTree as ET

from kvmd.core.backing import targets
from kvmd.core.image import inspect_file
from kvmd.core.usage import DomainFiles, files_in
from kvmd.errors import HypervisorUnreachableError, KvmdError
from kvmd.hypervisor.connection import Connection
from kvmd.hypervisor.library import load_libvirt

if TYPE_CHECKING:
    from libvirt import virConnect, virDomain

T = TypeVar("T")
_MAX_DEPTH = 64
"""Longer chains of backing files are taken for endless ones."""


class LibvirtDomains:
    """Implements the port ``Domains``; asks every connection anew each time, because domains come and go."""

    def __init__(self, connections: Sequence[Connection], *, executor: Executor) -> None:
        self._connections = connections
        self._executor = executor

    async def using(self, path: str) -> Mapping[str, str]:
        """See the port."""
        users: dict[str, str] = {}
        for connection in self._connections:
            domains = await _ask(connection, _described, f"asking which domains need {path}")
            for name, files in sorted(domains.items()):
                why = await self._need(connection, files, path)
                if why is not None:
                    users[name] = why
        return users

    async def standing(self, images: Collection[str], path: str) -> Mapping[str, bool]:
        """See the port. libvirt, which may read them, tells of those that lie in its active pools of folders."""
        left, found = set(images), dict[str, bool]()
        for connection in self._connections:
            told = await _ask(connection, partial(_told_anew, paths=left), f"asking what stands on {path}")
            known = {image: below for image, below in told.items() if below is not None}
            left -= known.keys()
            for image, below in known.items():
                if await self._on_thread(_has, targets(below, folder=posixpath.dirname(image)), path):
                    found[image] = True
        for connection in self._connections if left else ():
            domains = await _ask(connection, _described, "asking which domains have disks that cannot be read")
            left -= frozenset[str]().union(*(files.layers for files in domains.values()))
        return found | dict.fromkeys(left, False)

    async def _need(self, connection: Connection, files: DomainFiles, path: str) -> str | None:
        """Tell why the domain counts as a user: empty where it needs the file, None where it does not."""
        if files.reaches(path) or await self._on_thread(_has, files.paths, path):
            return ""
        todo, seen = files.open_ended, frozenset[str]()
        for _ in range(_MAX_DEPTH):
            below, unseen = await self._on_thread(_below, todo)
            if unseen:
                told = await _ask(connection, partial(_told_below, paths=unseen), "asking what its disks stand on")
                if unknown := sorted(one for one, found in told.items() if found is None and not unseen[one]):
                    return f"its disk {unknown[0]} cannot be read, so that nobody knows what it stands on"
                below |= {found for found in told.values() if found}
            seen |= todo
            todo = below - seen
            if not todo:
                return None
            if await self._on_thread(_has, todo, path):
                return ""
        return "the chain of its disks' backing files does not end"

    async def _on_thread(self, work: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work, *arguments)


async def _ask(connection: Connection, work: Callable[[virConnect], T], what: str) -> T:
    return await connection.call(work, what=what, otherwise=HypervisorUnreachableError)


def _described(connect: virConnect) -> Mapping[str, DomainFiles]:
    """Read what every domain names, with the volumes of pools by their paths. Raises libvirtError where it cannot be known."""
    libvirt = load_libvirt()
    found: dict[str, DomainFiles] = {}
    for domain in connect.listAllDomains(0):
        try:
            files = files_in(*_descriptions(domain))
            volumes = {path for one in files.volumes if (path := _path_of(connect, *one))}
            found[domain.name()] = replace(
                files,
                paths=files.paths | volumes,
                volumes=frozenset(),
                open_ended=files.open_ended | volumes,
                layers=files.layers | volumes,
            )
        except libvirt.libvirtError as exc:
            if exc.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:  # that one is gone in between
                raise
    return found


def _descriptions(domain: virDomain) -> Iterator[str]:
    """Give what the domain is now, what it will be, what it was at its snapshots, and what it was when it was put to sleep."""
    libvirt = load_libvirt()
    yield domain.XMLDesc(0)
    if domain.isActive() and domain.isPersistent():
        yield domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    for snapshot in domain.listAllSnapshots(0):
        yield snapshot.getXMLDesc(0)
    if domain.hasManagedSaveImage(0):
        yield domain.managedSaveGetXMLDesc(0)


def _path_of(connect: virConnect, pool: str, volume: str) -> str | None:
    """Give a volume's path, None where the pool has no such volume. Raises libvirtError where the pool cannot be asked."""
    libvirt = load_libvirt()
    try:
        return connect.storagePoolLookupByName(pool).storageVolLookupByName(volume).path()
    except libvirt.libvirtError as exc:
        if exc.get_error_code() == libvirt.VIR_ERR_NO_STORAGE_VOL:
            return None
        raise


def _told_below(connect: virConnect, paths: Collection[str]) -> Mapping[str, str | None]:
    """Give what images stand on that kvmd may not read, as libvirt knows it: empty for nothing, None where it does not know."""
    libvirt = load_libvirt()
    found: dict[str, str | None] = dict.fromkeys(paths)
    for path in paths:
        with suppress(libvirt.libvirtError):
            tree = ET.fromstring(connect.storageVolLookupByPath(path).XMLDesc(0))  # noqa: S314 - libvirt's own words
            found[path] = tree.findtext("backingStore/path", "")
    return found


def _told_anew(connect: virConnect, paths: Collection[str]) -> Mapping[str, str | None]:
    """Have the pools of the images' folders listed anew, then see ``_told_below``; of pools that cannot be listed nothing is known."""
    libvirt = load_libvirt()
    folders, stale = {posixpath.dirname(path) for path in paths}, set[str]()
    for pool in connect.listAllStoragePools(libvirt.VIR_CONNECT_LIST_STORAGE_POOLS_ACTIVE):
        folder = ET.fromstring(pool.XMLDesc(0)).findtext("target/path", "")  # noqa: S314 - libvirt's own words
        if folder in folders:
            try:
                pool.refresh(0)
            except libvirt.libvirtError:
                stale.add(folder)
    return _told_below(connect, [path for path in paths if posixpath.dirname(path) not in stale])


def _has(paths: Collection[str], path: str) -> bool:
    """Whether one of the paths leads to the file at ``path``, by name, link or mount. Blocking."""
    wanted = posixpath.normpath(path)
    if wanted in map(posixpath.normpath, paths):
        return True
    for one in paths:
        with suppress(OSError, ValueError):
            if Path(one).samefile(path):
                return True
    return False


def _below(paths: Collection[str]) -> tuple[frozenset[str], Mapping[str, bool]]:
    """Read what images stand on, and tell which could not be read, and whether they seem not to be there. Blocking.

    A service does not see every folder: libvirt may.
    """
    found, unseen = set[str](), dict[str, bool]()
    for path in paths:
        try:
            found |= _references(path)
        except (OSError, KvmdError) as exc:
            unseen[path] = isinstance(exc, FileNotFoundError)
    return frozenset(found), unseen


def _references(path: str) -> frozenset[str]:
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        size = os.lseek(fd, 0, os.SEEK_END)
        facts = inspect_file(lambda offset, length: os.pread(fd, length, offset), size=size).facts
    finally:
        os.close(fd)
    return frozenset[str]().union(*(targets(one, folder=posixpath.dirname(path)) for one in facts.references))
