"""Volumes of block pools through libvirt's own test driver: what it tells and does for pools that cannot run here."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest

from kvmd.errors import ExistsError, KvmdError
from kvmd.hypervisor.connection import Connection
from kvmd.hypervisor.library import load_libvirt
from kvmd.hypervisor.volumes import block_pool, create_volume, delete_volume, server_of

MIB = 1 << 20
T = TypeVar("T")
LOGICAL = """
<pool type='logical'><name>vg0</name><source><name>vg0</name><format type='lvm2'/></source><target><path>/dev/vg0</path></target></pool>
"""
RBD = """
<pool type='rbd'><name>ceph</name>
  <source><host name='mon1' port='6789'/><host name='mon2'/><name>images</name>
    <auth type='ceph' username='kvmd'><secret usage='ceph-key'/></auth></source>
</pool>
"""


@pytest.fixture
async def connection(tmp_path: Path) -> AsyncIterator[Connection]:
    """Connect to a host of the test driver's, of its own."""
    host = tmp_path / "host.xml"
    host.write_text(f"<node>{LOGICAL}{RBD}</node>")
    load_libvirt()
    one = Connection(f"test://{host}")
    yield one
    await one.close()


async def test_a_logical_volume_is_made_listed_and_deleted(connection: Connection) -> None:
    async def call(work: Callable[..., T]) -> T:
        return await connection.call(work, what="test")

    empty = await call(partial(block_pool, name="vg0"))
    assert (empty.type, empty.slots) == ("logical", [])
    assert empty.room == empty.available > 0

    await call(partial(create_volume, pool="vg0", name="deb12", size=8 * MIB))
    now = await call(partial(block_pool, name="vg0"))
    (slot,) = now.slots
    assert (slot.volume, slot.path, slot.capacity) == ("deb12", "/dev/vg0/deb12", 8 * MIB)
    assert slot.pool == empty.uuid
    assert now.room == empty.room - 8 * MIB

    with pytest.raises(ExistsError, match="left as it is"):
        await call(partial(create_volume, pool="vg0", name="deb12", size=MIB))
    assert await call(partial(delete_volume, pool="vg0", slot=replace(slot, capacity=1)))
    assert (await call(partial(block_pool, name="vg0"))).slots == [slot], "another volume than the one meant is left"
    assert await call(partial(delete_volume, pool="vg0", slot=slot))
    assert (await call(partial(block_pool, name="vg0"))).slots == []
    assert await call(partial(delete_volume, pool="vg0", slot=slot))


async def test_a_pool_behind_servers_tells_where_they_are(connection: Connection) -> None:
    with pytest.raises(KvmdError, match="virSecretLookupByUsage"):  # the test driver keeps none
        await connection.call(partial(server_of, name="ceph"), what="pool ceph")
    server = await connection.call(partial(server_of, name="vg0"), what="pool vg0")
    assert (server.type, server.hosts, server.source) == ("logical", (), "vg0")
