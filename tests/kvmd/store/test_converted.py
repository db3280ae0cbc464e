"""Volumes that are the raw form of what was downloaded, and the records that tell what volumes were made of."""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from kvmd.core.checkpoint import Checkpoint
from kvmd.core.compression import Bounds, Compression
from kvmd.core.entity import Entity
from kvmd.core.image import FoundFormat
from kvmd.core.placement import Placement, Stored
from kvmd.core.provenance import Provenance, Record
from kvmd.core.ranges import ByteRange, RangeSet
from kvmd.errors import ConvertError, NoSpaceError
from kvmd.ports import Packing, Volume, VolumeRequest
from kvmd.sandbox.client import QemuConverter
from kvmd.store.directory import DirectoryStore
from kvmd.store.zeros import Allocation
from kvmwire.digest import Algorithm
from tests.kvmd.core.strategies import NOW
from tests.kvmd.mounts import tmpfs
from tests.kvmd.store.contract import digest, make, request
from tests.support import images
from tests.support.programs import require_program

MIB = 1 << 20
SIZE = 16 * MIB
IMAGE = images.qcow2(SIZE)
RAW = images.payload(256 << 10).ljust(SIZE, b"\0")
MADE = Provenance((digest(IMAGE),), None, (digest(IMAGE),), FoundFormat.QCOW2)
CONVERTER = QemuConverter(None, timeout_s=5.0, memory=512 * MIB)


@pytest.fixture(autouse=True)
def qemu_img() -> None:
    """All of these need the real one."""
    require_program("qemu-img")


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    """Threads for the disk."""
    with ThreadPoolExecutor(4) as threads:
        yield threads


@pytest.fixture
def store(tmp_path: Path, executor: ThreadPoolExecutor) -> DirectoryStore:
    """Make a pool."""
    return DirectoryStore("pool", tmp_path, executor=executor)


@asynccontextmanager
async def sealed(
    store: DirectoryStore, content: bytes = IMAGE, *, asked: VolumeRequest | None = None
) -> AsyncIterator[tuple[Volume, Stored]]:
    """Give a volume that is downloaded, journaled and verified; it is closed and kept."""
    volume = await store.open(asked or request(size=len(content)))
    try:
        await volume.write(0, content)
        entity = Entity(len(content), has_ranges=True, etag='"1"')
        await volume.save(Checkpoint(entity, (), RangeSet.of([ByteRange(0, len(content))])))
        stored = await volume.seal(len(content))
        assert isinstance(stored, Stored)
        yield volume, stored
    finally:
        await volume.close(discard=False)


async def converted(
    store: DirectoryStore,
    content: bytes = IMAGE,
    *,
    asked: VolumeRequest | None = None,
    replaces: Placement | None = None,
) -> Stored:
    """Make a finished volume."""
    async with sealed(store, content, asked=asked) as (volume, stored):
        made = await volume.convert(stored.image, CONVERTER)
        assert await volume.commit(replaces=replaces) == made.placement
        return made


def left(folder: Path) -> list[str]:
    """Name what lies in the staging folder."""
    return sorted(path.name for path in (folder / ".kvmd").iterdir())


async def test_the_volume_is_what_a_machine_sees_of_the_image(tmp_path: Path, store: DirectoryStore) -> None:
    made = await converted(store)
    volume = tmp_path / "disk"
    assert volume.read_bytes() == RAW
    assert (made.placement.digest, made.placement.size, made.provenance) == (digest(RAW), SIZE, MADE)
    assert volume.stat().st_mode & 0o777 == 0o644
    assert volume.stat().st_blocks * 512 < MIB
    assert left(tmp_path) == ["disk.record"]


async def test_it_is_known_again_by_its_record(store: DirectoryStore) -> None:
    made = await converted(store)
    for known in (None, made.placement):
        found = await store.find("disk", known=known, algorithm=Algorithm.SHA_256)
        assert found is not None
        assert (found.placement, found.provenance) == (made.placement, MADE)
    other = await store.find("disk", known=None, algorithm=Algorithm.SHA_512)
    assert other is not None
    assert other.provenance is None


@pytest.mark.parametrize(("allocation", "least", "most"), [("sparse", 0, 1), ("dense", 16, 17), ("full", 16, 17)])
async def test_zeros_take_the_space_that_the_pool_wants(
    tmp_path: Path, executor: ThreadPoolExecutor, allocation: str, least: int, most: int
) -> None:
    await converted(DirectoryStore("pool", tmp_path, executor=executor, allocation=Allocation(allocation)))
    assert (tmp_path / "disk").read_bytes() == RAW
    assert least * MIB <= (tmp_path / "disk").stat().st_blocks * 512 <= most * MIB


