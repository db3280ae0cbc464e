"""Which replica is read again while it lies at rest, and what follows from what the disk holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta

from kvmd.core.desired import HostRecord, Replica, ReplicaKey
from kvmd.core.placement import Placement
from kvmd.errors import ChecksumMismatchError, KvmdError, StoreIoError
from kvmwire.status import ReplicaState


def next_scrub(
    record: HostRecord, *, now: datetime, every: timedelta | None, not_before: Mapping[ReplicaKey, datetime]
) -> Replica | None:
    """Give the replica to read now: one that somebody asked for, else one last read longer than ``every`` ago; None: none.

    Of several the one whose last reading is longest ago. ``not_before`` are those that could not be read, and when to try again.
    """
    due = [
        replica
        for key, replica in record.replicas.items()
        if replica.status.state is ReplicaState.READY
        and replica.placement is not None
        and not_before.get(key, now) <= now
        and (_is_asked_for(record, replica) or (every is not None and _last_read(replica) + every <= now))
    ]
    return min(due, key=lambda one: (not _is_asked_for(record, one), _last_read(one)), default=None)


def scrubbed(replica: Replica, placement: Placement, found: Placement | None, *, scrubs: int, now: datetime) -> Replica:
    """Give the replica after it was read: ``found`` is what has its name, None where nothing has. ``scrubs`` is the wish's count."""
    read = replace(replica, scrubbed=scrubs)
    if found is not None and found.digest == placement.digest:
        return replace(read, status=read.status.model_copy(update={"verified": now}))
    return _failed(read, _changed(placement, found), now=now)


def unreadable(replica: Replica, error: StoreIoError, *, now: datetime) -> Replica:
    """Give the replica whose volume the disk does not give back: it is not offered as ready."""
    told = StoreIoError(
        f"{error.message.rstrip('.')}; the volume was left as it is, and is not offered as ready.",
        hint="Look at the disk. A recheck (kvmctl recheck) reads it again; kvmctl repair replaces it by a new download.",
    )
    return _failed(replica, told, now=now)


def _failed(replica: Replica, error: KvmdError, *, now: datetime) -> Replica:
    failure = error.failure
    update = {
        "state": ReplicaState.FAILED,
        "code": failure.code,
        "message": failure.message,
        "hint": failure.hint,
        "since": now,
    }
    return replace(replica, status=replica.status.model_copy(update=update))


def _changed(placement: Placement, found: Placement | None) -> ChecksumMismatchError:
    if found is None:
        return ChecksumMismatchError(
            f"volume {placement.path}: changed at rest: expected {placement.digest}, and no file has the name any more.",
            hint="Find out who took it away; a recheck (kvmctl recheck) fetches it anew.",
        )
    touched = "somebody wrote to it" if not found.is_same_file(placement) else "nobody is known to have written to it"
    return ChecksumMismatchError(
        f"volume {placement.path}: changed at rest: expected {placement.digest}, got {found.digest}; {touched}. "
        "It was left as it is, and is not offered as ready.",
        hint="Look at the disk's health and for who writes there. kvmctl repair replaces it by a new download, unless it is in use.",
    )


def _is_asked_for(record: HostRecord, replica: Replica) -> bool:
    wish = record.desired.get(replica.key)
    return wish is not None and wish.scrubs > replica.scrubbed


def _last_read(replica: Replica) -> datetime:
    return replica.status.verified or replica.status.since
