"""What every source must do: a suite to inherit from, with a fixture ``origin`` of one's own."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import pytest

from kvmd.core.entity import Entity
from kvmd.core.ranges import ByteRange
from kvmd.errors import EntityChangedError, SourceError
from kvmd.ports import Source
from kvmwire.codes import FailureCode
from tests.support.contents import GeneratedContent
from tests.support.waiting import eventually

CONTENT = GeneratedContent(3_000_001).read(0, 3_000_001)
BLOCK = 256 << 10
HEAD = 64 << 10


class Origin(Protocol):
    """Files that can be changed, and sources of them."""

    @property
    def root(self) -> Path:
        """The folder that is served."""
        ...

    def open(self, name: str) -> Source:
        """Give a source of a file below ``root``."""
        ...

    async def close(self) -> None:
        """Close what the sources have open."""
        ...


def put(origin: Origin, name: str, content: bytes) -> Source:
    """Write a file that is a while old, in place of what has the name, and give its source."""
    path = origin.root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(path.name + ".new")
    fresh.write_bytes(content)
    os.utime(fresh, (1_700_000_000, 1_700_000_000))
    fresh.rename(path)
    return origin.open(name)


async def fetch(source: Source, wanted: ByteRange | None, entity: Entity, *, block: int = BLOCK) -> bytes:
    """Read a range, copying each block while it is valid."""
    async with source.read(wanted, entity, block=block) as chunks:
        return b"".join([bytes(chunk) async for chunk in chunks])


def descriptors() -> int:
    """Count what this process has open."""
    return len(os.listdir("/proc/self/fd"))


class SourceContract:
    """The tests."""

    async def test_a_probe_tells_size_ranges_and_head(self, origin: Origin) -> None:
        head = await put(origin, "disk", CONTENT).probe()
        assert head.entity.size == len(CONTENT)
        assert head.entity.has_ranges
        assert head.entity.validator is not None
        assert head.head == CONTENT[:HEAD]

    async def test_two_probes_of_one_file_agree_and_of_another_do_not(self, origin: Origin) -> None:
        source = put(origin, "disk", CONTENT)
        first, second = await source.probe(), await source.probe()
        other = await put(origin, "other", CONTENT[:-1]).probe()
        assert first.entity.is_surely_same(second.entity)
        assert not first.entity.is_same(other.entity)

    @pytest.mark.parametrize(
        "wanted",
        [
            ByteRange(0, 1),
            ByteRange(0, len(CONTENT)),
            ByteRange(1, 4096),
            ByteRange(4097, 2_000_003),
            ByteRange(len(CONTENT) - 1, len(CONTENT)),
            ByteRange(len(CONTENT) - 700_001, len(CONTENT)),
        ],
        ids=lambda wanted: f"{wanted.start}-{wanted.end}",
    )
    async def test_a_range_is_read_exactly(self, origin: Origin, wanted: ByteRange) -> None:
        source = put(origin, "disk", CONTENT)
        got = await fetch(source, wanted, (await source.probe()).entity)
        assert got == CONTENT[wanted.start : wanted.end]

    async def test_the_whole_file_is_read_without_a_range(self, origin: Origin) -> None:
        source = put(origin, "disk", CONTENT)
        assert await fetch(source, None, (await source.probe()).entity) == CONTENT

    async def test_a_file_of_one_byte(self, origin: Origin) -> None:
        source = put(origin, "disk", b"x")
        head = await source.probe()
        assert (head.entity.size, head.head) == (1, b"x")
        assert await fetch(source, ByteRange(0, 1), head.entity) == b"x"

    async def test_an_empty_file_is_refused(self, origin: Origin) -> None:
        assert await _code_of(put(origin, "disk", b"")) == FailureCode.EMPTY

    async def test_a_missing_file_is_a_final_status(self, origin: Origin) -> None:
        assert await _code_of(origin.open("missing")) == FailureCode.SOURCE_STATUS

    async def test_a_name_that_a_shell_would_obey_is_only_a_name(self, origin: Origin) -> None:
        name = "a folder, rw/$(touch pwned); `id` & 'quoted' \"twice\" %41 ü.img"
        source = put(origin, name, CONTENT)
        assert await fetch(source, ByteRange(5, 5000), (await source.probe()).entity) == CONTENT[5:5000]

    async def test_a_replaced_file_is_another_entity(self, origin: Origin) -> None:
        source = put(origin, "disk", CONTENT)
        before = (await source.probe()).entity
        put(origin, "disk", b"#" + CONTENT)
        with pytest.raises(EntityChangedError):
            await fetch(source, ByteRange(0, 100), before)

    async def test_a_rewritten_file_of_the_same_size_is_another_entity(self, origin: Origin) -> None:
        source = put(origin, "disk", CONTENT)
        before = (await source.probe()).entity
        (origin.root / "disk").write_bytes(CONTENT[::-1])
        with pytest.raises(EntityChangedError):
            await fetch(source, ByteRange(0, 100), before)

    async def test_parallel_ranges_of_one_source_are_right(self, origin: Origin) -> None:
        source = put(origin, "disk", CONTENT)
        entity = (await source.probe()).entity
        wanted = [ByteRange(start, min(start + 300_007, len(CONTENT))) for start in range(0, len(CONTENT), 300_007)]
        assert b"".join(await _fetch_all(source, wanted, entity)) == CONTENT

    async def test_a_stream_that_is_left_early_does_not_disturb_the_next(self, origin: Origin) -> None:
        source = put(origin, "disk", CONTENT)
        entity = (await source.probe()).entity
        async with source.read(None, entity, block=BLOCK) as chunks:
            assert await anext(chunks)
        assert await fetch(source, None, entity) == CONTENT

    async def test_cancelled_reads_leak_nothing(self, origin: Origin) -> None:
        source = put(origin, "disk", CONTENT)
        entity = (await source.probe()).entity
        await fetch(source, None, entity)
        await origin.close()
        before = descriptors()
        for _ in range(10):
            await _cancel_midway(source, entity)
        assert await fetch(source, ByteRange(7, 7777), entity) == CONTENT[7:7777]
        await origin.close()
        await eventually(lambda: descriptors() <= before, timeout_s=30, what=f"no more than {before} descriptors")
        assert asyncio.all_tasks() == {asyncio.current_task()}


async def _fetch_all(source: Source, wanted: Iterable[ByteRange], entity: Entity) -> Sequence[bytes]:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(fetch(source, one, entity)) for one in wanted]
    return [task.result() for task in tasks]


async def _cancel_midway(source: Source, entity: Entity) -> None:
    """Cancel a stream between its first block and its end."""
    started = asyncio.Event()

    async def read() -> None:
        while True:
            async with source.read(None, entity, block=16 << 10) as chunks:
                async for _ in chunks:
                    started.set()

    async with asyncio.TaskGroup() as group:
        task = group.create_task(read())
        await started.wait()
        task.cancel()


async def _code_of(source: Source) -> FailureCode:
    with pytest.raises(SourceError) as caught:
        await source.probe()
    return caught.value.code