async def test_an_image_is_unpacked_and_then_converted(tmp_path: Path, store: DirectoryStore) -> None:
    packed = gzip.compress(IMAGE)
    packing = Packing(Compression.GZIP, Bounds(), Algorithm.SHA_256)
    made = await converted(store, packed, asked=replace(request(size=len(packed)), packing=packing))
    assert (tmp_path / "disk").read_bytes() == RAW
    assert made.provenance == Provenance((digest(packed),), Compression.GZIP, (digest(IMAGE),), FoundFormat.QCOW2)
    assert left(tmp_path) == ["disk.record"]


async def test_it_takes_the_place_of_an_older_volume_at_once(tmp_path: Path, store: DirectoryStore) -> None:
    old = await make(store, content=b"old" * 1000, key="f" * 16)
    await converted(store, replaces=old)
    assert (tmp_path / "disk").read_bytes() == RAW
    assert left(tmp_path) == ["disk.record"]


async def test_a_volume_that_was_not_made_of_anything_has_no_record(tmp_path: Path, store: DirectoryStore) -> None:
    old = await converted(store)
    await make(store, content=b"new" * 1000, key="f" * 16, replaces=old.placement)
    assert left(tmp_path) == []


async def test_the_record_goes_with_the_volume(tmp_path: Path, store: DirectoryStore) -> None:
    made = await converted(store)
    assert await store.remove(made.placement)
    assert left(tmp_path) == []


async def test_the_record_stays_where_another_file_has_the_name(tmp_path: Path, store: DirectoryStore) -> None:
    made = await converted(store)
    (tmp_path / "disk").write_bytes(b"somebody's")
    assert not await store.remove(made.placement)
    assert left(tmp_path) == ["disk.record"]


class TestRecords:
    """What a record is worth, whoever wrote it."""

    async def provenance(self, store: DirectoryStore) -> Provenance | None:
        """Give what the record of the volume tells."""
        found = await store.find("disk", known=None, algorithm=Algorithm.SHA_256)
        assert found is not None
        return found.provenance

    async def test_of_a_file_that_changed_it_tells_nothing(self, tmp_path: Path, store: DirectoryStore) -> None:
        await converted(store)
        with (tmp_path / "disk").open("r+b") as file:
            file.write(b"x")
        assert await self.provenance(store) is None

    @pytest.mark.parametrize(
        "damage",
        [
            lambda path: path.write_bytes(path.read_bytes()[:-5]),
            lambda path: path.write_bytes(path.read_bytes().replace(b'"version": 1', b'"version": 0')),
            lambda path: path.write_bytes(b""),
            lambda path: path.write_bytes(path.read_bytes() + bytes(1 << 20)),
            lambda path: path.chmod(0o666),
            lambda path: os.chown(path, 12345, -1),
            lambda path: (path.rename(path.with_suffix(".away")), path.symlink_to(path.with_suffix(".away"))),
            lambda path: (path.unlink(), path.mkdir()),
            lambda path: (path.unlink(), os.mkfifo(path)),
        ],
        ids=["torn", "older", "empty", "long", "writable", "somebody's", "link", "folder", "fifo"],
    )
    async def test_that_is_damaged_or_not_ours_is_ignored(
        self, tmp_path: Path, store: DirectoryStore, damage: Callable[[Path], object]
    ) -> None:
        await converted(store)
        damage(tmp_path / ".kvmd" / "disk.record")
        assert await self.provenance(store) is None
        assert (tmp_path / "disk").read_bytes() == RAW

    async def test_that_belongs_to_another_volume_is_ignored(self, tmp_path: Path, store: DirectoryStore) -> None:
        await make(store)
        made = await converted(store, asked=request("other", size=len(IMAGE)))
        shutil.copy(tmp_path / ".kvmd" / "other.record", tmp_path / ".kvmd" / "disk.record")
        assert made.provenance is not None
        assert await self.provenance(store) is None

    async def test_that_was_written_before_a_crash_does_not_speak_of_the_volume_of_before(
        self, tmp_path: Path, store: DirectoryStore
    ) -> None:
        old = await make(store)
        async with sealed(store, asked=request(key="f" * 16, size=len(IMAGE))) as (volume, stored):
            made = await volume.convert(stored.image, CONVERTER)
            record = Record(made.placement.digest, "f" * 16, NOW, MADE)
            (tmp_path / ".kvmd" / "disk.record").write_bytes(record.encode())
            assert await self.provenance(store) is None
            await volume.commit(replaces=old)
        assert await self.provenance(store) == MADE


async def test_what_a_crash_after_the_rename_leaves_goes_when_the_volume_is_found(
    tmp_path: Path, store: DirectoryStore
) -> None:
    made = await converted(store)
    for kind in ("part", "json", "raw"):
        (tmp_path / ".kvmd" / f"disk.0123456789abcdef.{kind}").write_bytes(b"left")
    (tmp_path / ".kvmd" / "disk.fedcba9876543210.part").write_bytes(b"another")
    await store.find("disk", known=made.placement, algorithm=Algorithm.SHA_256)
    assert left(tmp_path) == ["disk.fedcba9876543210.part", "disk.record"]


