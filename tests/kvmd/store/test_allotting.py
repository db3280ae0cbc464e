"""Getting and giving back logical volumes, through libvirt's own test driver: there is no device-mapper here."""

from __future__ import annotations

from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from kvmd.core.allotment import Holding, Intention, Slot, Vacant, encode
from kvmd.errors import ExistsError, NoSpaceError
from kvmd.hypervisor.connection import Connection
from kvmd.hypervisor.volumes import BlockPool, create_volume
from kvmd.store.block.allotting import Allotter
from kvmwire.digest import Algorithm, Digest

MIB = 1 << 20
POOL = """
<pool type='logical'><name>vg0</name><source><name>vg0</name><format type='lvm2'/></source><target><path>/dev/vg0</path></target></pool>
"""
DIGEST = Digest(Algorithm.SHA_256, "ab" * 32)


@pytest.fixture
async def connection(tmp_path: Path) -> AsyncIterator[Connection]:
    """Connect to a host of the test driver's, of its own."""
    host = tmp_path / "host.xml"
    host.write_text(f"<node>{POOL}</node>")
    one = Connection(f"test://{host}")
    yield one
    await one.close()


@pytest.fixture
async def allotter(connection: Connection, tmp_path: Path) -> AsyncIterator[Allotter]:
    """Give what is under test."""
    with ThreadPoolExecutor(2) as threads:
        yield Allotter(
            "pool",
            "vg0",
            connection,
            notes=tmp_path / "notes",
            units=(),
            is_as_left=untouched,
            executor=threads,
        )


async def untouched(vacant: Vacant, pool: BlockPool) -> bool:
    """Nobody touches volumes of which libvirt's test driver has no bytes."""
    return vacant.slot in pool.slots


def holding(slot: Slot, *, name: str = "deb12", placed_ns: int = 1) -> Holding:
    """Say what a volume holds."""
    return Holding(slot, name, "0" * 16, MIB, DIGEST, placed_ns, "sample")


async def volumes(allotter: Allotter) -> set[str]:
    """Name the pool's volumes."""
    return {slot.volume for slot in (await allotter.look()).slots}


async def test_a_volume_has_kvmds_name_and_its_successor_another_one_in_turn(allotter: Allotter) -> None:
    for number, name in enumerate(["deb12", "deb12+1", "deb12"], 1):
        slot = await allotter.claim("deb12", MIB)
        assert slot.volume == name
        await allotter.hold(holding(slot, placed_ns=number))
        await allotter.vacate_superseded(await allotter.look())
        assert await volumes(allotter) == {name}, "the one before is deleted"
        assert await allotter.holding("deb12", await allotter.look()) == holding(slot, placed_ns=number)


async def test_a_volume_that_was_handed_back_is_got_again_by_its_name_and_deleted_for_another(
    allotter: Allotter,
) -> None:
    slot = await allotter.claim("deb12", MIB)
    allotter.let_go(slot)
    assert await allotter.claim("deb12", MIB) == slot
    allotter.let_go(slot)
    assert (await allotter.claim("other", MIB)).volume == "other"
    assert await volumes(allotter) == {"other"}


async def test_a_volume_that_is_worked_on_is_nobody_elses(allotter: Allotter) -> None:
    first = await allotter.claim("deb12", MIB)
    second = await allotter.claim("other", MIB)
    assert await volumes(allotter) == {first.volume, second.volume}


async def test_what_is_given_back_is_deleted(allotter: Allotter) -> None:
    slot = await allotter.claim("deb12", MIB)
    await allotter.hold(holding(slot))
    await allotter.vacate(holding(slot))
    assert await volumes(allotter) == set()
    assert await allotter.holding("deb12", await allotter.look()) is None


async def test_a_volume_of_somebody_elses_with_the_name_is_left(allotter: Allotter, connection: Connection) -> None:
    await connection.call(partial(create_volume, pool="vg0", name="deb12", size=MIB), what="test")
    with pytest.raises(ExistsError, match="kvmd did not make it; it was left as it is"):
        await allotter.holding("deb12", await allotter.look())
    assert await volumes(allotter) == {"deb12"}


async def test_a_volume_that_a_crash_left_half_made_is_kvmds(
    allotter: Allotter, connection: Connection, tmp_path: Path
) -> None:
    (tmp_path / "notes").mkdir()
    pool = await allotter.look()
    (tmp_path / "notes" / "deb12.json").write_bytes(encode(Intention(pool.uuid, "deb12", MIB)))
    await connection.call(partial(create_volume, pool="vg0", name="deb12", size=MIB), what="test")
    assert await allotter.holding("deb12", await allotter.look()) is None
    assert (await allotter.claim("deb12", MIB)).volume == "deb12"
    assert await volumes(allotter) == {"deb12"}


async def test_a_pool_without_room_says_how_much_there_is(allotter: Allotter) -> None:
    room = (await allotter.look()).room
    with pytest.raises(NoSpaceError, match=f"{room} are free in one piece"):
        await allotter.claim("deb12", room + 1)
    with pytest.raises(NoSpaceError, match="are free in one piece"):
        await allotter.expect_room(await allotter.look(), "deb12", room + 1)
    assert await volumes(allotter) == set()
