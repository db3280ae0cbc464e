"""The domains of the hypervisors that the settings name."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from concurrent.futures import Executor
from contextlib import asynccontextmanager

from kvmd.config import LibvirtPool, Settings
from kvmd.hypervisor.connection import Connection
from kvmd.hypervisor.domains import LibvirtDomains
from kvmd.ports import Domains


@asynccontextmanager
async def open_domains(settings: Settings, executor: Executor) -> AsyncGenerator[Domains]:
    """Give the domains that the libvirtds of pools and machines know, of none where there are none.

    The connections are opened when they are asked, and are no others': a long list must keep neither pools nor machines waiting.
    """
    uris = {pool.uri: None for pool in settings.pools.values() if isinstance(pool, LibvirtPool)}
    if settings.machines.uri:
        uris[settings.machines.uri] = None
    connections = [Connection(uri) for uri in uris]
    try:
        yield LibvirtDomains(connections, executor=executor)
    finally:
        for connection in connections:
            await connection.close()
