"""Who makes a volume of a shared pool: what a holder writes down, and when those who read it may take over.

Nobody's clock is compared with another's: a holder changes what it wrote again and again, and whoever waits measures by its own
clock how long it stayed the same (docs/decisions/0021-shared-pools.md).
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

from kvmwire.names import is_name

RENEWALS = 15
"""A holder changes its lease so often within the time after which it counts as gone."""
LONGEST_S = 3600.0
"""No holder may ask others to wait longer than that."""
_TOO_MUCH = 1 << 63
_OWN_SHARE = 5
_LENGTH = 512
"""Bytes of a lease's file: always the same, so that one write replaces all of it."""
_FILE = re.compile(r"(?P<volume>.+)@(?P<number>[0-9]+)\.lease")


@dataclass(frozen=True, slots=True)
class Lease:
    """What a holder says of itself. ``lease_s``: unchanged for so many seconds, it may be taken for gone.

    ``token`` tells apart all holdings there ever were, ``beat`` only changes. ``done`` of ``size`` bytes are stored.
    """

    host: str
    token: str
    lease_s: float
    beat: int = 0
    done: int = 0
    size: int | None = None

    def encode(self) -> bytes:
        """Encode as JSON and a CRC, so that a torn file is recognised."""
        body = json.dumps(
            {
                "host": self.host,
                "token": self.token,
                "lease_s": self.lease_s,
                "beat": self.beat,
                "done": self.done,
                "size": self.size,
            }
        ).encode()
        return (body + b"\n%08x\n" % zlib.crc32(body)).ljust(_LENGTH)

    @classmethod
    def decode(cls, data: bytes) -> Lease | None:
        """Read what ``encode`` wrote; None for anything else."""
        body, _, check = data.partition(b"\n")
        if check.strip() != b"%08x" % zlib.crc32(body):
            return None
        try:
            value = json.loads(body)
            size = None if value["size"] is None else int(value["size"])
            figures = float(value["lease_s"]), int(value["beat"]), int(value["done"])
            lease = cls(str(value["host"]), str(value["token"]), *figures, size)
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            return None
        return lease if lease._is_possible else None

    @property
    def _is_possible(self) -> bool:
        figures = (self.beat, self.done, self.size or 0)
        return is_name(self.host) and 0 < self.lease_s <= LONGEST_S and all(0 <= one < _TOO_MUCH for one in figures)


@dataclass(frozen=True, slots=True)
class Watch:
    """The lease ``number`` was ``seen`` like this, and has been since ``since`` (this host's monotonic seconds) at the latest."""

    number: int
    seen: bytes
    since: float


def file_of(volume: str, number: int) -> str:
    """Name the file of a lease."""
    return f"{volume}@{number}.lease"


def numbers(volume: str, names: Iterable[str]) -> tuple[int, ...]:
    """Give the numbers of a volume's leases among these files, the lowest first; the highest is the one that holds."""
    found = (match for match in map(_FILE.fullmatch, names) if match is not None and match["volume"] == volume)
    return tuple(sorted(int(match["number"]) for match in found))


def watched(before: Watch | None, number: int, seen: bytes, *, answered: float) -> Watch:
    """Note a look at a lease whose answer came at ``answered``."""
    if before is not None and (before.number, before.seen) == (number, seen):
        return before
    return Watch(number, seen, since=answered)


def is_over(watch: Watch, *, asked: float, host: str, lease_s: float) -> bool:
    """Whether the lease may be taken over. ``host`` is one's own; ``lease_s`` counts where the lease cannot be read.

    ``asked`` is when the last look began: what came between question and answer (a server that hung, a pause of one's own) is no
    sign that the holder is gone. A holder of the same host is an earlier run of it, as a rule: then a shorter time does.
    """
    lease = Lease.decode(watch.seen)
    patience_s = lease_s if lease is None else lease.lease_s
    if lease is not None and lease.host == host:
        patience_s /= _OWN_SHARE
    return asked - watch.since >= patience_s
