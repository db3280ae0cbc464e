"""Gets and gives back volumes of a block pool: what is meant is noted first, so that after a crash each is known for what it is."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from kvmd.core.allotment import (
    Holding,
    Intention,
    Note,
    Slot,
    Vacant,
    best_fit,
    free_name,
    held,
    partition_name,
    rounded,
    superseded,
)
from kvmd.core.partitioning import HEAD, partition_ids
from kvmd.core.placement import Placement
from kvmd.errors import ExistsError, InUseError, NoSpaceError, PoolMissingError, StoreIoError
from kvmd.hypervisor.connection import CALL_S, Connection
from kvmd.hypervisor.pools import FIXED, NUMBERED
from kvmd.hypervisor.volumes import BlockPool, block_pool, create_volume, delete_volume
from kvmd.log import get_logger
from kvmd.store.block.devices import refusal
from kvmd.store.block.notes import Notes
from kvmd.store.calls import translated

log = get_logger(__name__)
T = TypeVar("T")


class Allotter:
    """The volumes of one pool that are kvmd's. ``units`` are those of a fixed pool that it may overwrite: no other ever is.

    ``is_as_left`` tells whether a vacant volume still holds what it held when it was vacated.
    """

    def __init__(
        self,
        name: str,
        pool: str,
        connection: Connection,
        *,
        notes: Path,
        units: Collection[str],
        is_as_left: Callable[[Vacant, BlockPool], Awaitable[bool]],
        executor: Executor,
    ) -> None:
        self._name = name
        self._pool = pool
        self._connection = connection
        self._notes = Notes(notes)
        self._units = frozenset(units)
        self._is_as_left = is_as_left
        self._executor = executor
        self._claiming = asyncio.Lock()
        self._worked_on: set[Slot] = set()

    async def look(self, *, is_fresh: bool = True, timeout_s: float = CALL_S) -> BlockPool:
        """Describe the pool. Raises PoolMissingError, also where libvirt cannot look at it: its storage cannot be reached."""
        work = partial(block_pool, name=self._pool, is_fresh=is_fresh)
        pool = await self._connection.call(work, what=self._what, timeout_s=timeout_s, otherwise=PoolMissingError)
        return pool if pool.type not in NUMBERED else await self._on_thread(_with_keys, pool)

    async def holding(self, name: str, pool: BlockPool) -> Holding | None:
        """Give what has the name. Raises ExistsError where a volume has it that is not kvmd's."""
        notes = await self._read()
        found = held(notes, name, pool.slots)
        if found is not None and found not in notes:
            await self._write(found)  # the device is called otherwise since the last boot
        if found is None and pool.type not in FIXED | NUMBERED:
            known = {note.volume if isinstance(note, Intention) else note.slot.volume for note in notes}
            taken = next((slot for slot in pool.slots if slot.volume == name and name not in known), None)
            if taken is not None:
                raise ExistsError(
                    f"volume {taken.path}: it is there already, and kvmd did not make it; it was left as it is.",
                    hint="Deploy under another `name`, or remove that volume.",
                )
        return found

    async def holding_of(self, placement: Placement, pool: BlockPool) -> Holding | None:
        """Give what the volume of that placement holds, whatever its device is called by now."""
        notes = await self._read()
        names = {note.name for note in notes if isinstance(note, Holding) and note.placement().inode == placement.inode}
        found = (held(notes, name, pool.slots) for name in names)
        return next((one for one in found if one and one.placement().inode == placement.inode), None)

    async def names_at(self, volume: str) -> set[str]:
        """Give kvmd's names of what libvirt's volume of that name holds."""
        return {note.name for note in await self._read() if isinstance(note, Holding) and note.slot.volume == volume}

    async def claim(self, name: str, size: int) -> Slot:
        """Get a volume for an image of ``size`` bytes, to be handed back by ``hold`` or ``let_go``. Raises NoSpaceError..."""
        async with self._claiming:
            pool = await self.look()
            notes = await self._settled(pool)
            free = self._free(pool, notes, name)
            slot = best_fit(free, size)
            if slot is None:
                if pool.type in FIXED:
                    raise self._full(size, max((one.capacity for one in free), default=0))
                slot = await self._make(await self._tidied(pool, self._vacant(pool, notes)), name, size)
            else:
                await self._write(Vacant(slot))
            self._worked_on.add(slot)
            return slot

    async def hold(self, holding: Holding) -> None:
        """Note what a claimed volume holds: from now on it counts. The volumes that had the name before are given back."""
        await self._write(holding)
        self._worked_on.discard(holding.slot)

    def let_go(self, slot: Slot) -> None:
        """Hand back a claimed volume that holds nothing; it is used again, or deleted, by the next claim."""
        self._worked_on.discard(slot)

    async def vacate(self, holding: Holding) -> None:
        """Have what it holds not count any more, and give the volume back to the pool. Raises InUseError, and then it counts still."""
        async with self._claiming:
            await self._write(Vacant(holding.slot, holding.size, holding.sample))
            pool = await self.look()
            try:
                await self._delete(holding.slot, pool)
            except InUseError:
                await self._write(holding)
                raise

    async def vacate_superseded(self, pool: BlockPool) -> None:
        """Give back the volumes whose names later ones have."""
        for old in superseded(await self._read(), pool.slots):
            if old.slot not in self._worked_on:
                await self.vacate(old)

    async def expect_room(self, pool: BlockPool, name: str, size: int) -> None:
        """Raise NoSpaceError where no volume for ``size`` bytes can be had now."""
        free = self._free(pool, await self._read(), name)
        largest = max((one.capacity for one in free), default=0)
        if pool.type not in FIXED:
            largest = max(largest, pool.room)
        if size > largest:
            raise self._full(size, largest)

    async def units(self, pool: BlockPool) -> tuple[int, int]:
        """Give the bytes of the units of a fixed pool that may be used, and of those that are free."""
        notes = await self._read()
        usable = [slot for slot in pool.slots if slot.volume in self._units]
        free = self._free(pool, notes, "")
        return sum(one.capacity for one in usable), sum(one.capacity for one in free)

    @property
    def _what(self) -> str:
        return f"pool {self._name}"

    def _free(self, pool: BlockPool, notes: Sequence[Note], name: str) -> list[Slot]:
        """Give the volumes that may be overwritten, by whoever wants the name."""
        if pool.type in FIXED:
            holding = {
                note.slot.key for note in notes if isinstance(note, Holding)
            }  # also where it has another size since
            return [
                slot
                for slot in pool.slots
                if slot.volume in self._units
                and slot.key not in holding
                and slot not in self._worked_on
                and slot.capacity > 0
            ]
        vacant = self._vacant(pool, notes)
        return vacant if pool.type in NUMBERED else [one for one in vacant if one.volume.split("+")[0] == name]

    def _vacant(self, pool: BlockPool, notes: Sequence[Note]) -> list[Slot]:
        """Give the volumes that are kvmd's, hold nothing, and are not worked on."""
        noted = {note.slot for note in notes if isinstance(note, Vacant)}
        return [slot for slot in pool.slots if slot.key and slot in noted - self._worked_on]

    async def _settled(self, pool: BlockPool) -> Sequence[Note]:
        """Give the notes after what a crash left open is decided: a volume that was to be made is there, and kvmd's, or is not."""
        notes = await self._read()
        settled = [note for note in notes if not isinstance(note, Intention)]
        known = {note.slot for note in settled}
        for note in notes:
            if isinstance(note, Intention):
                made = next((slot for slot in pool.slots if slot.key and note.covers(slot)), None)
                if made is not None and made not in known:
                    await self._write(Vacant(made))
                    settled.append(Vacant(made))
                await self._forget(note)
        return settled if pool.type in FIXED else [note for note in settled if await self._is_kvmds(note, pool)]

    async def _is_kvmds(self, note: Note, pool: BlockPool) -> bool:
        """Whether a volume is not one that somebody took for free, because it was given back and libvirt could not delete it."""
        if not isinstance(note, Vacant) or not note.sample or note.slot not in pool.slots:
            return True
        if await self._is_as_left(note, pool):
            return True
        log.warning("somebody else uses a volume that was kvmd's; it is left alone", volume=note.slot.path)
        await self._forget(note)
        return False

    async def _tidied(self, pool: BlockPool, vacant: Sequence[Slot]) -> BlockPool:
        """Delete own volumes that are of no use here, which may make the room that is missing."""
        is_any_gone = False
        for slot in vacant:
            with suppress(InUseError):  # it is deleted another time, and must not keep others from the pool
                is_any_gone = await self._delete(slot, pool) or is_any_gone
        return await self.look() if is_any_gone else pool

    async def _make(self, pool: BlockPool, name: str, size: int) -> Slot:
        if rounded(size) > pool.room:
            raise self._full(size, pool.room)
        taken = {slot.volume for slot in pool.slots}
        volume = partition_name(pool.device, taken) if pool.type in NUMBERED else free_name(name, taken)
        intention = Intention(pool.uuid, volume, rounded(size))
        await self._write(intention)
        work = partial(create_volume, pool=self._pool, name=volume, size=rounded(size))
        await self._connection.call(work, what=f"making volume {volume} in pool {self._name}")
        made = [slot for slot in (await self.look()).slots if slot.key and intention.covers(slot)]
        if not made:
            raise StoreIoError(
                f"volume {volume} of pool {self._name}: {rounded(size)} bytes were asked for; libvirt made none of this size that can "
                "be recognised again.",
                hint=f"Look at virsh vol-list {self._pool} --details. A partition table must be gpt or msdos.",
            )
        await self._write(Vacant(made[0]))
        await self._forget(intention)
        return made[0]

    async def _delete(self, slot: Slot, pool: BlockPool) -> bool:
        """Delete an own volume where that can be; tell whether it is gone. Else it stays kvmd's, and is used again."""
        if pool.type in FIXED:
            await self._forget(Vacant(slot))
            return False
        work = partial(delete_volume, pool=self._pool, slot=slot)
        if await self._connection.call(work, what=f"deleting {slot.path}"):
            await self._forget(Vacant(slot))
            return True
        log.warning("libvirt cannot delete the volume; it is used again", volume=slot.path)
        await self.look()  # libvirt has forgotten what else is there
        return False

    def _full(self, size: int, largest: int) -> NoSpaceError:
        units = (
            f" Of its units kvmd may use {', '.join(sorted(self._units)) or 'none'} (`units`)." if self._units else ""
        )
        return NoSpaceError(
            f"pool {self._name}: the volume needs {size} bytes, and {largest} are free in one piece; nothing was written to it.{units}"
        )

    async def _read(self) -> Sequence[Note]:
        return await self._on_thread(self._notes.read)

    async def _write(self, note: Note) -> None:
        await self._on_thread(self._notes.write, note)

    async def _forget(self, note: Note) -> None:
        await self._on_thread(self._notes.forget, note)

    async def _on_thread(self, work: Callable[..., T], *arguments: object) -> T:
        with translated(f"the notes of pool {self._name}, or its disk"):
            return await asyncio.get_running_loop().run_in_executor(self._executor, work, *arguments)


def _with_keys(pool: BlockPool) -> BlockPool:
    """Give the partitions the keys that their table has for them. Raises PoolReadonlyError where kvmd may not open the disk."""
    try:
        with Path(pool.device).open("rb") as disk:
            ids = partition_ids(disk.read(HEAD))
    except OSError as exc:
        raise refusal(pool.device, exc) from exc
    keyed = [replace(slot, key=ids.get(-1 if slot.start is None else slot.start, "")) for slot in pool.slots]
    return replace(pool, slots=keyed)
