"""Asks sources what they have, all at once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace

from kvmd.core.digests import conflict
from kvmd.core.entity import Entity
from kvmd.core.image import ImageHead, ImagePolicy, check, inspect_head
from kvmd.core.metalink import is_metalink
from kvmd.core.ranges import ByteRange
from kvmd.errors import ChecksumConflictError, ContentError, InternalError, KvmdError, SourceError, TooLargeError
from kvmd.log import get_logger
from kvmd.ports import Clock, Head, Source
from kvmwire.digest import Digest
from kvmwire.events import ImageFormat
from kvmwire.source import SourceUrl

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Finding:
    """What one source answered: a head that can be used, or why it cannot be. ``seconds`` is how long that took."""

    url: SourceUrl
    seconds: float
    head: Head | None = None
    image: ImageHead | None = None
    error: KvmdError | None = None

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
    max_virtual_size: int = 0
    expected: Digest | None = None
    images: ImagePolicy = ImagePolicy()


async def probe_one(source: Source, wish: Wish, clock: Clock) -> Finding:
    """Probe one source. Errors are part of the answer."""
    started = clock.monotonic()
    head: Head | None = None
    image: ImageHead | None = None
    error: KvmdError | None = None
    try:
        head = await source.probe()
        if not is_metalink(source.url, head.media_type):
            image = judge_head(source.url, head, wish)
            if image.wanted_head is not None and head.entity.has_ranges:
                more = await _read_head(source, head, image.wanted_head)
                image = judge_head(source.url, replace(head, head=more), wish)
    except (SourceError, ContentError, InternalError) as exc:
        error = exc
    except Exception as exc:  # noqa: BLE001 - one source must not take the others with it
        log.unexpected("probe failed unexpectedly", exc, source=source.url)
        error = InternalError(f"source {source.url}: {type(exc).__name__} while probing.")
    return Finding(source.url, clock.monotonic() - started, head, image, error)


async def _read_head(source: Source, head: Head, size: int) -> bytes:
    """Read the first ``size`` bytes, of which the probe gave some: few formats hide what matters so far inside."""
    found = bytearray(head.head)
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


def judge_head(url: SourceUrl, head: Head, wish: Wish) -> ImageHead:
    """Decide from the first bytes whether the source can be used. Raises SourceError or ContentError."""
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
    image = inspect_head(head.head, size=size)
    check(image, wish.format, policy=wish.images, max_virtual_size=wish.max_virtual_size)
    return image
