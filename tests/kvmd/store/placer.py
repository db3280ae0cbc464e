"""A program that downloads a raw image in one block into a block pool, begun by a line on stdin: to be killed while it does so.

Arguments: libvirt's URI, the pool, the staging folder, the image's file, and the units that may be overwritten.
"""

from __future__ import annotations

import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from kvmd.core.checkpoint import Checkpoint
from kvmd.core.entity import Entity
from kvmd.core.ranges import ByteRange, RangeSet
from kvmd.hypervisor.connection import Connection
from kvmd.ports import VolumeRequest
from kvmd.store.block.store import BlockStore
from kvmd.store.directory import DirectoryStore
from kvmwire.digest import Algorithm

NAME, KEY = "disk", "0123456789abcdef"


def say(word: str) -> None:
    """Tell how far it is."""
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


async def main(uri: str, pool: str, staging: Path, image: bytes, units: list[str]) -> None:
    """Go on from what is staged, and place it."""
    connection = Connection(uri)
    with ThreadPoolExecutor(4) as threads:
        store = BlockStore(
            "pool",
            pool,
            connection,
            staging=DirectoryStore("pool", staging, executor=threads),
            notes=staging / "placed",
            units=units,
            is_sparse=True,
            executor=threads,
        )
        await store.status()
        say("loaded")
        await asyncio.to_thread(sys.stdin.readline)
        found = await store.find(NAME, known=None, algorithm=Algorithm.SHA_256)
        if found is None:
            await place(store, image)
        say("ready")
    await connection.close()


async def place(store: BlockStore, image: bytes) -> None:
    """Write what is missing, save it, and commit."""
    size = len(image)
    request = VolumeRequest(NAME, KEY, size=size, algorithms=(Algorithm.SHA_256,), resumes=lambda _: True)
    volume = await store.open(request)
    if volume.checkpoint is None:
        say("fetching")
        await volume.write(0, image)
        await volume.save(Checkpoint(Entity(size, has_ranges=True), stored=RangeSet((ByteRange(0, size),))))
    say("staged")
    await volume.seal(size)
    await volume.commit()
    await volume.close(discard=False)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]).read_bytes(), sys.argv[5:]))
