"""What is left in staging folders is found as it is, and deleted only while nobody works on it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from kvmd.core.checkpoint import Checkpoint
from kvmd.core.garbage import Remnant
from kvmd.core.ranges import ByteRange, RangeSet
from kvmd.errors import StoreError
from kvmd.store.directory import DirectoryStore
from kvmd.store.shared.store import SharedStore
from tests.kvmd.store.contract import CONTENT, ENTITY, HALF, request

LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
NEVER = datetime(1970, 1, 1, tzinfo=UTC)


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as one:
        yield one


@pytest.fixture
def store(tmp_path: Path, executor: ThreadPoolExecutor) -> DirectoryStore:
    return DirectoryStore("pool", tmp_path, executor=executor)


async def leave(store: DirectoryStore | SharedStore, name: str) -> None:
    """Leave half of a volume, to go on from."""
    volume = await store.open(request(name))
    await volume.write(0, CONTENT[:HALF])
    await volume.save(Checkpoint(ENTITY, stored=RangeSet.of([ByteRange(0, HALF)])))
    await volume.close(discard=False)


def age(folder: Path) -> None:
    for path in (folder / ".kvmd").iterdir():
        os.utime(path, (LONG_AGO.timestamp(),) * 2)


async def test_what_is_no_file_keeps_nothing_else_from_being_found(store: DirectoryStore, tmp_path: Path) -> None:
    await leave(store, "disk")
    victim = tmp_path / "victim"
    victim.write_bytes(b"x")
    name = f"{{}}.{request().key}.part"
    (tmp_path / ".kvmd" / name.format("link")).symlink_to(victim)
    (tmp_path / ".kvmd" / name.format("folder")).mkdir()
    os.mkfifo(tmp_path / ".kvmd" / name.format("fifo"))
    age(tmp_path)
    found = {one.volume: one for one in await store.remnants(unlocked_since=datetime.now(UTC))}
    assert await store.sweep(found["disk"])
    for volume in ("link", "folder"):
        with pytest.raises(StoreError):
            await store.sweep(found[volume])
    assert victim.exists()


async def test_what_was_written_in_a_year_that_no_calendar_knows_is_young(executor: ThreadPoolExecutor) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:  # a tmpfs keeps such times
        store = DirectoryStore("pool", Path(folder), executor=executor)
        await leave(store, "disk")
        for path in (Path(folder) / ".kvmd").iterdir():
            os.utime(path, (1e13, 1e13))
        (remnant,) = await store.remnants(unlocked_since=NEVER)
    assert remnant.modified > datetime.now(UTC)


async def test_a_pool_without_a_staging_folder_has_none(store: DirectoryStore) -> None:
    assert await store.remnants(unlocked_since=NEVER) == []


async def test_files_of_one_partial_volume_are_one_remnant_as_old_as_the_youngest(
    store: DirectoryStore, tmp_path: Path
) -> None:
    await leave(store, "disk")
    os.utime(next((tmp_path / ".kvmd").glob("*.json")), (0, 0))

    (found,) = await store.remnants(unlocked_since=NEVER)

    assert (found.volume, found.is_active) == ("disk", False)
    assert datetime.now(UTC) - found.modified < timedelta(minutes=1)
    assert found.size >= HALF
    assert found.path == str(tmp_path / ".kvmd" / "disk.0123456789abcdef")


async def test_what_is_old_goes_and_what_somebody_works_on_stays(store: DirectoryStore, tmp_path: Path) -> None:
    await leave(store, "orphan")
    active = await store.open(request("active"))
    age(tmp_path)

    remnants = {one.volume: one for one in await store.remnants(unlocked_since=datetime.now(UTC))}
    assert {name: one.is_active for name, one in remnants.items()} == {"orphan": False, "active": True}
    assert await store.sweep(remnants["orphan"])
    assert not await store.sweep(remnants["active"])

    assert {path.name.split(".")[0] for path in (tmp_path / ".kvmd").iterdir()} == {"active"}
    await active.write(0, CONTENT)
    await active.close(discard=True)


async def test_what_was_gone_on_with_in_between_stays(store: DirectoryStore, tmp_path: Path) -> None:
    await leave(store, "disk")
    age(tmp_path)
    (found,) = await store.remnants(unlocked_since=NEVER)
    await leave(store, "disk")

    assert not await store.sweep(found)
    assert len(await store.remnants(unlocked_since=NEVER)) == 1


async def test_a_journal_without_its_data_goes_too(store: DirectoryStore, tmp_path: Path) -> None:
    await leave(store, "disk")
    next((tmp_path / ".kvmd").glob("*.part")).unlink()
    age(tmp_path)
    (found,) = await store.remnants(unlocked_since=datetime.now(UTC))

    assert await store.sweep(found)
    assert list((tmp_path / ".kvmd").iterdir()) == []


async def test_only_records_of_volumes_that_are_gone_are_remnants(store: DirectoryStore, tmp_path: Path) -> None:
    staging = tmp_path / ".kvmd"
    staging.mkdir()
    for name in ("here", "gone"):
        (staging / f"{name}.record").write_text("of")
    (tmp_path / "here").write_text("volume")
    age(tmp_path)

    (found,) = await store.remnants(unlocked_since=NEVER)
    assert found.volume == "gone"
    (tmp_path / "gone").write_text("it came")
    assert not await store.sweep(found)
    (tmp_path / "gone").unlink()
    assert await store.sweep(found)
    assert [path.name for path in staging.iterdir()] == ["here.record"]


@pytest.mark.parametrize("name", ["notes.txt", "disk.part", "disk.0123456789abcdef.lock", "shared", ".hidden"])
async def test_files_of_others_are_no_remnants(store: DirectoryStore, tmp_path: Path, name: str) -> None:
    (tmp_path / ".kvmd").mkdir()
    (tmp_path / ".kvmd" / name).write_text("mine")
    age(tmp_path)

    assert await store.remnants(unlocked_since=datetime.now(UTC)) == []


async def test_a_link_out_of_the_folder_is_deleted_as_a_link(store: DirectoryStore, tmp_path: Path) -> None:
    await leave(store, "disk")
    outside = tmp_path / "outside"
    outside.write_text("mine")
    packed = tmp_path / ".kvmd" / "disk.0123456789abcdef.packed"
    packed.symlink_to(outside)
    (found,) = await store.remnants(unlocked_since=NEVER)

    assert await store.sweep(found)
    assert outside.read_text() == "mine"
    assert not packed.is_symlink()


async def test_in_a_shared_pool_nothing_goes_of_what_a_host_is_making(
    tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    def host(name: str) -> SharedStore:
        inner = DirectoryStore("pool", tmp_path, executor=executor)
        return SharedStore(inner, tmp_path, executor=executor, host=name, lease_s=60.0)

    one, other = host("kvm01"), host("kvm02")
    volume = await one.open(request("disk"))
    await volume.write(0, CONTENT)
    (found,) = [r for r in await other.remnants(unlocked_since=NEVER) if r.volume == "disk"]

    assert not await other.sweep(replace(found, modified=datetime.now(UTC)))
    await volume.close(discard=True)
    assert isinstance(found, Remnant)
