"""Runs one session: performs what the state machine orders, and tells it what happened."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from kvmd.core.admission import check_found
from kvmd.core.entity import Entity
from kvmd.core.image import ImageHead
from kvmd.core.manifest import Pieces
from kvmd.core.mirrors import Mirror, is_exhausted, next_start, verdict
from kvmd.core.pieces import usable
from kvmd.core.placement import Placement
from kvmd.core.session import (
    Broken,
    Cancelled,
    CheckUnused,
    Commit,
    Committed,
    Convert,
    Converted,
    Discard,
    Effect,
    Failed,
    Fetch,
    Fetched,
    Found,
    Input,
    Inspect,
    LookedUp,
    LookUp,
    Probe,
    Probed,
    Queued,
    Ready,
    Remove,
    Removed,
    Seal,
    Sealed,
    State,
    Step,
    Waiting,
)
from kvmd.core.transitions import step
from kvmd.engine.discovery import discovered
from kvmd.engine.job import Job, Limits
from kvmd.engine.lineup import Lineup
from kvmd.engine.opening import volume_request
from kvmd.engine.repair import damaged
from kvmd.engine.shaping import Shaper
from kvmd.engine.supply import Supply
from kvmd.engine.transfer import Target, Transfer
from kvmd.errors import (
    ChecksumMismatchError,
    ContentError,
    DeadlineError,
    InternalError,
    InUseError,
    KeptForOthersError,
    KvmdError,
    ProtocolError,
    SourceError,
    TransferError,
)
from kvmd.log import get_logger
from kvmd.ports import Clock, Converter, Inspector, Keyring, PoolStore, Sharing, Sources, Volume
from kvmwire.digest import Digest
from kvmwire.status import Progress

log = get_logger(__name__)


async def _nobody(_: str) -> Sequence[str]:
    return ()


@dataclass(frozen=True, slots=True)
class Edges:
    """What a session works with. ``users`` names whatever needs the volume at a path to stay as it is.

    ``sharing`` is the store once more, where other hosts have the pool, too.
    """

    sources: Sources
    store: PoolStore
    clock: Clock
    limits: Limits
    shaper: Shaper
    inspector: Inspector
    converter: Converter
    keyring: Keyring | None = None
    users: Callable[[str], Awaitable[Sequence[str]]] = _nobody
    sharing: Sharing | None = None


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
        self._supply: Supply | None = None
        self._found = Found()
        self._entity: Entity | None = None
        self._volume: Volume | None = None
        self._size = 0
        self._has_progressed = False
        self._proven_wrong: set[str] = set()

    async def run(self, opening: Input) -> State:
        """Perform everything that follows from the opening, and give the state it ends in."""
        state: State = Queued(self._job.failures)
        happened: Input | None = opening
        try:
            while happened is not None:
                before = state
                state, effects = step(before, happened, self._job.terms)
                if isinstance(state, Ready) and self._edges.sharing is not None:
                    state, effects = await self._held(before, state, self._edges.sharing)
                if isinstance(state, Waiting | Failed | Cancelled):
                    # Nothing follows: what is to be discarded goes first, for after a crash nobody would come back to it.
                    await self._perform_all(effects)
                    await self._listener.on_state(state)
                    break
                await self._listener.on_state(state)
                happened = await self._perform_all(effects)
        finally:
            await self._let_go()
        return state

    async def _held(self, before: State, ready: Ready, sharing: Sharing) -> Step:
        """Note that this host needs the volume, before it says that it is ready: the last host that does deletes it."""
        try:
            is_made = await sharing.hold(ready.placement, is_ours=not ready.is_adopted)
        except KvmdError as exc:
            return step(before, self._broken(exc), self._job.terms)
        return replace(ready, is_adopted=ready.is_adopted and not is_made), ()

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
        if deadline is not None and not isinstance(effect, LookUp | Commit | Discard | Remove):
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
                volume = self._open_volume
                return Sealed(await volume.seal(self._size), takes_only_raw=volume.takes_only_raw)
            case Inspect(image):
                await self._inspect(image)
                return None
            case Convert(image):
                return Converted(await self._open_volume.convert(image, self._edges.converter))
            case CheckUnused(volume):
                await self._check_unused(volume)
                return None
            case Commit(replaces):
                return Committed(await self._commit(replaces))
            case Discard():
                await self._discard()
                return None
            case Remove():
                return await self._remove()

    async def _look_up(self) -> LookedUp:
        job, placed = self._job, self._job.placed
        if bad := await damaged(self._edges.store, job):
            return LookedUp(None, damaged=bad)
        known = None if job.must_rehash else placed
        stored = await self._edges.store.find(job.terms.volume, known=known, algorithm=job.algorithm)
        if stored is None or placed is None:
            return LookedUp(stored)
        if job.replaced is not None and stored.placement.is_same_file(job.replaced):
            return LookedUp(stored, is_ours=True, kept_for=job.kept_for)  # what was to replace it never got its name
        is_ours = job.is_ours and self._edges.sharing is None and stored.placement.is_same_file(placed)
        is_comparable = job.is_same_content and placed.digest.algorithm is job.algorithm
        recorded = placed.digest if is_comparable else None
        if stored.provenance is None and recorded == stored.placement.digest:
            stored = replace(stored, provenance=job.provenance)  # the record beside it was lost
        return LookedUp(stored, is_ours=is_ours, recorded=recorded, kept_for=job.kept_for)

    async def _probe(self) -> Probed:
        job, edges = self._job, self._edges
        supply = self._supply = Supply(job, edges.sources, limits=edges.limits, clock=edges.clock)
        await supply.inquire()
        entity = supply.entity
        if entity is None:
            raise TransferError(verdict(self._lineup.mirrors(None)), retry_after_s=supply.asked_pause_s)
        self._found = replace(await self._promised(supply), sources=len(supply.sources))
        if not entity.has_end and not self._has_checksum:
            raise ProtocolError(
                f"source {job.urls[0]}: the server does not say where the file ends, and without a checksum a cut one would "
                "look whole; refused.",
                hint="Publish with a checksum, or use another source.",
            )
        self._entity = entity
        return Probed(entity.size, self._found)

    async def _promised(self, supply: Supply) -> Found:
        """Give the digests that documents add to the event's. Raises KvmdError where they will not do."""
        job, edges, limits = self._job, self._edges, self._edges.limits
        digests = tuple(digest for digest in supply.manifest.digests if digest != job.terms.expected)
        told = Found(digests, "the Metalink or the server's headers")
        if job.terms.expected is not None:
            return told
        found = await discovered(job, supply.image, told, sources=edges.sources, keyring=edges.keyring, limits=limits)
        check_found(
            found.digests,
            weak_checksums=limits.weak_checksums,
            require_checksum=limits.require_checksum,
            is_vouched=found.is_vouched,
        )
        return found

    async def _fetch(self, *, is_alone: bool) -> Fetched:
        entity = self._chosen
        can_range = entity.has_ranges and entity.size is not None
        if can_range and (self._has_checksum or entity.validator is not None):
            await self._fetch_ranges(entity, is_alone=is_alone)
        else:
            log.warning("ranges not used: one stream", session=self._job.session, code="RANGE_UNSUPPORTED")
            await self._fetch_whole(entity, is_alone=is_alone)
        return Fetched()

    async def _fetch_ranges(self, entity: Entity, *, is_alone: bool) -> None:
        mirrors = self._start(entity, is_alone=is_alone)
        self._volume = await self._open(entity, resumes=True, copy_of=None if is_alone else self._job.sibling)
        transfer = self._transfer(mirrors, entity)
        try:
            self._size = await transfer.run()
        finally:
            self._has_progressed = transfer.has_progressed
        if self._volume.checkpoint is None:
            self._note_single_origin(transfer.mirrors)

    async def _fetch_whole(self, entity: Entity, *, is_alone: bool) -> None:
        """Fetch in one stream; a broken one is begun anew, because nothing proves that the rest would fit."""
        clock, mirrors = self._edges.clock, self._start(entity, is_alone=is_alone)
        while True:
            self._volume = await self._open(entity, resumes=False)
            transfer = self._transfer(mirrors, entity)
            try:
                self._size = await transfer.run_whole()
            except (SourceError, ContentError) as exc:
                mirrors = list(transfer.mirrors)
                if is_exhausted(mirrors):
                    raise TransferError(verdict(mirrors)) from exc
            else:
                return self._note_single_origin(transfer.mirrors)
            await self._discard()
            await asyncio.sleep(max(0.0, (next_start(mirrors) or 0.0) - clock.monotonic()))

    def _note_single_origin(self, mirrors: Sequence[Mirror]) -> None:
        """Remember a source that gave every byte: should the checksum turn out wrong, then it is the one that lies."""
        origins = [i for i, mirror in enumerate(mirrors) if mirror.bytes]
        if len(origins) == 1:
            self._proven_wrong.add(self._known_supply.sources[origins[0]].url.raw)

    def _start(self, entity: Entity, *, is_alone: bool) -> list[Mirror]:
        """Give the starting state of every mirror; with ``is_alone`` only one may be used. Raises ChecksumMismatchError."""
        if not is_alone:
            return self._lineup.mirrors(entity)
        mirrors = self._lineup.alone(entity, self._proven_wrong)
        if mirrors is None:
            expected = self._job.terms.expected or " and ".join(map(str, self._found.digests))
            raise ChecksumMismatchError(
                f"volume {self._job.terms.volume}: expected {expected}; each source that can be used was tried alone, and none has it."
            )
        return mirrors

    def _transfer(self, mirrors: Sequence[Mirror], entity: Entity) -> Transfer:
        shaper = Shaper(self._job.rate_limit, self._edges.clock)
        supply = self._known_supply
        return Transfer(
            supply.sources,
            mirrors,
            Target(entity, self._open_volume, supply.wish, self._expected, self._pieces),
            limits=self._edges.limits,
            shapers=(self._edges.shaper, shaper),
            clock=self._edges.clock,
            on_progress=self._listener.on_progress,
        )

    async def _open(self, entity: Entity, *, resumes: bool, copy_of: Placement | None = None) -> Volume:
        wanted = volume_request(
            self._job,
            self._known_supply,
            entity,
            promised=self._expected,
            limits=self._edges.limits,
            has_pieces=self._pieces is not None,
            resumes=resumes,
            copy_of=copy_of,
        )
        return await self._edges.store.open(wanted)

    async def _inspect(self, image: ImageHead) -> None:
        """Have the whole image checked. Raises ImageInvalidError..., which name the volume."""
        fd = await self._open_volume.open_sealed()
        try:
            await self._edges.inspector.inspect(fd, image)
        finally:
            os.close(fd)

    async def _check_unused(self, volume: Placement) -> None:
        """Raise InUseError with the names of what needs the volume."""
        users = await self._edges.users(await self._edges.store.whereabouts(volume))
        if users:
            raise InUseError(
                f"{volume.path} is needed by {', '.join(users)}; it was left as it is.",
                hint="Remove them first, then it goes on by itself; or deploy under another `name`.",
            )

    async def _commit(self, replaces: Placement | None) -> Placement:
        placement = await self._open_volume.commit(replaces=replaces)
        await self._let_go()
        with suppress(KvmdError):  # leftovers of other contents that wanted the name; it is taken now
            await self._edges.store.discard(self._job.terms.volume)
        return placement

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
        await self._check_unused(job.placed)
        for one in (job.placed, job.replaced):
            try:
                if one is not None and await self._edges.store.remove(one):
                    return Removed()
            except KeptForOthersError as exc:
                return Removed(note=f"{exc.message} {exc.hint}")
        return Removed(
            note=f"{job.placed.path} was already gone, or is not the file kvmd put there; nothing was touched."
        )

    async def _let_go(self) -> None:
        if self._volume is not None:
            await asyncio.shield(self._volume.close(discard=False))
            self._volume = None

    def _broken(self, error: KvmdError) -> Broken:
        clock = self._edges.clock
        return Broken(
            error.failure,
            clock.now(),
            clock.jitter(),
            has_progressed=self._has_progressed,
            retry_after_s=error.retry_after_s if isinstance(error, SourceError) else 0.0,
        )

    @property
    def _has_checksum(self) -> bool:
        """Whether a digest will prove the whole, wherever its parts come from."""
        return bool(self._expected)

    @property
    def _expected(self) -> tuple[Digest, ...]:
        """All digests that the whole must have."""
        expected = self._job.terms.expected
        return (*((expected,) if expected else ()), *self._found.digests)

    @property
    def _lineup(self) -> Lineup:
        edges = self._edges
        return Lineup(self._known_supply, edges.limits, edges.clock, has_checksum=self._has_checksum)

    @property
    def _pieces(self) -> Pieces | None:
        return usable(self._known_supply.manifest.pieces, self._chosen.size)

    @property
    def _known_supply(self) -> Supply:
        if self._supply is None:
            raise InternalError("nothing was probed before fetching.")
        return self._supply

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
