"""Fetches the missing bytes of one volume from all its mirrors at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from kvmd.core.entity import Entity
from kvmd.core.manifest import Pieces
from kvmd.core.mirrors import Mirror, is_exhausted, next_start, pick, serves_same, verdict
from kvmd.core.plan import MIB, Plan, Segment, block_size, segment_length
from kvmd.core.ranges import ByteRange
from kvmd.engine.job import Limits
from kvmd.engine.landing import Landing
from kvmd.engine.meter import Meter
from kvmd.engine.probing import Wish, judge_head
from kvmd.engine.shaping import Shaper
from kvmd.engine.stopwatch import Stopwatch
from kvmd.errors import (
    ChecksumMismatchError,
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
from kvmwire.digest import Digest
from kvmwire.status import Progress

log = get_logger(__name__)

_JUDGED_AFTER_S = 1.0
"""A request is this old before its own speed counts against its source."""
_HOPED_BPS = 1.0 * MIB
"""An idle source that was never measured is tried for the bytes of one that is slower than this."""


@dataclass(frozen=True, slots=True)
class Target:
    """What is fetched, and into what; ``promised`` are the digests that will prove the whole."""

    entity: Entity
    volume: Volume
    wish: Wish
    promised: tuple[Digest, ...]
    pieces: Pieces | None = None


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
        self._landing = Landing(
            target.volume, target.entity, promised=target.promised, pieces=target.pieces, clock=clock
        )
        self._plan = Plan(target.entity.size or 0, self._landing.stored)
        self._meter = Meter(sources, target.entity.size, self._plan.stored.length, clock=clock, tell=on_progress)
        streams = min(limits.connections, sum(mirror.limit for mirror in mirrors if not mirror.is_banned))
        self._block = block_size(max(1, streams), min((s.rate_bps for s in shapers if s.rate_bps), default=0))
        self._changed = asyncio.Event()
        self._running: dict[int, tuple[asyncio.Timeout, float]] = {}
        self._liars: set[int] = set()
        self._storing = set[int]()
        self._cut = set[int]()

    @property
    def mirrors(self) -> Sequence[Mirror]:
        """Where the mirrors stand."""
        return self._mirrors

    @property
    def has_progressed(self) -> bool:
        """Whether this attempt gained a byte."""
        return self._meter.received > 0

    async def run(self) -> int:
        """Fetch by ranges until every byte is stored, and give the size. Raises TransferError or StoreError."""
        try:
            await self._with_helpers(self._work_all())
        finally:
            await self._landing.save_finally()
        if not self._is_done:
            raise TransferError(verdict(self._mirrors))
        return self._plan.size

    async def run_whole(self) -> int:
        """Fetch everything in one stream of one mirror, and give the size.

        Raises SourceError or ContentError, after which the volume is of no use; ``mirrors`` tells whether another try makes sense.
        """
        index = pick(self._mirrors, self._clock.monotonic())
        if index is None:
            raise TransferError(verdict(self._mirrors))
        before = self._mirrors[index]
        try:
            await self._with_helpers(self._stream_whole(index))
        except (SourceError, ContentError) as exc:
            self._mirrors[index] = before  # the bytes that came are lost, so they forgive nothing
            self._blame(index, exc)
            self._tell()
            raise
        return self._landing.stored.frontier

    async def _with_helpers(self, work: Coroutine[None, None, None]) -> None:
        """Await the work while checkpoints are made and progress is told."""
        try:
            async with asyncio.TaskGroup() as group:
                helpers = [group.create_task(self._landing.save_regularly()), group.create_task(self._tell_regularly())]
                await work
                for helper in helpers:
                    helper.cancel()
        except BaseExceptionGroup as group_error:
            errors = leaves(group_error)
            raise next((error for error in errors if isinstance(error, KvmdError)), errors[0]) from group_error
        finally:
            self._tell()

    async def _work_all(self) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(self._limits.connections):
                group.create_task(self._work())

    async def _work(self) -> None:
        """Be one connection: take the next segment until there is nothing left to take."""
        while not self._is_done and not is_exhausted(self._mirrors):
            now = self._clock.monotonic()
            chosen = self._choose(now)
            if chosen is None:
                await self._wait_for_change(now)
                continue
            await self._fetch(*chosen)

    @property
    def _is_done(self) -> bool:
        return self._plan.is_done and self._landing.stored.frontier == self._plan.size

    def _choose(self, now: float) -> tuple[int, ByteRange] | None:
        index = pick(self._mirrors, now)
        if index is None:
            return None
        mirror = self._mirrors[index]
        length = segment_length(mirror.rate_bps, mirror.round_trip_s)
        fresh = self._plan.next_range(length, step=self._landing.piece_length)
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
        self._meter.connections(len(self._plan.segments))
        scope, asked = asyncio.timeout(None), self._clock.monotonic()
        self._running[segment.id] = (scope, asked)
        failed: KvmdError | None = None
        try:
            async with scope:
                entity = await self._entity_of(index)
                async with self._sources[index].read(wanted, entity, block=self._block) as blocks:
                    self._mirrors[index] = self._mirrors[index].answered(self._clock.monotonic() - asked)
                    await self._receive(index, segment, blocks)
        except TimeoutError:
            if not scope.expired():
                raise
        except (SourceError, ContentError) as exc:
            failed = exc
        finally:
            del self._running[segment.id]
            self._cut.discard(segment.id)
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
        is_same = head.entity == chosen or serves_same(head.entity, chosen, has_checksum=bool(self._target.promised))
        if not is_same or head.entity.has_ranges != chosen.has_ranges:
            raise EntityChangedError(f"source {source.url}: it serves another file than the other sources; not used.")
        self._mirrors[index] = replace(self._mirrors[index], entity=head.entity)
        return head.entity

    async def _receive(self, index: int, segment: Segment, blocks: AsyncIterator[bytes | memoryview]) -> None:
        """Store a stream block by block, cut a trickle, and keep the rate limits."""
        position, is_alive = segment.range.start, True
        began, stopwatch = self._clock.monotonic(), self._stopwatch(index)
        try:
            async for block in blocks:
                stopwatch.heard(len(block))
                await self._store(index, segment, ByteRange(position, position + len(block)), block)
                position += len(block)
                if index in self._liars:
                    break
                await self._shape(len(block))
                stopwatch.restart()
        except SourceStalledError:
            is_alive = False
            raise
        finally:
            elapsed_s = self._clock.monotonic() - began
            self._measure(index, position - segment.range.start, elapsed_s, is_alive=is_alive)

    def _measure(self, index: int, length: int, seconds: float, *, is_alive: bool) -> None:
        """Note how fast a stream was. Bytes forgive earlier failures, but those of a trickle do not: it would go on for ever."""
        mirror = self._mirrors[index].measured(max(1.0, length / max(1e-6, seconds)))
        self._mirrors[index] = mirror.received(0) if is_alive and length else mirror

    async def _store(self, index: int, segment: Segment, came: ByteRange, block: bytes | memoryview) -> None:
        if segment.id in self._cut:
            return  # it ends in a moment, perhaps in the middle of this: bytes that it claimed now might never be written
        self._storing.add(segment.id)
        try:
            fresh = await self._landing.put(came, block, mirror=index)
            self._mirrors[index] = self._mirrors[index].gave(came.length)
            self._meter.came(came.length, fresh=sum(part.length for part in fresh))
            for part in fresh:
                self._plan = self._plan.store(segment.id, part)
            judged = await self._landing.prove(fresh)
        finally:
            self._storing.discard(segment.id)
        for piece in judged.wrong:
            self._plan = self._plan.lose(piece)
        for liar in judged.liars:
            self._condemn(liar, judged.wrong)
        self._cut_needless(came)
        if self._is_done or judged.wrong:
            self._notify()

    def _condemn(self, index: int, wrong: Sequence[ByteRange]) -> None:
        """Ban a source that gave a wrong piece, and read its streams no further; the last one that is left gets a second chance."""
        error = self._wrong_piece(index, wrong)
        is_last = all(mirror.is_banned for other, mirror in enumerate(self._mirrors) if other != index)
        self._mirrors[index] = self._mirrors[index].lied(error.failure, is_last=is_last)
        if self._mirrors[index].is_banned:
            self._liars.add(index)
        log.warning("source gave a wrong piece", source=self._sources[index].url, message=error.message)

    def _wrong_piece(self, index: int, wrong: Sequence[ByteRange]) -> ChecksumMismatchError:
        url = self._sources[index].url
        where = ", ".join(f"bytes {piece.start} to {piece.end}" for piece in wrong) or "a piece"
        return ChecksumMismatchError(f"source {url}: {where} did not have the digest of the piece; fetched anew.")

    def _cut_needless(self, written: ByteRange) -> None:
        """End the streams whose missing bytes have all come from elsewhere: a slow one must not keep the rest waiting."""
        now = asyncio.get_running_loop().time()
        for segment in self._plan.needless(written):
            if segment.id in self._storing:
                continue  # it comes here by itself when that is done
            self._cut.add(segment.id)
            self._running[segment.id][0].reschedule(now)

    async def _stream_whole(self, index: int) -> None:
        self._mirrors[index] = self._mirrors[index].started()
        entity, position, stopwatch = await self._entity_of(index), 0, self._stopwatch(index)
        self._meter.connections(1)
        async with self._sources[index].read(None, entity, block=self._block) as blocks:
            async for block in blocks:
                stopwatch.heard(len(block))
                came = ByteRange(position, position + len(block))
                self._check_growth(index, came.end)
                judged = await self._landing.prove(await self._landing.put(came, block, mirror=index))
                if judged.wrong:
                    raise self._wrong_piece(index, judged.wrong)
                self._mirrors[index] = self._mirrors[index].gave(came.length)
                self._meter.came(came.length, fresh=came.length)
                position = came.end
                await self._shape(came.length)
                stopwatch.restart()
        promised = self._target.wish.size
        if promised is not None and position != promised:
            url = self._sources[index].url
            raise ProtocolError(f"source {url}: {promised} bytes are promised, the source sent {position}; refused.")

    def _check_growth(self, index: int, end: int) -> None:
        url, promised = self._sources[index].url, self._target.wish.size
        if self._limits.max_size and end > self._limits.max_size:
            raise TooLargeError(
                f"source {url}: more than the {self._limits.max_size} bytes that policy.max_size allows; refused."
            )
        if promised is not None and end > promised:
            raise TooLargeError(
                f"source {url}: more than the {promised} bytes that are promised; refused.",
                hint="Correct the event's size, or the URL.",
            )

    def _stopwatch(self, index: int) -> Stopwatch:
        return Stopwatch(str(self._sources[index].url), self._limits.stall_timeout_s, self._clock)

    async def _shape(self, length: int) -> None:
        for shaper in self._shapers:
            await shaper.spend(length)

    def _blame(self, index: int, error: KvmdError) -> None:
        mirror = self._mirrors[index]
        if mirror.is_banned:
            return  # for another reason, which stays the one that is told
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
        self._meter.retried()
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

    async def _tell_regularly(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            self._tell()

    def _tell(self) -> None:
        self._meter.tell(self._mirrors, done=self._landing.stored.length)


def _hoped_rate(mirror: Mirror) -> float:
    """Give the rate that one more request to it may have: 0 while the first is not measured yet."""
    return mirror.rate_bps or (0.0 if mirror.active else _HOPED_BPS)
