"""What to do next on this host: which sessions start, which stop, and in which order."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from kvmd.core.desired import Desired, HostRecord, ReplicaKey
from kvmwire.status import ReplicaState


class VolumeName(NamedTuple):
    """A volume, by its name in a pool."""

    pool: str
    volume: str


@dataclass(frozen=True, slots=True)
class Agenda:
    """``start`` is in order; ``wake_at`` is the next monotonic time at which something becomes due by itself."""

    start: tuple[ReplicaKey, ...]
    stop: tuple[ReplicaKey, ...]
    wake_at: float | None


def agenda(
    record: HostRecord,
    *,
    running: Mapping[ReplicaKey, str],
    due: Mapping[ReplicaKey, float],
    now: float,
    slots: int,
    held: Collection[VolumeName] = (),
) -> Agenda:
    """Compare what is wished with what is there and under way.

    ``running`` maps the sessions under way to their aim, ``due`` the waiting ones to their time. Of two wishes for one volume, or for
    the same content in one pool, only one runs at a time: the second then finds the volume there, or makes its own from it. None
    runs for a volume that is ``held``.
    """
    fingerprints = {key: wish.fingerprint(record.templates) for key, wish in record.desired.items()}
    stop = tuple(key for key, aim in running.items() if not _still_aims(record, key, aim))
    todo: list[Desired] = []
    wake_at: float | None = None
    for key, wish in record.desired.items():
        if key in running or not _needs_work(record, key, fingerprints[key]):
            continue
        if _is_waiting_for_its_time(record, key, fingerprints[key], due=due, now=now):
            wake_at = due[key] if wake_at is None else min(wake_at, due[key])
            continue
        todo.append(wish)
    todo.sort(key=lambda wish: (-wish.data.priority, wish.order))
    busy = [record.desired[key] for key in running if key in record.desired]
    start = _within_slots(record, todo, running=busy, free=slots - len(running), held=held)
    return Agenda(start, stop, wake_at)


def _still_aims(record: HostRecord, key: ReplicaKey, aim: str) -> bool:
    wish = record.desired.get(key)
    return wish is not None and wish.aim(record.templates) == aim


def _needs_work(record: HostRecord, key: ReplicaKey, fingerprint: str) -> bool:
    replica = record.replicas.get(key)
    if replica is None or not replica.status.state.is_settled:
        return True
    return replica.made_for != fingerprint and not outlives_its_template(record, key)


def outlives_its_template(record: HostRecord, key: ReplicaKey) -> bool:
    """Whether the replica is ready and wished, and its template was unregistered: what is there stays ready."""
    wish, replica = record.desired[key], record.replicas.get(key)
    is_ready = replica is not None and replica.status.state is ReplicaState.READY
    return is_ready and wish.is_present and wish.template(record.templates) is None


def _is_waiting_for_its_time(
    record: HostRecord, key: ReplicaKey, fingerprint: str, *, due: Mapping[ReplicaKey, float], now: float
) -> bool:
    replica = record.replicas.get(key)
    if replica is None or replica.made_for != fingerprint or replica.status.state is not ReplicaState.WAITING:
        return False
    return due.get(key, now) > now


def names_of(record: HostRecord, key: ReplicaKey) -> frozenset[VolumeName]:
    """Name the volumes that a session for this subject works on: what it is to have, and what it has."""
    wish, replica = record.desired.get(key), record.replicas.get(key)
    names = [wish.data.volume] if wish is not None else []
    if replica is not None and replica.placement is not None:
        names.append(replica.placement.name)
    return frozenset(VolumeName(key.pool, name) for name in names)


def _within_slots(
    record: HostRecord, todo: list[Desired], *, running: list[Desired], free: int, held: Collection[VolumeName]
) -> tuple[ReplicaKey, ...]:
    claims = {claim for wish in running for claim in _claims(record, wish)} | {("name", *one) for one in held}
    start: list[ReplicaKey] = []
    for wish in todo:
        if free <= 0:
            break
        mine = _claims(record, wish)
        if claims & mine:
            continue
        claims |= mine
        free -= 1
        start.append(wish.key)
    return tuple(start)


def _claims(record: HostRecord, wish: Desired) -> set[tuple[str, str, str]]:
    """Name what no two sessions may work on at once: the volume's name, and the content, in a pool."""
    claims = {("name", pool, volume) for pool, volume in names_of(record, wish.key)}
    template = wish.template(record.templates)
    if template is not None and template.checksum is not None:
        claims.add(("content", wish.data.pool, template.checksum))
    return claims
