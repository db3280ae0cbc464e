"""The stores of the pools that the settings name."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from functools import partial

from kvmd.config import DirectoryPool, LibvirtPool, Settings
from kvmd.config.checking import Finding
from kvmd.errors import ConfigError, KvmdError
from kvmd.hypervisor.connection import Connection
from kvmd.hypervisor.library import load_libvirt
from kvmd.hypervisor.pools import check_pool
from kvmd.ports import PoolStore
from kvmd.store.directory import DirectoryStore
from kvmd.store.libvirt import LibvirtStore
from kvmd.store.zeros import Allocation

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
        yield {name: _store(name, pool, connections, executor) for name, pool in settings.pools.items()}
    finally:
        for connection in connections.values():
            await connection.close()


def _store(
    name: str, pool: DirectoryPool | LibvirtPool, connections: Mapping[str, Connection], executor: Executor
) -> PoolStore:
    folder = partial(DirectoryStore, name, executor=executor, allocation=Allocation(pool.allocation))
    if isinstance(pool, DirectoryPool):
        return folder(pool.path)
    return LibvirtStore(name, pool.pool, connections[pool.uri], folder=folder)


async def check_pools(settings: Settings) -> list[Finding]:
    """Ask libvirt about each of its pools, for ``kvmd config --check``."""
    findings: list[Finding] = []
    for name, pool in settings.pools.items():
        if not isinstance(pool, LibvirtPool):
            continue
        connection = Connection(pool.uri)
        try:
            await connection.call(partial(check_pool, name=pool.pool), what=f"pool {name}", timeout_s=_CHECK_S)
        except ConfigError as exc:
            findings.append(Finding(f"pools.{name}.type", "error", exc.message.rstrip("."), exc.hint))
        except KvmdError as exc:
            findings.append(Finding(f"pools.{name}.pool", "error", exc.message.rstrip("."), exc.hint))
        finally:
            await connection.close()
    return findings
