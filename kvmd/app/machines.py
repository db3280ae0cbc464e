"""What runs virtual machines, where the settings say that the host does."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from concurrent.futures import Executor
from contextlib import asynccontextmanager

from kvmd.config.settings import MachineSettings
from kvmd.hypervisor.connection import Connection
from kvmd.hypervisor.machines import LibvirtMachines
from kvmd.ports import Hypervisor


@asynccontextmanager
async def open_hypervisor(machines: MachineSettings, executor: Executor) -> AsyncGenerator[Hypervisor | None]:
    """Give the hypervisor, and close its connection in the end. Raises ConfigError where a package is missing.

    Its connection is not shared with the pools: refreshing a large one must not keep a machine from starting.
    """
    if not machines.uri:
        yield None
        return
    connection = Connection(machines.uri)
    try:
        yield LibvirtMachines(connection, executor=executor, acceleration=machines.type)
    finally:
        await connection.close()
