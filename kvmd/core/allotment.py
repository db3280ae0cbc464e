"""What kvmd knows of the volumes of a block pool: which it means to make, which are its own, and what they hold.

A block device has no name, no date and no folder of its own to be recognised by. So a note is kept of each volume, and nothing
but a note that says so makes what a volume holds count.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from kvmd.core import checked
from kvmd.core.placement import Placement
from kvmd.core.provenance import Provenance, Record
from kvmwire.digest import Digest

_VERSION = 1
SECTOR = 4096
"""Volumes are asked for in multiples of so many bytes: no device has larger sectors."""
SLACK, PARTITION_SLACK = 64 << 20, 1 << 20
"""A pool may give so many bytes more than it is asked for: an extent of LVM has 4 MiB, unless somebody chose otherwise; a partition
is cut to sectors, or aligned to 1 MiB."""
_DIGITS = tuple("0123456789")


@dataclass(frozen=True, slots=True)
class Slot:
    """A volume as libvirt told of it. ``pool`` is the pool's UUID, ``capacity`` is bytes.

    ``key`` is what no other volume has: libvirt's, or of a partition the one in its table; empty where it has none, and then it is
    never kvmd's. ``start`` is where a partition begins. Two that are equal are the same volume; names of devices change at a boot.
    """

    pool: str
    volume: str = field(compare=False)
    key: str
    path: str = field(compare=False)
    capacity: int
    start: int | None = None


@dataclass(frozen=True, slots=True)
class Intention:
    """A volume that was not there, and is about to be made with ``size`` bytes: one that is there afterwards is kvmd's."""

    pool: str
    volume: str
    size: int

    def covers(self, slot: Slot) -> bool:
        """Whether the volume is the one that was to be made."""
        is_named = (slot.pool, slot.volume) == (self.pool, self.volume)
        slack = SLACK if slot.start is None else PARTITION_SLACK
        return is_named and self.size <= slot.capacity <= self.size + slack


@dataclass(frozen=True, slots=True)
class Vacant:
    """A volume that is kvmd's and holds nothing that counts: it may be overwritten, and deleted.

    ``sample`` is what a few of its first ``size`` bytes were when it was vacated, empty where nobody knows. Where it is another one
    now, somebody has taken the volume for free, and it is not kvmd's any more.
    """

    slot: Slot
    size: int = 0
    sample: str = ""


@dataclass(frozen=True, slots=True)
class Holding:
    """A volume that holds an image of ``size`` bytes, which were read back from it.

    ``name`` is the volume's in kvmd's words, ``part`` the key of the partial volume that it was made from, ``placed_ns`` when (of two
    with one name the later counts), ``sample`` what a few of its bytes were then, ``provenance`` what it was made of.
    """

    slot: Slot
    name: str
    part: str
    size: int
    digest: Digest
    placed_ns: int
    sample: str
    provenance: Provenance | None = None

    def placement(self, *, is_sampled: bool = True) -> Placement:
        """Describe it as stores do. Where its sample is another one now, it is not the very volume any more."""
        slot = self.slot
        number = int(hashlib.sha256(f"{slot.pool} {slot.key}".encode()).hexdigest()[:15], 16)
        return Placement(slot.path, 0, number, self.size, self.placed_ns if is_sampled else 0, self.digest)


Note = Intention | Vacant | Holding
_KINDS: dict[str, type[Note]] = {"intention": Intention, "vacant": Vacant, "holding": Holding}


def subject(note: Note) -> str:
    """Name what the note is about: of two about one subject the later replaces the other."""
    told = (
        f"intention {note.pool} {note.volume}"
        if isinstance(note, Intention)
        else f"volume {note.slot.pool} {note.slot.key}"
    )
    return hashlib.sha256(told.encode()).hexdigest()[:32]


def encode(note: Note) -> bytes:
    """Encode as one JSON line and a CRC, so that a torn file is recognised."""
    kind = next(name for name, one in _KINDS.items() if isinstance(note, one))
    fields = asdict(note)
    if isinstance(note, Holding):
        fields |= {"digest": str(note.digest), "provenance": _record(note)}
    return checked.encode({"kind": kind, **fields}, version=_VERSION)


def decode(data: bytes) -> Note | None:
    """Read what ``encode`` wrote; None for anything else: torn, changed, or of another version."""
    return checked.decode(data, _from_json, version=_VERSION)


def _from_json(fields: dict[str, Any]) -> Note:
    kind = _KINDS[fields.pop("kind")]
    if "slot" in fields:
        fields["slot"] = Slot(**fields["slot"])
    if kind is Holding:
        record = Record.decode(fields["provenance"].encode())
        fields |= {"digest": Digest.parse(fields["digest"]), "provenance": record and record.provenance}
    return kind(**fields)


def _record(note: Holding) -> str:
    """Write down what it was made of, as it is written beside volumes that are files; nothing where it is the file as it was served."""
    if note.provenance is None:
        return ""
    made = datetime.fromtimestamp(note.placed_ns / 1e9, UTC)
    return Record(note.digest, note.part, made, note.provenance).encode().decode()


def rounded(size: int) -> int:
    """Give the bytes to ask for, so that an image of ``size`` bytes finds room."""
    return -(-size // SECTOR) * SECTOR


def held(notes: Iterable[Note], name: str, slots: Collection[Slot]) -> Holding | None:
    """Give the note that tells which volume has the name: only one whose very volume is there is believed.

    Its slot is as libvirt tells now.
    """
    now = {slot: slot for slot in slots if slot.key}
    found = [
        replace(note, slot=now[note.slot])
        for note in notes
        if isinstance(note, Holding) and note.name == name and note.slot in now
    ]
    return max(found, key=lambda note: note.placed_ns, default=None)


def superseded(notes: Collection[Note], slots: Collection[Slot]) -> list[Holding]:
    """Give the holdings that are there and whose name a later one has, which is there. Their slots are as libvirt tells now."""
    now = {slot: slot for slot in slots if slot.key}
    return [
        replace(note, slot=now[note.slot])
        for note in notes
        if isinstance(note, Holding)
        and note.slot in now
        and (newest := held(notes, note.name, slots)) is not None
        and newest.placed_ns > note.placed_ns
    ]


def best_fit(slots: Iterable[Slot], size: int) -> Slot | None:
    """Give the smallest volume that has room."""
    return min((one for one in slots if one.capacity >= size), key=lambda one: (one.capacity, one.volume), default=None)


def partition_name(device: str, taken: Collection[str]) -> str:
    """Give the name that the next partition gets, by the kernel's rule: libvirt makes none that is called otherwise.

    parted gives it the lowest number that is free.
    """
    start = device.rpartition("/")[2]
    start += "p" if start.endswith(_DIGITS) else ""
    return next(name for number in range(1, len(taken) + 2) if (name := f"{start}{number}") not in taken)


def free_name(name: str, taken: Collection[str]) -> str:
    """Give the name for a volume: its own, or one after a ``+``, which no name of kvmd's has, while an older volume has that."""
    return next(one for n in range(len(taken) + 1) if (one := f"{name}+{n}" if n else name) not in taken)
