"""Puts bytes on their volume: each byte once, pieces proven where they have digests, and everything saved regularly."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from kvmd.core.checkpoint import Checkpoint
from kvmd.core.entity import Entity
from kvmd.core.manifest import Pieces
from kvmd.core.pieces import Part, PieceLedger
from kvmd.core.plan import MIB
from kvmd.core.ranges import ByteRange, RangeSet
from kvmd.errors import KvmdError
from kvmd.ports import Clock, Volume
from kvmwire.digest import Digest

WINDOW = 24 * MIB
WINDOW_S = 2.0
"""A checkpoint is made after so many bytes, or so long after the last."""
MAX_UNSAVED = 48 * MIB
"""So many bytes may wait for a checkpoint, then streams wait for the disk: what a crash costs at most."""
_FINAL_SAVE_S = 5.0


@dataclass(frozen=True, slots=True)
class Judged:
    """``wrong`` are pieces that came and do not have their digest: they are missing again.

    ``liars`` are the sources (by index) that are shown to have given wrong bytes.
    """

    wrong: Sequence[ByteRange] = ()
    liars: frozenset[int] = frozenset()


class Landing:
    """One volume on which blocks of several streams land. ``promised`` are the digests that will prove the whole."""

    def __init__(
        self, volume: Volume, entity: Entity, *, promised: Sequence[Digest], pieces: Pieces | None, clock: Clock
    ) -> None:
        self._volume = volume
        self._entity = entity
        self._promised = tuple(promised)
        self._clock = clock
        self._written: RangeSet = volume.checkpoint.stored if volume.checkpoint else RangeSet()
        self._claimed: RangeSet = self._written
        self._saved = self._written.length
        self._is_due = asyncio.Event()
        self._has_room = asyncio.Event()
        self._ledger = PieceLedger(pieces, entity.size, self._written) if pieces and entity.size else None

    @property
    def stored(self) -> RangeSet:
        """The bytes that are written and, where pieces have digests, proven."""
        return self._written if self._ledger is None else self._ledger.proven

    @property
    def piece_length(self) -> int:
        """Bytes of a piece; 1 where pieces have no digests."""
        return 1 if self._ledger is None else self._ledger.pieces.length

    async def put(self, came: ByteRange, block: bytes | memoryview, *, mirror: int) -> Sequence[ByteRange]:
        """Write those of the bytes that no other stream has written or is writing, and give them. Raises StoreError.

        The caller calls ``prove`` with them, and awaits nothing in between.

        No byte is written twice: the hash may have read it already, and another source's byte may be another one.
        """
        while self._unsaved > MAX_UNSAVED:
            self._has_room.clear()
            self._is_due.set()
            await self._has_room.wait()
        fresh: list[ByteRange] = self._claimed.missing_in(came)
        self._claimed = self._claimed.add(came)
        for part in fresh:
            is_all = part.length == came.length
            data = block if is_all else memoryview(block)[part.start - came.start : part.end - came.start]
            await self._volume.write(part.start, data)
            self._written = self._written.add(part)
        if self._ledger is not None:
            for part in fresh:
                self._ledger = self._ledger.land(part, mirror)
        if self._unsaved >= WINDOW:
            self._is_due.set()
        return fresh

    async def prove(self, fresh: Sequence[ByteRange]) -> Judged:
        """Judge the pieces that these bytes made whole. Nobody else does, so it must not be cancelled where the rest goes on.

        No byte of such a piece can land until it is lost.
        """
        wrong, liars = list[ByteRange](), set[int]()
        for index in self._ledger.whole(fresh) if self._ledger is not None else ():
            is_right, found = await self._judge(index)
            liars |= found
            if not is_right:
                wrong.append(self._known.pieces.range(index, self._known.size))
        # All at once, and the caller hears of it before anybody else runs: else a lost byte could come again in between, unnoticed.
        for piece in wrong:
            self._written, self._claimed = self._written.without(piece), self._claimed.without(piece)
        return Judged(wrong, frozenset(liars))

    async def save_regularly(self) -> None:
        """Make a checkpoint when enough was stored or enough time went by, for ever; the streams go on meanwhile."""
        last = self._clock.monotonic()
        while True:
            left_s = max(0.0, last + WINDOW_S - self._clock.monotonic())
            with suppress(TimeoutError):
                async with asyncio.timeout(left_s or WINDOW_S):
                    await self._is_due.wait()
            self._is_due.clear()
            is_late = self._clock.monotonic() >= last + WINDOW_S
            if self._unsaved >= WINDOW or (self._unsaved > 0 and is_late):
                await self._save()
                last = self._clock.monotonic()

    @property
    def _unsaved(self) -> int:
        return abs(self.stored.length - self._saved)

    async def save_finally(self) -> None:
        """Keep what is stored, however it ended; a poisoned volume has nothing worth keeping."""
        if not self._unsaved:
            return
        with suppress(KvmdError, TimeoutError):
            async with asyncio.timeout(_FINAL_SAVE_S):
                await asyncio.shield(self._save())

    async def _save(self) -> None:
        stored = self.stored
        await self._volume.save(Checkpoint(self._entity, self._promised, stored))
        self._saved = stored.length
        self._has_room.set()
        if self._unsaved >= WINDOW:
            self._is_due.set()

    async def _judge(self, index: int) -> tuple[bool, frozenset[int]]:
        """Tell whether a piece has its digest, and who has lied about it, now or before."""
        ledger = self._known
        piece = ledger.pieces.range(index, ledger.size)
        if await self._digest(piece) == ledger.pieces.digests[index]:
            liars = await self._liars(index)
            self._ledger = self._known.prove(index)
            return True, liars
        givers = ledger.givers(index)
        if len(givers) == 1:
            self._ledger = self._known.lose(index)
            return False, givers
        digests = [await self._digest(part.range) for part in ledger.landing[index]]
        self._ledger = self._known.suspect(index, digests)
        return False, self._known.suspects(index)

    async def _liars(self, index: int) -> frozenset[int]:
        """Compare a right piece with what was given of it before, when it was wrong."""
        suspicion = self._known.suspicions.get(index)
        parts: Sequence[tuple[Part, Digest]] = () if suspicion is None else suspicion.parts
        return frozenset([part.mirror for part, then in parts if await self._digest(part.range) != then])

    async def _digest(self, part: ByteRange) -> Digest:
        return await self._volume.digest(part, self._known.pieces.algorithm)

    @property
    def _known(self) -> PieceLedger:
        if self._ledger is None:
            raise RuntimeError("no piece has a digest")
        return self._ledger
