"""What every store must do: a suite to inherit from, with fixtures ``store`` and ``volume_bytes`` of one's own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from kvmd.core.backing import Dependents
from kvmd.core.checkpoint import Checkpoint
from kvmd.core.entity import Entity
from kvmd.core.image import inspect_head
from kvmd.core.overlay import Backing, overlay
from kvmd.core.placement import Placement
from kvmd.core.ranges import ByteRange, RangeSet
from kvmd.errors import ExistsError, InUseError, NoSpaceError, StoreError
from kvmd.ports import PoolStore, Store, Volume, VolumeRequest
from kvmd.store.inline import Inline
from kvmwire.digest import Algorithm, Digest
from kvmwire.status import PoolState
from tests.support.contents import hexdigest
from tests.support.images import raw

SIZE = 256 << 10
CONTENT = raw(SIZE)
HALF = SIZE // 2
ENTITY = Entity(size=SIZE, has_ranges=True, etag='"1"')
ReadVolume = Callable[[str], bytes | None]


def always(_: Checkpoint) -> bool:
    """Resume whatever is there."""
    return True


def request(
    name: str = "disk",
    *,
    key: str = "0123456789abcdef",
    size: int | None = SIZE,
    algorithm: Algorithm = Algorithm.SHA_256,
    resumes: Callable[[Checkpoint], bool] = always,
) -> VolumeRequest:
    """Ask for a partial volume."""
    return VolumeRequest(name=name, key=key, size=size, algorithms=(algorithm,), resumes=resumes)


def digest(content: bytes, algorithm: Algorithm = Algorithm.SHA_256) -> Digest:
    """Give the digest by hashlib."""
    return Digest(algorithm, hexdigest(content, algorithm.value.lower().replace("-", "")))


async def make(
    store: Store,
    name: str = "disk",
    content: bytes = CONTENT,
    *,
    key: str = "0" * 16,
    replaces: Placement | None = None,
) -> Placement:
    """Make a finished volume."""
    volume = await store.open(request(name, key=key, size=len(content)))
    try:
        await volume.write(0, content)
        await volume.seal(len(content))
        return await volume.commit(replaces=replaces)
    finally:
        await volume.close(discard=False)


async def keep_half(store: Store, name: str = "disk", *, key: str = "0123456789abcdef") -> None:
    """Leave a partial volume whose first half is synced and journaled."""
    volume = await store.open(request(name, key=key))
    await volume.write(0, CONTENT[:HALF])
    await volume.save(Checkpoint(ENTITY, stored=RangeSet((ByteRange(0, HALF),))))
    await volume.close(discard=False)


class StoreContract:
    """The suite."""

    async def test_a_volume_is_replaced_where_it_is_that_very_file(
        self, store: PoolStore, volume_bytes: ReadVolume
    ) -> None:
        old, content = await make(store), bytes(SIZE)
        assert not (await make(store, content=content, replaces=old)).is_same_file(old)
        assert volume_bytes("disk") == content
        with pytest.raises(ExistsError, match="left as it is"):
            await make(store, replaces=old)
        assert volume_bytes("disk") == content

    async def test_a_volume_is_read_again_from_the_disk_at_a_rate(self, store: PoolStore) -> None:
        placement = await make(store)
        begun = time.monotonic()
        assert await store.reread(placement, rate=2 * SIZE) == placement
        assert time.monotonic() - begun >= 0.2  # half a second, of which a quarter may go at once
        gone = replace(placement, path=f"{placement.path}-gone", inode=placement.inode + 1)
        assert await store.reread(gone, rate=0) is None

    async def test_written_sealed_and_committed_bytes_are_the_volume(
        self, store: Store, volume_bytes: ReadVolume
    ) -> None:
        volume = await store.open(request())
        assert volume.checkpoint is None
        await volume.write(HALF, memoryview(CONTENT)[HALF:])
        await volume.write(0, CONTENT[:HALF])
        sealed = await volume.seal(SIZE)
        assert sealed.image == inspect_head(CONTENT, size=len(CONTENT))
        assert volume_bytes("disk") is None
        placement = await volume.commit()
        await volume.close(discard=False)
        assert placement.digest == sealed.placement.digest == digest(CONTENT)
        assert placement.size == SIZE
        assert volume_bytes("disk") == CONTENT

    @pytest.mark.parametrize("algorithm", [Algorithm.MD5, Algorithm.SHA_512, Algorithm.SHA_1])
    async def test_the_digest_is_of_the_algorithm_asked_for(self, store: Store, algorithm: Algorithm) -> None:
        volume = await store.open(request(algorithm=algorithm))
        await volume.write(0, CONTENT)
        assert (await volume.seal(SIZE)).placement.digest == digest(CONTENT, algorithm)
        await volume.close(discard=True)

    async def test_nothing_is_committed_that_was_not_sealed(self, store: Store, volume_bytes: ReadVolume) -> None:
        volume = await store.open(request())
        await volume.write(0, CONTENT)
        with pytest.raises(StoreError):
            await volume.commit()
        await volume.close(discard=True)
        assert volume_bytes("disk") is None

    async def test_a_saved_part_is_gone_on_from(self, store: Store, volume_bytes: ReadVolume) -> None:
        await keep_half(store)
        volume = await store.open(request())
        assert volume.checkpoint is not None
        assert volume.checkpoint.stored == RangeSet((ByteRange(0, HALF),))
        await volume.write(HALF, CONTENT[HALF:])
        assert (await volume.seal(SIZE)).placement.digest == digest(CONTENT)
        await volume.commit()
        await volume.close(discard=False)
        assert volume_bytes("disk") == CONTENT

    async def test_a_part_that_may_not_be_gone_on_from_is_begun_anew(self, store: Store) -> None:
        await keep_half(store)
        volume = await store.open(request(resumes=lambda _: False))
        assert volume.checkpoint is None
        await volume.write(0, bytes(SIZE - 1) + b"\x01")
        assert (await volume.seal(SIZE)).placement.digest == digest(bytes(SIZE - 1) + b"\x01")
        await volume.close(discard=True)

    async def test_parts_of_other_contents_are_kept_apart(self, store: Store) -> None:
        await keep_half(store, key="a" * 16)
        volume = await store.open(request(key="b" * 16))
        assert volume.checkpoint is None
        await volume.close(discard=True)
        again = await store.open(request(key="a" * 16))
        assert again.checkpoint is not None
        await again.close(discard=True)

    async def test_what_is_discarded_is_not_gone_on_from(self, store: Store) -> None:
        await keep_half(store)
        await store.discard("disk")
        volume = await store.open(request())
        assert volume.checkpoint is None
        await volume.close(discard=True)

    async def test_discarding_leaves_what_is_worked_on(self, store: Store, volume_bytes: ReadVolume) -> None:
        volume = await store.open(request())
        await volume.write(0, CONTENT)
        await store.discard("disk")
        await volume.seal(SIZE)
        await volume.commit()
        await volume.close(discard=False)
        assert volume_bytes("disk") == CONTENT

    async def test_one_part_is_worked_on_by_one_only(self, store: Store) -> None:
        volume = await store.open(request())
        with pytest.raises(InUseError):
            await store.open(request())
        await volume.close(discard=True)
        again = await store.open(request())
        await again.close(discard=True)

    async def test_space_is_taken_before_the_first_byte(self, store: Store) -> None:
        with pytest.raises(NoSpaceError, match="are free"):
            await store.open(request(size=1 << 60))
        await store.discard("disk")

    async def test_a_taken_name_is_never_replaced(self, store: Store, volume_bytes: ReadVolume) -> None:
        late = await store.open(request(key="a" * 16))
        await late.write(0, CONTENT)
        await late.seal(SIZE)
        await make(store, content=b"first" * 1000, key="b" * 16)
        with pytest.raises(ExistsError):
            await late.commit()
        await late.close(discard=True)
        assert volume_bytes("disk") == b"first" * 1000

    async def test_an_operation_on_a_closed_volume_is_refused(self, store: Store) -> None:
        volume = await store.open(request())
        await volume.close(discard=True)
        await volume.close(discard=True)
        with pytest.raises(StoreError):
            await volume.write(0, b"late")

    async def test_a_volume_is_found_and_read_again(self, store: Store) -> None:
        assert await store.find("disk", known=None, algorithm=Algorithm.SHA_256) is None
        placement = await make(store)
        found = await store.find("disk", known=None, algorithm=Algorithm.SHA_256)
        assert found is not None
        assert found.placement == placement
        assert found.image == inspect_head(CONTENT, size=len(CONTENT))

    async def test_a_known_volume_is_found_without_reading(self, store: Store) -> None:
        placement = await make(store)
        found = await store.find("disk", known=placement, algorithm=Algorithm.SHA_256)
        assert found is not None
        assert found.placement == placement

    async def test_another_algorithm_than_the_known_one_is_read(self, store: Store) -> None:
        placement = await make(store)
        found = await store.find("disk", known=placement, algorithm=Algorithm.SHA_512)
        assert found is not None
        assert found.placement.digest == digest(CONTENT, Algorithm.SHA_512)

    async def test_exactly_the_placed_volume_is_removed(self, store: Store, volume_bytes: ReadVolume) -> None:
        placement = await make(store)
        assert await store.remove(placement)
        assert volume_bytes("disk") is None
        assert not await store.remove(placement)
        await make(store, content=b"next" * 100)
        assert not await store.remove(placement)
        assert volume_bytes("disk") == b"next" * 100

    async def test_a_cancelled_write_does_not_outlive_its_volume(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Inline, "is_allowed", lambda _: False)
        volume = await store.open(request(size=64 << 20))
        writing = asyncio.create_task(volume.write(0, bytes([7]) * (64 << 20)))
        await asyncio.sleep(0)
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing
        await volume.close(discard=True)
        await self._can_be_opened(store)

    async def test_a_cancelled_opening_holds_no_lock(self, store: Store) -> None:
        opening = asyncio.create_task(store.open(request()))
        await asyncio.sleep(0)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        await self._can_be_opened(store)

    async def test_some_bytes_have_the_digest_of_some_bytes(self, store: Store) -> None:
        volume = await store.open(request())
        await volume.write(0, CONTENT)
        assert await volume.digest(ByteRange(5, 105), Algorithm.MD5) == digest(CONTENT[5:105], Algorithm.MD5)
        await volume.close(discard=True)

    async def test_all_digests_that_are_asked_for_are_taken(self, store: Store) -> None:
        asked = (Algorithm.SHA_512, Algorithm.MD5, Algorithm.SHA_224)
        volume = await store.open(replace(request(), algorithms=asked))
        await volume.write(0, CONTENT)
        stored = await volume.seal(SIZE)
        assert (stored.placement.digest, *stored.digests) == tuple(digest(CONTENT, one) for one in asked)
        await volume.close(discard=True)

    async def test_what_is_written_again_counts_where_the_request_says_so(self, store: Store) -> None:
        volume = await store.open(replace(request(), is_rewritten=True))
        await volume.write(0, bytes(SIZE))
        await volume.write(0, CONTENT)
        stored = await volume.seal(SIZE)
        assert stored.placement.digest == digest(CONTENT)
        await volume.close(discard=True)

    async def test_the_state_and_the_space_are_told(self, store: Store) -> None:
        status = await store.status()
        assert status.state is PoolState.ACTIVE
        assert status.capacity is not None
        assert status.available is not None
        assert 0 < status.available <= status.capacity

    async def _can_be_opened(self, store: Store) -> None:
        volume: Volume = await store.open(request())
        await volume.close(discard=True)


class FolderContract(StoreContract):
    """The suite for stores whose volumes are files."""

    async def test_what_reads_from_a_volume_is_found(self, store: PoolStore) -> None:
        placement = await make(store)
        assert await store.dependents(placement.path) == Dependents()
        disk = Path(placement.path).with_name("vm1.qcow2")
        disk.write_bytes(overlay(1 << 30, Backing(placement.path, "raw")))
        assert await store.dependents(placement.path) == Dependents((str(disk),))
        assert await store.dependents(str(disk)) == Dependents()

    async def test_what_reads_from_a_volume_by_another_name_of_its_folder_is_found(
        self, store: PoolStore, tmp_path: Path
    ) -> None:
        placement = await make(store)
        folder, name = Path(placement.path).parent, Path(placement.path).name
        (tmp_path / "alias").symlink_to(folder)
        disks = [folder / "vm1.qcow2", folder / "vm2.qcow2"]
        disks[0].write_bytes(overlay(1 << 30, Backing(str(tmp_path / "alias" / name), "raw")))
        disks[1].write_bytes(overlay(1 << 30, Backing(f"/{placement.path}", "raw")))
        assert await store.dependents(placement.path) == Dependents(tuple(map(str, disks)))
