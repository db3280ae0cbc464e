"""The stores of the pools that the settings name."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncGenerator, Mapping
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from kvmd.config import DirectoryPool, LibvirtPool, Settings
from kvmd.config.checking import Finding
from kvmd.errors import ConfigError, KvmdError
from kvmd.hypervisor.connection import Connection
from kvmd.hypervisor.library import load_libvirt
from kvmd.hypervisor.pools import FIXED, FOLDERS, REMOTE, PoolFacts, check_pool
from kvmd.ports import PoolStore, Sharing
from kvmd.store.block.store import BlockStore
from kvmd.store.calls import filesystem_type, network_filesystem
from kvmd.store.directory import DirectoryStore
from kvmd.store.libvirt import LibvirtStore
from kvmd.store.shared.store import SharedStore
from kvmd.store.zeros import Allocation

STAGING = "staging"
"""Folder of the state directory for what is downloaded into pools that have no files."""
NOTES = "placed"
"""Folder of the state directory for the notes of what such pools hold: wherever the staging folder is, and will be."""
_CHECK_S = 5.0


@asynccontextmanager
async def open_stores(settings: Settings, executor: Executor) -> AsyncGenerator[Mapping[str, PoolStore]]:
    """Give the stores by the names of their pools, and close their connections in the end.

    No pool needs to be there. Raises ConfigError where libvirt-python is needed and missing.
    """
    connections = {pool.uri: Connection(pool.uri) for pool in settings.pools.values() if isinstance(pool, LibvirtPool)}
    if connections:
        await asyncio.to_thread(load_libvirt)
    try:
        yield {
            name: _store(name, pool, settings, connections=connections, executor=executor)
            for name, pool in settings.pools.items()
        }
    finally:
        for connection in connections.values():
            await connection.close()


def _store(
    name: str,
    pool: DirectoryPool | LibvirtPool,
    settings: Settings,
    *,
    connections: Mapping[str, Connection],
    executor: Executor,
) -> PoolStore:
    own_folder = partial(DirectoryStore, name, executor=executor, allocation=Allocation(pool.allocation))

    def folder(path: Path) -> PoolStore:
        if not pool.shared:
            return own_folder(path)
        return SharedStore(own_folder(path), path, executor=executor, host=settings.host, lease_s=pool.lease_s)

    if isinstance(pool, DirectoryPool):
        return folder(pool.path)
    connection, staging = connections[pool.uri], pool.staging or settings.state_dir / STAGING / name
    block = BlockStore(
        name,
        pool.pool,
        connection,
        staging=own_folder(staging),
        notes=settings.state_dir / NOTES / name,
        units=pool.units,
        is_sparse=pool.allocation == "sparse",
        executor=executor,
    )
    return LibvirtStore(name, pool.pool, connection, folder=folder, block=block)


def shared_of(settings: Settings, stores: Mapping[str, PoolStore]) -> dict[str, Sharing]:
    """Give the stores of the pools that other hosts have, too, by the names of the pools."""
    shared = {name: store for name, store in stores.items() if settings.pools[name].shared}
    return {name: store for name, store in shared.items() if isinstance(store, SharedStore | LibvirtStore)}


async def check_pools(settings: Settings) -> list[Finding]:
    """Look at each folder's filesystem, and ask libvirt about each of its pools, for ``kvmd config --check``."""
    findings: list[Finding] = []
    for name, pool in settings.pools.items():
        if isinstance(pool, DirectoryPool):
            findings += await asyncio.to_thread(_unshared, name, pool)
            continue
        connection = Connection(pool.uri)
        try:
            facts = await connection.call(partial(check_pool, name=pool.pool), what=f"pool {name}", timeout_s=_CHECK_S)
            findings += await asyncio.to_thread(_shortcomings, name, pool, facts)
        except ConfigError as exc:
            findings.append(Finding(f"pools.{name}.type", "error", exc.message.rstrip("."), exc.hint))
        except KvmdError as exc:
            findings.append(Finding(f"pools.{name}.pool", "error", exc.message.rstrip("."), exc.hint))
        finally:
            await connection.close()
    return findings


def _unshared(name: str, pool: DirectoryPool) -> list[Finding]:
    """Say where other hosts may have a pool's folder, too, and the settings say nothing of it."""
    try:
        fd = os.open(pool.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return []  # which is found elsewhere
    try:
        kind = network_filesystem(filesystem_type(fd))
    finally:
        os.close(fd)
    if kind is None or pool.shared:
        return []
    message = (
        f"{pool.path} lies on {kind}, where other hosts may have it as a pool, too, and the pool is not set as shared"
    )
    return [
        Finding(f"pools.{name}.shared", "warning", message, "Set shared = true on all hosts that have this folder.")
    ]


def _shortcomings(name: str, pool: LibvirtPool, facts: PoolFacts) -> list[Finding]:
    """Say what a pool lacks that can be used otherwise."""
    found: list[Finding] = []
    if facts.type in FIXED and not pool.units:
        message = f"libvirt's pool {pool.pool} is of type {facts.type}: it makes no volumes, and none is named that may be overwritten"
        found.append(Finding(f"pools.{name}.units", "error", message, 'Name some: units = ["unit:0:0:1"].'))
    if facts.type not in FOLDERS and pool.shared:
        message = f"libvirt's pool {pool.pool} is of type {facts.type}: only pools of files are shared between hosts"
        found.append(Finding(f"pools.{name}.shared", "error", message, "Remove the setting."))
    if facts.type in REMOTE and shutil.which("qemu-nbd") is None:
        message = f"qemu-nbd, which reaches volumes of type {facts.type}, is not installed"
        found.append(Finding(f"pools.{name}.type", "error", message, "apt install qemu-utils qemu-block-extra"))
    return found
