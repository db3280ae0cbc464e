"""What is asked of libvirt about machines."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from kvmd.core.domain import Domain, Power
from kvmd.hypervisor.connection import Connection
from kvmd.hypervisor.machines import LibvirtMachines


async def test_a_domain_is_looked_at_when_its_name_is_asked_for_and_is_somebody_elses() -> None:
    connection = Connection("test:///default")
    with ThreadPoolExecutor(1) as executor:
        machines = LibvirtMachines(connection, executor=executor, acceleration="auto")
        try:
            found = await machines.look({"test", "vm1"})
            assert await machines.look({"vm1"}) == {}
        finally:
            await connection.close()
    assert found == {"test": Domain(found["test"].uuid, Power.ON, provenance=None)}
