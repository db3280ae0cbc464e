"""Asks sources what they have, all at once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace

from kvmd.core.compression import Compression, compression_of
from kvmd.core.digests import conflict
from kvmd.core.entity import Entity
from kvmd.core.image import HEAD_LIMIT, HEAD_SIZE, ImageHead, ImagePolicy, check, inspect_head
from kvmd.core.metalink import is_metalink
from kvmd.core.ranges import ByteRange
from kvmd.core.unpacking import unpacked_head
from kvmd.errors import ChecksumConflictError, ContentError, InternalError, KvmdError, SourceError, TooLargeError
from kvmd.log import get_logger
from kvmd.ports import Clock, Head, Source
from kvmwire.digest import Digest
from kvmwire.images import ImageFormat
from kvmwire.source import SourceUrl

log = get_logger(__name__)

PACKED_HEAD = 1 << 20
"""Compressed bytes that are read where the first range holds too little of the image: a block of bzip2 has up to 900 kB."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What one source answered: a head that can be used, or why it cannot be. ``seconds`` is how long that took.

    ``image`` is what is inside where ``compression`` is not None, and None where too little of that was seen.
    """

    url: SourceUrl
    seconds: float
    head: Head | None = None
    image: ImageHead | None = None
    error: KvmdError | None = None
    compression: Compression | None = None

    @property
    def is_document(self) -> bool:
        """Whether the source is no image, but a Metalink that describes one."""
        return self.head is not None and is_metalink(self.url, self.head.media_type)

    @property
    def entity(self) -> Entity | None:
        """What the source serves of the image, None where it cannot be used."""
        return None if self.head is None or self.error is not None or self.is_document else self.head.entity


@dataclass(frozen=True, slots=True)
class Wish:
    """What a head must be to be used. Sizes are bytes, 0 and None: no limit; ``expected`` is the digest that the event promises."""

    format: ImageFormat = ImageFormat.AUTO
    size: int | None = None
    max_size: int = 0
    expected: Digest | None = None
    images: ImagePolicy = ImagePolicy()
    decompress: bool = True

    def compression(self, head: bytes) -> Compression | None:
        """Tell how a file that begins so is compressed; None where it is not, or is to be stored as it is served."""
        return compression_of(head) if self.decompress else None


async def probe_one(source: Source, wish: Wish, clock: Clock) -> Finding:
    """Probe one source. Errors are part of the answer."""
    started = clock.monotonic()
    head: Head | None = None
    image: ImageHead | None = None
    error: KvmdError | None = None
    compression: Compression | None = None
    try:
        head = await source.probe()
        if not is_metalink(source.url, head.media_type):
            compression = wish.compression(head.head)
            image = await asyncio.to_thread(judge_head, source.url, head, wish)
            wanted = _wanted(image)
            if wanted is not None and head.entity.has_ranges:
                more = await _read_head(source, head, wanted if compression is None else PACKED_HEAD)
                image = await asyncio.to_thread(judge_head, source.url, replace(head, head=more), wish)
    except (SourceError, ContentError, InternalError) as exc:
        error = exc
    except Exception as exc:  # noqa: BLE001 - one source must not take the others with it
        log.unexpected("probe failed unexpectedly", exc, source=source.url)
        error = InternalError(f"source {source.url}: {type(exc).__name__} while probing.")
    return Finding(source.url, clock.monotonic() - started, head, image, error, compression)


async def _read_head(source: Source, head: Head, size: int) -> bytes:
    """Read the first ``size`` bytes, of which the probe gave some: few formats hide what matters so far inside."""
    found, size = bytearray(head.head), min(size, head.entity.size or size)
    if size <= len(found):
        return head.head
    rest = ByteRange(len(found), size)
    async with source.read(rest, head.entity, block=rest.end - rest.start) as blocks:
        async for block in blocks:
            found += block
    return bytes(found)


async def probe_all(sources: Sequence[Source], wish: Wish, clock: Clock) -> list[Finding]:
    """Probe every source at once and wait for all."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(probe_one(source, wish, clock)) for source in sources]
    return [task.result() for task in tasks]


async def probe_until_usable(
    sources: Sequence[Source], wish: Wish, clock: Clock, *, grace_s: float
) -> list[Finding | None]:
    """Probe every source at once; from the first usable answer on, wait only so long for the others (None: no answer yet)."""
    tasks: list[asyncio.Task[Finding]] = []
    deadline: float | None = None
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(probe_one(source, wish, clock)) for source in sources]
        pending = set(tasks)
        while pending:
            timeout = None if deadline is None else max(0.0, deadline - clock.monotonic())
            done, pending = await asyncio.wait(pending, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                break
            if deadline is None and any(task.result().error is None for task in done):
                deadline = clock.monotonic() + grace_s
        for task in pending:
            task.cancel()
    return [None if task.cancelled() else task.result() for task in tasks]


def _wanted(image: ImageHead | None) -> int | None:
    """Tell how many bytes of the image to look at once more, None where what was seen suffices."""
    return HEAD_SIZE if image is None else image.wanted_head


def judge_head(url: SourceUrl, head: Head, wish: Wish) -> ImageHead | None:
    """Decide from the first bytes whether the source can be used; None where they are compressed and hold too little to see.

    Raises SourceError or ContentError.
    """
    size = head.entity.size
    if wish.max_size and size is not None and size > wish.max_size:
        raise TooLargeError(f"source {url}: it has {size} bytes, policy.max_size allows {wish.max_size}; refused.")
    if wish.size is not None and size is not None and size != wish.size:
        raise TooLargeError(
            f"source {url}: {wish.size} bytes are promised, the source has {size}; refused.",
            hint="Correct the event's size, or the URL.",
        )
    other = conflict(wish.expected, head.manifest.digests) if wish.expected else None
    if other is not None:
        raise ChecksumConflictError(
            f"source {url}: expected {wish.expected}, the server says it has {other}; not used."
        )
    compression = wish.compression(head.head)
    content = head.head
    if compression is not None:
        content, is_whole = unpacked_head(compression, head.head, HEAD_LIMIT)
        size = len(content) if is_whole else None
        if size is None and len(content) < HEAD_SIZE:
            return None
    image = inspect_head(content, size=size)
    check(image, wish.format, policy=wish.images)
    return image