class TestFailing:
    """What goes wrong leaves nothing but the download, which is gone on from."""

    async def again(self, store: DirectoryStore) -> None:
        """See that the download is whole, and convert it."""
        volume = await store.open(request(size=len(IMAGE)))
        try:
            assert volume.checkpoint is not None
            assert volume.checkpoint.stored.length == len(IMAGE)
            stored = await volume.seal(len(IMAGE))
            assert isinstance(stored, Stored)
            await volume.convert(stored.image, CONVERTER)
            await volume.commit()
        finally:
            await volume.close(discard=False)

    async def test_a_pool_without_room_for_both_is_told_before_anything_is_written(
        self, tmp_path: Path, executor: ThreadPoolExecutor
    ) -> None:
        with tmpfs(tmp_path, size=3 * len(IMAGE) // 2) as folder:
            store = DirectoryStore("small", folder, executor=executor)
            async with sealed(store) as (volume, stored):
                with pytest.raises(
                    NoSpaceError, match=r"needs \d+ bytes for its raw form .* \d+ are free; the download is kept"
                ):
                    await volume.convert(stored.image, CONVERTER)
            assert left(folder) == ["disk.0123456789abcdef.json", "disk.0123456789abcdef.part"]
            subprocess.run(["mount", "-o", "remount,size=32M", folder], check=True)
            await self.again(store)
            assert (folder / "disk").read_bytes() == RAW

    async def test_what_the_raw_form_takes_is_counted_for_others(
        self, tmp_path: Path, executor: ThreadPoolExecutor
    ) -> None:
        with tmpfs(tmp_path, size=32 * MIB) as folder:
            store = DirectoryStore("small", folder, executor=executor, allocation=Allocation.DENSE)
            async with sealed(store) as (volume, stored):
                await volume.convert(stored.image, CONVERTER)
                with pytest.raises(NoSpaceError):
                    await store.open(request("other", size=20 * MIB))
                await volume.commit()
            other = await store.open(request("other", size=8 * MIB))
            await other.close(discard=True)

    async def test_a_pool_that_becomes_full_meanwhile_keeps_the_download(
        self, tmp_path: Path, executor: ThreadPoolExecutor, fake: Callable[[str], Path]
    ) -> None:
        real = require_program("qemu-img")
        with tmpfs(tmp_path, size=5 * MIB // 2) as folder:
            little = '{"required": 1000}'
            fake(f"[ $1 = measure ] && echo '{little}' && exit 0\nexec {real} \"$@\"")
            full = images.qcow2(SIZE, data_size=3 * MIB // 2)
            store = DirectoryStore("small", folder, executor=executor)
            async with sealed(store, full) as (volume, stored):
                with pytest.raises(NoSpaceError, match="No space left on device"):
                    await volume.convert(stored.image, CONVERTER)
            assert left(folder) == ["disk.0123456789abcdef.json", "disk.0123456789abcdef.part"]

    async def test_a_converter_that_fails_does_no_harm_to_the_download(
        self, tmp_path: Path, store: DirectoryStore, fake: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = os.environ["PATH"]
        fake("exit 9")
        async with sealed(store) as (volume, stored):
            with pytest.raises(ConvertError):
                await volume.convert(stored.image, CONVERTER)
        assert left(tmp_path) == ["disk.0123456789abcdef.json", "disk.0123456789abcdef.part"]
        monkeypatch.setenv("PATH", path.partition(os.pathsep)[2])
        await self.again(store)

    async def test_what_an_attempt_before_has_left_of_the_raw_form_goes(
        self, tmp_path: Path, store: DirectoryStore
    ) -> None:
        async with sealed(store):
            pass
        (tmp_path / ".kvmd" / "disk.0123456789abcdef.raw").write_bytes(b"half")
        await self.again(store)
        assert left(tmp_path) == ["disk.record"]

    async def test_a_process_that_could_still_write_to_it_is_found_out(
        self, tmp_path: Path, store: DirectoryStore, fake: Callable[[str], Path]
    ) -> None:
        real = require_program("qemu-img")
        stays = 'setsid sleep 32 <&- >&- 2>&- 3<> "${11}"'
        fake(f'[ $1 = convert ] && ({stays} &)\nexec {real} "$@"')
        try:
            async with sealed(store) as (volume, stored):
                with pytest.raises(ConvertError, match="could still write to it"):
                    await volume.convert(stored.image, CONVERTER)
        finally:
            for one in psutil.process_iter(["cmdline"]):
                if one.info["cmdline"] == ["sleep", "32"]:
                    one.kill()
        assert left(tmp_path) == ["disk.0123456789abcdef.json", "disk.0123456789abcdef.part"]

    async def test_nobody_else_can_get_at_the_file_meanwhile(self, tmp_path: Path, store: DirectoryStore) -> None:
        (tmp_path / ".kvmd").mkdir(mode=0o777)
        (tmp_path / ".kvmd").chmod(0o777)
        await converted(store)
        assert (tmp_path / ".kvmd").stat().st_mode & 0o007 == 0
