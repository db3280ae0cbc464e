"""Fetches the missing bytes of one volume from all its mirrors at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from kvmd.core.checkpoint import Checkpoint
from kvmd.core.entity import Entity
from kvmd.core.gauge import Gauge, describe
from kvmd.core.mirrors import Mirror, is_exhausted, next_start, pick, serves_same, verdict
from kvmd.core.plan import MIB, Plan, Segment, segment_length
from kvmd.core.ranges import ByteRange, RangeSet
from kvmd.core.watch import SpeedWatch
from kvmd.engine.block import Block
from kvmd.engine.job import Limits
from kvmd.engine.probing import Wish, judge_head
from kvmd.engine.shaping import Shaper
from kvmd.errors import (
    ContentError,
    EntityChangedError,
    KvmdError,
    ProtocolError,
    SourceError,
    SourceExpiredError,
    SourceStalledError,
    SourceStatusError,
    TooLargeError,
    TransferError,
    leaves,
)
from kvmd.log import get_logger
from kvmd.ports import Clock, Source, Volume
from kvmwire.status import Progress

log = get_logger(__name__)

WINDOW = 32 * MIB
WINDOW_S = 2.0
"""A checkpoint is made after so many bytes, or so long after the last: what a crash costs at most."""
_JUDGED_AFTER_S = 1.0
"""A request is this old before its own speed counts against its source."""
_HOPED_BPS = 1.0 * MIB
"""An idle source that was never measured is tried for the bytes of one that is slower than this."""
_FINAL_SAVE_S = 5.0
_PROGRESS_S = 1.0


@dataclass(frozen=True, slots=True)
class Target:
    """What is fetched, and into what; ``has_checksum`` tells that a digest will prove the whole."""

    entity: Entity
    volume: Volume
    wish: Wish
    has_checksum: bool


class Transfer:
    """One download into one volume. Mirrors that fail are paused or banned; it fails when none is left.

    Without ranges use ``run_whole``: one stream from the first byte on, which a break puts back to the start.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        mirrors: Sequence[Mirror],
        target: Target,
        *,
        limits: Limits,
        shapers: Sequence[Shaper],
        clock: Clock,
        on_progress: Callable[[Progress], None],
    ) -> None:
        self._sources = sources
        self._mirrors = list(mirrors)
        self._target = target
        self._limits = limits
        self._shapers = shapers
        self._clock = clock
        self._on_progress = on_progress
        checkpoint = target.volume.checkpoint
        self._plan = Plan(target.entity.size or 0, checkpoint.stored if checkpoint else RangeSet())
        self._start = self._plan.stored.length
        self._saved = self._start
        self._received = 0
        self._changed = asyncio.Event()
        self._claimed = self._plan.stored
        self._running: dict[int, tuple[asyncio.Timeout, float]] = {}
        self._gauges: list[Gauge] = [Gauge(clock.monotonic()) for _ in mirrors]

    @property
    def mirrors(self) -> Sequence[Mirror]:
        """Where the mirrors stand."""
        return self._mirrors

    @property
    def has_progressed(self) -> bool:
        """Whether this attempt gained a byte."""
        return self._received > 0

    async def run(self) -> int:
        """Fetch by ranges until every byte is stored, and give the size. Raises TransferError or StoreError."""
        try:
            await self._with_helpers(self._work_all())
        finally:
            await self._save_finally()
        if not self._plan.is_done:
            raise TransferError(verdict(self._mirrors))
        return self._plan.size

    async def run_whole(self) -> int:
        """Fetch everything in one stream of one mirror, and give the size.

        Raises SourceError, after which the volume is of no use; ``mirrors`` tells whether another try makes sense.
        """
        index = pick(self._mirrors, self._clock.monotonic())
        if index is None:
            raise TransferError(verdict(self._mirrors))
        before = self._mirrors[index]
        try:
            await self._with_helpers(self._stream_whole(index))
        except SourceError as exc:
            self._mirrors[index] = before  # the bytes that came are lost, so they forgive nothing
            self._blame(index, exc)
            raise
        return self._plan.stored.frontier

    async def _with_helpers(self, work: Coroutine[None, None, None]) -> None:
        """Await the work while checkpoints are made and progress is told."""
        try:
            async with asyncio.TaskGroup() as group:
                helpers = [group.create_task(self._save_regularly()), group.create_task(self._tell_regularly())]
                await work
                for helper in helpers:
                    helper.cancel()
            self._tell()
        except BaseExceptionGroup as group_error:
            errors = leaves(group_error)
            raise next((error for error in errors if isinstance(error, KvmdError)), errors[0]) from group_error

    async def _work_all(self) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(self._limits.connections):
                group.create_task(self._work())

    async def _work(self) -> None:
        """Be one connection: take the next segment until there is nothing left to take."""
        while not self._plan.is_done and not is_exhausted(self._mirrors):
            now = self._clock.monotonic()
            chosen = self._choose(now)
            if chosen is None:
                await self._wait_for_change(now)
                continue
            await self._fetch(*chosen)

    def _choose(self, now: float) -> tuple[int, ByteRange] | None:
        index = pick(self._mirrors, now)
        if index is None:
            return None
        fresh = self._plan.next_range(segment_length(self._mirrors[index].rate_bps))
        return self._choose_takeover(now) if fresh is None else (index, fresh)

    def _choose_takeover(self, now: float) -> tuple[int, ByteRange] | None:
        """Find the fastest source that may be asked and would deliver running bytes of a slow one clearly earlier."""
        observed = self._observed_rates(now)
        rates = {i: _hoped_rate(mirror) for i, mirror in enumerate(self._mirrors) if mirror.can_start(now)}
        for index, rate in sorted(rates.items(), key=lambda item: -item[1]):
            wanted = self._plan.takeover(index, observed | {index: rate})
            if wanted is not None:
                return index, wanted
        return None

    def _observed_rates(self, now: float) -> dict[int, float]:
        """Give each source's rate, corrected by the slowest of its running requests; one not measured yet counts as fast."""
        rates = {index: mirror.rate_bps or float("inf") for index, mirror in enumerate(self._mirrors)}
        for segment in self._plan.segments:
            age = now - self._running[segment.id][1]
            if age >= _JUDGED_AFTER_S:
                rate = (segment.position - segment.range.start) / age
                rates[segment.mirror] = min(rates[segment.mirror], rate)
        return rates

    async def _fetch(self, index: int, wanted: ByteRange) -> None:
        """Fetch one segment from one mirror; a failure is the mirror's, and the bytes are missing again."""
        self._mirrors[index] = self._mirrors[index].started()
        self._plan, segment = self._plan.start(index, wanted)
        scope = asyncio.timeout(None)
        self._running[segment.id] = (scope, self._clock.monotonic())
        failed: KvmdError | None = None
        try:
            async with scope:
                entity = await self._entity_of(index)
                async with self._sources[index].read(wanted, entity) as chunks:
                    await self._receive(index, segment, chunks)
        except TimeoutError:
            if not scope.expired():
                raise
        except (SourceError, ContentError) as exc:
            failed = exc
        finally:
            del self._running[segment.id]
            self._plan = self._plan.end(segment.id)
            self._mirrors[index] = self._mirrors[index].ended()
            if failed is not None:
                self._blame(index, failed)
            self._notify()

    async def _entity_of(self, index: int) -> Entity:
        """Give what the mirror serves; one that had not answered in time is asked now."""
        known = self._mirrors[index].entity
        if known is not None:
            return known
        source = self._sources[index]
        head = await source.probe()
        judge_head(source.url, head, self._target.wish)
        chosen = self._target.entity
        is_same = head.entity == chosen or serves_same(head.entity, chosen, has_checksum=self._target.has_checksum)
        if not is_same or head.entity.has_ranges != chosen.has_ranges:
            raise EntityChangedError(f"source {source.url}: it serves another file than the other sources; not used.")
        self._mirrors[index] = replace(self._mirrors[index], entity=head.entity)
        return head.entity

    async def _receive(self, index: int, segment: Segment, chunks: AsyncIterator[bytes]) -> None:
        """Store a stream block by block, also what came before it broke."""
        started, now = segment.range.start, self._clock.monotonic
        began, block, is_alive = now(), Block(started, now()), True
        try:
            async for chunk in self._watched(index, chunks):
                block.add(chunk)
                if block.is_full(now()):
                    await self._store(index, segment, block)
                    block = block.next(now())
            await self._store(index, segment, block)
        except SourceError as exc:
            is_alive = not isinstance(exc, SourceStalledError)
            await self._store(index, segment, block)
            raise
        finally:
            self._measure(index, block.end - started, now() - began, is_alive=is_alive)

    def _measure(self, index: int, length: int, seconds: float, *, is_alive: bool) -> None:
        """Note how fast a stream was. Bytes forgive earlier failures, but those of a trickle do not: it would go on for ever."""
        mirror = self._mirrors[index].measured(max(1.0, length / max(1e-6, seconds)))
        self._mirrors[index] = mirror.received(0) if is_alive and length else mirror

    async def _watched(self, index: int, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Pass the chunks on, cut a trickle, and keep the rate limits."""
        watch, source, stall_timeout_s = SpeedWatch(), self._sources[index], self._limits.stall_timeout_s
        asked = self._clock.monotonic()
        async for chunk in chunks:
            watch = watch.heard(len(chunk), self._clock.monotonic() - asked)
            if watch.is_due(stall_timeout_s):
                if watch.is_too_slow:
                    raise SourceStalledError(f"source {source.url}: {watch}; the connection was cut.")
                watch = SpeedWatch()
            yield chunk
            for shaper in self._shapers:
                await shaper.spend(len(chunk))
            asked = self._clock.monotonic()

    async def _store(self, index: int, segment: Segment, block: Block) -> None:
        """Write those of the block's bytes that no other stream has written or is writing.

        No byte is written twice: the hash may have read it already, and another source's byte may be another one.
        """
        if not block.length:
            return
        fresh = [gap for gap in self._claimed.missing(block.end) if gap.end > block.position]
        self._claimed = self._claimed.add(block.range)
        for gap in fresh:
            piece = ByteRange(max(gap.start, block.position), gap.end)
            await self._target.volume.write(piece.start, block.cut(piece))
            self._plan = self._plan.store(segment.id, piece)
            self._received += piece.length
        self._count(index, block)
        self._cut_needless()
        if self._plan.is_done:
            self._notify()

    def _cut_needless(self) -> None:
        """End the streams whose missing bytes have all come from elsewhere: a slow one must not keep the rest waiting."""
        now = asyncio.get_running_loop().time()
        for segment in self._plan.segments:
            if segment.rest is not None and self._plan.is_needless(segment.id):
                self._running[segment.id][0].reschedule(now)

    async def _stream_whole(self, index: int) -> None:
        now = self._clock.monotonic
        self._mirrors[index] = self._mirrors[index].started()
        async with self._sources[index].read(None, await self._entity_of(index)) as chunks:
            block = Block(0, now())
            async for chunk in self._watched(index, chunks):
                block.add(chunk)
                if block.is_full(now()):
                    await self._store_whole(index, block)
                    block = block.next(now())
            await self._store_whole(index, block)
        got, promised = self._plan.stored.frontier, self._target.wish.size
        if promised is not None and got != promised:
            url = self._sources[index].url
            raise ProtocolError(f"source {url}: the event promises {promised} bytes, the source sent {got}; refused.")

    async def _store_whole(self, index: int, block: Block) -> None:
        if not block.length:
            return
        if self._limits.max_size and block.end > self._limits.max_size:
            raise TooLargeError(
                f"source {self._sources[index].url}: more than the {self._limits.max_size} bytes that policy.max_size allows; refused."
            )
        promised = self._target.wish.size
        if promised is not None and block.end > promised:
            raise TooLargeError(
                f"source {self._sources[index].url}: more than the {promised} bytes that the event promises; refused.",
                hint="Correct the event's size, or the URL.",
            )
        await self._target.volume.write(block.position, block.chunks)
        self._plan = replace(self._plan, stored=self._plan.stored.add(block.range))
        self._count(index, block)
        self._received += block.length

    def _count(self, index: int, block: Block) -> None:
        mirror = self._mirrors[index]
        self._mirrors[index] = replace(mirror, bytes=mirror.bytes + block.length)

    def _blame(self, index: int, error: KvmdError) -> None:
        mirror = self._mirrors[index]
        if isinstance(error, SourceStatusError) and mirror.entity is not None:
            error = SourceExpiredError(f"{error.message} It granted access before; what is stored is kept.")
        after = mirror.failed(
            error.failure,
            now=self._clock.monotonic(),
            jitter=self._clock.jitter(),
            retry_after_s=error.retry_after_s if isinstance(error, SourceError) else 0.0,
            is_throttle=isinstance(error, SourceError) and error.is_throttle,
        )
        self._mirrors[index] = after
        log.info(
            "source banned" if after.is_banned else "source paused",
            source=self._sources[index].url,
            code=error.code,
            message=error.message,
            failures=after.failures,
        )

    async def _wait_for_change(self, now: float) -> None:
        """Wait until something changed, or a paused source may be asked again."""
        changed, start = self._changed, next_start(self._mirrors)
        pause_s = 1.0 if start is None or start <= now else start - now
        with suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await changed.wait()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _save_regularly(self) -> None:
        """Make a checkpoint when enough was stored or enough time went by; the streams go on meanwhile."""
        last = self._clock.monotonic()
        while True:
            await asyncio.sleep(0.1)
            unsaved = self._plan.stored.length - self._saved
            elapsed_s = self._clock.monotonic() - last
            if unsaved >= WINDOW or (unsaved > 0 and elapsed_s >= WINDOW_S):
                await self._save()
                last = self._clock.monotonic()

    async def _save(self) -> None:
        stored = self._plan.stored
        await self._target.volume.save(Checkpoint(self._target.entity, self._target.has_checksum, stored))
        self._saved = stored.length

    async def _save_finally(self) -> None:
        """Keep what is stored, however it ended; a poisoned volume has nothing worth keeping."""
        if self._plan.stored.length == self._saved:
            return
        with suppress(KvmdError, TimeoutError):
            async with asyncio.timeout(_FINAL_SAVE_S):
                await asyncio.shield(self._save())

    async def _tell_regularly(self) -> None:
        while True:
            await asyncio.sleep(_PROGRESS_S)
            self._tell()

    def _tell(self) -> None:
        now = self._clock.monotonic()
        self._gauges = [gauge.look(now, m.bytes) for gauge, m in zip(self._gauges, self._mirrors, strict=True)]
        urls = [str(source.url) for source in self._sources]
        entity, done = self._target.entity, self._plan.stored.length
        self._on_progress(describe(self._mirrors, urls, self._gauges, size=entity.size, done=done, start=self._start))


def _hoped_rate(mirror: Mirror) -> float:
    """Give the rate that one more request to it may have: 0 while the first is not measured yet."""
    return mirror.rate_bps or (0.0 if mirror.active else _HOPED_BPS)
