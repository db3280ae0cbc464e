"""Runs one session: performs what the state machine orders, and tells it what happened."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from kvmd.core.checkpoint import Checkpoint
from kvmd.core.entity import Entity
from kvmd.core.mirrors import Mirror, choose_entity, serves_same, verdict
from kvmd.core.retry import backoff_s, is_retryable
from kvmd.core.session import (
    Broken,
    Commit,
    Committed,
    Discard,
    Effect,
    Fetch,
    Fetched,
    Input,
    LookedUp,
    LookUp,
    Probe,
    Probed,
    Queued,
    Remove,
    Removed,
    Seal,
    Sealed,
    State,
    step,
)
from kvmd.engine.job import Job, Limits
from kvmd.engine.probing import Finding, Wish, probe_until_usable
from kvmd.engine.shaping import Shaper
from kvmd.engine.transfer import Target, Transfer
from kvmd.errors import (
    DeadlineError,
    EntityChangedError,
    InternalError,
    KvmdError,
    ProtocolError,
    SourceError,
    TransferError,
)
from kvmd.log import get_logger
from kvmd.ports import Clock, Source, Sources, Store, Volume, VolumeRequest
from kvmwire.status import Progress

log = get_logger(__name__)

PROBE_GRACE_S = 1.0
"""How long slow mirrors may keep a download from starting once one has answered."""
_WHOLE_TRIES = 5
"""Streams without ranges begin anew after a break; so often in one attempt."""


@dataclass(frozen=True, slots=True)
class Edges:
    """What a session works with."""

    sources: Sources
    store: Store
    clock: Clock
    limits: Limits
    shaper: Shaper


@dataclass(frozen=True, slots=True)
class Listener:
    """Is told every state before its effects are performed (a state counts once this returns), and the progress."""

    on_state: Callable[[State], Awaitable[None]]
    on_progress: Callable[[Progress], None]


class Session:
    """One job from its first input to a state in which it rests. Cancel the task to stop; what is synced is kept."""

    def __init__(self, job: Job, edges: Edges, listener: Listener) -> None:
        self._job = job
        self._edges = edges
        self._listener = listener
        self._sources: list[Source] = []
        self._findings: list[Finding | None] = []
        self._entity: Entity | None = None
        self._volume: Volume | None = None
        self._size = 0
        self._has_progressed = False

    async def run(self, opening: Input) -> State:
        """Perform everything that follows from the opening, and give the state it ends in."""
        state: State = Queued(self._job.failures)
        happened: Input | None = opening
        try:
            while happened is not None:
                state, effects = step(state, happened, self._job.terms)
                await self._listener.on_state(state)
                happened = await self._perform_all(effects)
        finally:
            await self._let_go()
        return state

    async def _perform_all(self, effects: Sequence[Effect]) -> Input | None:
        """Perform the effects in order; the last one tells what happened, unless one before it fails."""
        happened: Input | None = None
        for effect in effects:
            try:
                happened = await self._in_time(effect)
            except KvmdError as exc:
                happened = self._broken(exc)
            except Exception as exc:  # noqa: BLE001 - a session ends here
                log.unexpected(
                    "session failed unexpectedly", exc, session=self._job.session, effect=type(effect).__name__
                )
                happened = self._broken(InternalError(f"{type(effect).__name__}: {type(exc).__name__}: {exc}"))
            if isinstance(happened, Broken):
                return happened
        return happened

    async def _in_time(self, effect: Effect) -> Input | None:
        """Perform within the deadline."""
        deadline, left_s = self._job.terms.deadline, None
        if deadline is not None and not isinstance(effect, Discard | Remove):
            left_s = max(0.0, (deadline - self._edges.clock.now()).total_seconds())
        limit = asyncio.timeout(left_s)
        try:
            async with limit:
                return await self._perform(effect)
        except TimeoutError:
            if not limit.expired():
                raise
            raise DeadlineError(
                f"volume {self._job.terms.volume}: the deadline passed in the middle of it; given up."
            ) from None

    async def _perform(self, effect: Effect) -> Input | None:
        match effect:
            case LookUp():
                return await self._look_up()
            case Probe():
                return await self._probe()
            case Fetch(is_alone):
                return await self._fetch(is_alone=is_alone)
            case Seal():
                return Sealed(await self._open_volume.seal(self._size))
            case Commit():
                placement = await self._open_volume.commit()
                return Committed(placement)
            case Discard():
                await self._discard()
                return None
            case Remove():
                return await self._remove()

    async def _look_up(self) -> LookedUp:
        job, placed = self._job, self._job.placed
        known = None if job.must_rehash else placed
        stored = await self._edges.store.find(job.terms.volume, known=known, algorithm=job.algorithm)
        if stored is None or placed is None:
            return LookedUp(stored)
        is_ours = job.is_ours and stored.placement.is_same_file(placed)
        is_comparable = job.is_same_content and placed.digest.algorithm is job.algorithm
        return LookedUp(stored, is_ours=is_ours, recorded=placed.digest if is_comparable else None)

    async def _probe(self) -> Probed:
        job, limits = self._job, self._edges.limits
        self._sources = [self._edges.sources.open(url, job.headers) for url in job.urls]
        self._findings = await probe_until_usable(self._sources, self._wish, self._edges.clock, grace_s=PROBE_GRACE_S)
        usable = [
            f.head.entity if f is not None and f.head is not None and f.error is None else None for f in self._findings
        ]
        entity = choose_entity(usable, size=job.size)
        if entity is None:
            raise TransferError(verdict([self._mirror(i, limits) for i in range(len(self._sources))]))
        has_checksum = job.terms.expected is not None
        if not entity.has_end and not has_checksum:
            raise ProtocolError(
                f"source {job.urls[0]}: the server does not say where the file ends, and without a checksum a cut one would "
                "look whole; refused.",
                hint="Publish with a checksum, or use another source.",
            )
        self._entity = entity
        return Probed(entity.size)

    async def _fetch(self, *, is_alone: bool) -> Fetched:
        entity = self._chosen
        can_range = entity.has_ranges and entity.size is not None
        if can_range and (self._job.terms.expected is not None or entity.validator is not None):
            await self._fetch_ranges(entity, is_alone=is_alone)
        else:
            log.warning("ranges not used: one stream", session=self._job.session, code="RANGE_UNSUPPORTED")
            await self._fetch_whole(entity)
        return Fetched()

    async def _fetch_ranges(self, entity: Entity, *, is_alone: bool) -> None:
        self._volume = await self._open(entity, resumes=True)
        transfer = self._transfer(self._mirrors(entity, is_alone=is_alone), entity)
        try:
            self._size = await transfer.run()
        finally:
            self._has_progressed = transfer.has_progressed

    async def _fetch_whole(self, entity: Entity) -> None:
        """Fetch in one stream; a broken one is begun anew, because nothing proves that the rest would fit."""
        for tries in range(1, _WHOLE_TRIES + 1):
            self._volume = await self._open(entity, resumes=False)
            transfer = self._transfer(self._mirrors(entity, is_alone=False), entity)
            try:
                self._size = await transfer.run_whole()
            except SourceError as exc:
                if not is_retryable(exc.code) or tries == _WHOLE_TRIES:
                    raise
                await self._discard()
                pause_s = exc.retry_after_s or backoff_s(tries, jitter=self._edges.clock.jitter(), base_s=0.25)
                await asyncio.sleep(min(pause_s, 60.0))
            else:
                return

    def _transfer(self, mirrors: Sequence[Mirror], entity: Entity) -> Transfer:
        shaper = Shaper(self._job.rate_limit, self._edges.clock)
        return Transfer(
            self._sources,
            mirrors,
            Target(entity, self._open_volume, self._wish, has_checksum=self._job.terms.expected is not None),
            limits=self._edges.limits,
            shapers=(self._edges.shaper, shaper),
            clock=self._edges.clock,
            on_progress=self._listener.on_progress,
        )

    def _mirrors(self, entity: Entity, *, is_alone: bool) -> list[Mirror]:
        """Give the starting state of every mirror; those that cannot serve this entity are banned and say why."""
        mirrors = [self._mirror(i, self._edges.limits, entity) for i in range(len(self._sources))]
        if not is_alone:
            return mirrors
        best = next(i for i, mirror in enumerate(mirrors) if not mirror.is_banned)
        aside = TransferError(
            EntityChangedError("set aside: the mix of several sources had a wrong checksum.").failure
        ).failure
        return [mirror if i == best or mirror.is_banned else mirror.banned(aside) for i, mirror in enumerate(mirrors)]

    def _mirror(self, index: int, limits: Limits, chosen: Entity | None = None) -> Mirror:
        finding, url = self._findings[index], self._job.urls[index]
        mirror = Mirror(order=index, limit=limits.connections_per_source)
        if finding is None:
            return mirror
        if finding.error is not None:
            return mirror.banned(finding.error.failure)
        entity = finding.head.entity if finding.head is not None else None
        if entity is None or chosen is None:
            return mirror.banned(ProtocolError(f"source {url}: no source serves the promised size.").failure)
        has_checksum = self._job.terms.expected is not None
        if entity != chosen and (
            not serves_same(entity, chosen, has_checksum=has_checksum) or entity.has_ranges != chosen.has_ranges
        ):
            error = EntityChangedError(
                f"source {url}: it serves {entity.size} bytes, the chosen file has {chosen.size}, or cannot be shown to be the same; "
                "not used."
            )
            return mirror.banned(error.failure)
        return Mirror(order=index, limit=limits.connections_per_source, entity=entity)

    async def _open(self, entity: Entity, *, resumes: bool) -> Volume:
        job = self._job
        has_checksum = job.terms.expected is not None

        def can_resume(checkpoint: Checkpoint) -> bool:
            return resumes and checkpoint.can_resume(entity, has_checksum=has_checksum)

        return await self._edges.store.open(
            VolumeRequest(
                name=job.terms.volume, key=job.key, size=entity.size, algorithm=job.algorithm, resumes=can_resume
            )
        )

    async def _discard(self) -> None:
        if self._volume is not None:
            await self._volume.close(discard=True)
            self._volume = None
        else:
            await self._edges.store.discard(self._job.terms.volume)

    async def _remove(self) -> Removed:
        job = self._job
        if job.placed is None:
            return Removed()
        if job.kept_for:
            return Removed(note=f"{job.placed.path} was left in place: {job.kept_for} needs it.")
        if not job.is_ours:
            return Removed(note=f"{job.placed.path} was left in place: it was there before kvmd.")
        if await self._edges.store.remove(job.placed):
            return Removed()
        return Removed(
            note=f"{job.placed.path} was already gone, or is not the file kvmd put there; nothing was touched."
        )

    async def _let_go(self) -> None:
        if self._volume is not None:
            await asyncio.shield(self._volume.close(discard=False))
            self._volume = None

    def _broken(self, error: KvmdError) -> Broken:
        clock = self._edges.clock
        return Broken(error.failure, clock.now(), clock.jitter(), has_progressed=self._has_progressed)

    @property
    def _wish(self) -> Wish:
        limits = self._edges.limits
        return Wish(self._job.terms.format, self._job.size, limits.max_size, limits.max_virtual_size)

    @property
    def _chosen(self) -> Entity:
        if self._entity is None:
            raise InternalError("nothing was probed before fetching.")
        return self._entity

    @property
    def _open_volume(self) -> Volume:
        if self._volume is None:
            raise InternalError("no volume is open.")
        return self._volume
