"""Blocks of many streams land on a real volume at once: what the caller is told always adds up to what is there."""

from __future__ import annotations

import asyncio
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kvmd.clock import SystemClock
from kvmd.core.entity import Entity
from kvmd.core.manifest import Pieces
from kvmd.core.ranges import ByteRange, RangeSet
from kvmd.engine import landing as landing_module
from kvmd.engine.landing import Landing
from kvmd.ports import VolumeRequest
from kvmd.store.directory import DirectoryStore
from kvmwire.digest import Algorithm, Digest
from tests.support.contents import GeneratedContent
from tests.support.metalinks import MetalinkFile

KIB = 1 << 10
PIECE = 4 * KIB
SIZE = 200 * KIB + 100
CONTENT = GeneratedContent(SIZE, seed=6)
LIARS = frozenset({1, 3})
STREAMS = 8
WHOLE = RangeSet((ByteRange(0, SIZE),))


class Streams:
    """Streams that put overlapping blocks, some of them false, until nothing is missing; ``told`` is what the landing said."""

    def __init__(self, landing: Landing, chance: random.Random) -> None:
        self.landing = landing
        self.chance = chance
        self.told = RangeSet()
        self.liars = set[int]()

    async def run(self, mirror: int) -> None:
        while (
            mirror not in self.liars and self.landing.stored != WHOLE
        ):  # what is being judged may yet be missing again
            missing = self.told.missing(SIZE).ranges
            if missing:
                await self.put(mirror, self.chance.choice(missing))
            await asyncio.sleep(0)  # nothing of it was fresh: let those go on who have it

    async def put(self, mirror: int, gap: ByteRange) -> None:
        start = max(0, gap.start - self.chance.choice([0, 1000, PIECE]))
        end = min(SIZE, start + self.chance.choice([700, PIECE, 3 * PIECE + 5, 8 * PIECE]))
        block = CONTENT.read(start, end - start)
        if mirror in LIARS and self.chance.random() < 0.5:
            block = bytes(byte ^ 255 for byte in block)
        fresh = await self.landing.put(ByteRange(start, end), block, mirror=mirror)
        for part in fresh:
            assert self.told.missing_in(part) == [part]
            self.told = self.told.add(part)
        judged = await self.landing.prove(fresh)
        for piece in judged.wrong:
            assert self.told.covers(piece)
            self.told = self.told.without(piece)
        self.liars |= judged.liars


@pytest.mark.parametrize("seed", range(12))
async def test_what_is_told_adds_up_and_every_piece_is_right_in_the_end(tmp_path: Path, seed: int) -> None:
    pieces = Pieces(
        PIECE, tuple(Digest(Algorithm.SHA_256, value) for value in MetalinkFile(CONTENT, (), piece=PIECE).pieces())
    )
    with ThreadPoolExecutor(4) as executor:
        store = DirectoryStore("pool", tmp_path, executor=executor)
        request = VolumeRequest("disk", "0" * 16, SIZE, (Algorithm.SHA_256,), is_rewritten=True)
        volume = await store.open(request)
        landing = Landing(volume, Entity(SIZE, has_ranges=True), promised=(), pieces=pieces, clock=SystemClock())
        streams = Streams(landing, random.Random(seed))
        try:
            async with asyncio.timeout(10), asyncio.TaskGroup() as group:
                for mirror in range(STREAMS):
                    group.create_task(streams.run(mirror))
            assert landing.stored == WHOLE
            assert streams.liars <= LIARS
            await landing.save_finally()
            sealed = await volume.seal(SIZE)
            assert sealed.placement.digest.hex == MetalinkFile(CONTENT, ()).values()["sha-256"]
        finally:
            await volume.close(discard=True)


async def test_streams_wait_for_the_disk_when_too_much_is_not_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(landing_module, "WINDOW", 8 * KIB)
    monkeypatch.setattr(landing_module, "MAX_UNSAVED", 16 * KIB)
    with ThreadPoolExecutor(2) as executor:
        store = DirectoryStore("pool", tmp_path, executor=executor)
        volume = await store.open(VolumeRequest("disk", "0" * 16, SIZE, (Algorithm.SHA_256,)))
        landing = Landing(volume, Entity(SIZE, has_ranges=True), promised=(), pieces=None, clock=SystemClock())

        async def stream() -> None:
            for start in range(0, SIZE, PIECE):
                end = min(SIZE, start + PIECE)
                await landing.put(ByteRange(start, end), CONTENT.read(start, end - start), mirror=0)

        try:
            async with asyncio.timeout(10), asyncio.TaskGroup() as group:
                streaming = group.create_task(stream())
                for _ in range(50):
                    await asyncio.sleep(0)
                assert landing.stored.length == 20 * KIB
                saving = group.create_task(landing.save_regularly())
                await streaming
                saving.cancel()
            assert landing.stored == WHOLE
        finally:
            await volume.close(discard=True)
