"""What of the pools' contents goes, and why the rest stays: decided from the journal, the staging folders and the host's policy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum

from kvmd.core.desired import Desired, Former, HostRecord, Replica, ReplicaKey
from kvmd.core.placement import Placement
from kvmwire.status import GcKind, ReplicaState, ReplicaStatus

FRESH = timedelta(days=1)
"""What was used within so long is not deleted for want of space: else two deployments would drive each other out for ever."""


@dataclass(frozen=True, slots=True)
class GcPolicy:
    """The host's choices. ``unused`` None and ``low_space`` 0: nothing that is deployed is ever deleted for that.

    ``keep_generations`` former volumes of each replica stay. ``low_space`` is in bytes.
    """

    staging_ttl: timedelta
    keep_generations: int = 0
    unused: timedelta | None = None
    low_space: int = 0


@dataclass(frozen=True, slots=True)
class Remnant:
    """Files of one partial volume in a staging folder; ``key`` tells apart contents that want the same name.

    ``modified`` is when the last of them was written to, ``size`` the bytes that they have on the disk. ``is_active``: somebody has
    them locked.
    """

    volume: str
    key: str
    modified: datetime
    size: int
    path: str
    is_active: bool = False


@dataclass(frozen=True, slots=True)
class PoolContents:
    """What lies in a pool, beside the volumes that the journal knows. ``available`` is in bytes, None where unknown."""

    remnants: tuple[Remnant, ...] = ()
    available: int | None = None


class Verdict(StrEnum):
    """``spare`` is in between: it goes if space is needed, and nobody uses it."""

    DELETE = "delete"
    SPARE = "spare"
    KEEP = "keep"


@dataclass(frozen=True, slots=True)
class Item:
    """One thing in a pool and what becomes of it. ``idle`` is since when nobody is known to have used it; ``size`` is bytes.

    ``is_used``: somebody was asked, and uses it now.
    """

    pool: str
    path: str
    kind: GcKind
    size: int
    verdict: Verdict
    why: str
    idle: datetime
    template: str = ""
    remnant: Remnant | None = None
    placement: Placement | None = None
    is_used: bool = False

    @property
    def key(self) -> ReplicaKey:
        """The replica it belongs to, or belonged to."""
        return ReplicaKey(self.pool, self.template)


Users = Mapping[str, Sequence[str]]
"""Who uses the volumes, by their paths. A volume that is not in here may be used by anybody, for all that is known."""


def in_question(
    record: HostRecord, pools: Mapping[str, PoolContents], *, policy: GcPolicy, now: datetime
) -> Sequence[str]:
    """Give the paths of the finished volumes that may go if nobody uses them: about these somebody has to be asked."""
    items = _judged(record, pools, policy, now)
    return [one.path for one in items if one.kind is not GcKind.STAGING and one.verdict is not Verdict.KEEP]


def survey(
    record: HostRecord, pools: Mapping[str, PoolContents], *, policy: GcPolicy, users: Users, now: datetime
) -> tuple[Item, ...]:
    """Decide about everything: each item goes or stays, and says why. Only pools that can be looked into are in ``pools``."""
    items = [_unless_used(one, users) for one in _judged(record, pools, policy, now)]
    short = {pool: _missing(pool, contents, items, policy) for pool, contents in pools.items()}
    by_idleness = sorted(range(len(items)), key=lambda i: (items[i].kind is GcKind.REPLICA, items[i].idle))
    for i in (i for i in by_idleness if items[i].verdict is Verdict.SPARE):
        one = items[i]
        if short[one.pool] > 0:
            short[one.pool] -= one.size
            items[i] = replace(one, verdict=Verdict.DELETE, why=f"{one.why}, and the pool has less free than low_space")
        else:
            items[i] = replace(one, verdict=Verdict.KEEP)
    return tuple(items)


def given_up(replica: Replica, why: str, *, now: datetime) -> Replica:
    """Give a replica that is absent until it is asked for again; its volume is a former one until it is deleted."""
    status = ReplicaStatus(
        template=replica.key.template,
        generation=replica.status.generation,
        pool=replica.key.pool,
        state=ReplicaState.ABSENT,
        message=f"deleted by this host's policy: {why}.",
        hint="Deploy it anew, or send a recheck (kvmctl recheck), and it is fetched again.",
        since=now,
        last_used=replica.status.last_used,
    )
    retired = replica.retiring(beside=None, now=now)
    return Replica(status, replica.made_for, scrubbed=replica.scrubbed, formers=retired.formers)


def without(replica: Replica, placement: Placement) -> Replica:
    """Give the replica after a former volume of it was deleted."""
    return replace(replica, formers=tuple(one for one in replica.formers if one.placement != placement))


def _judged(record: HostRecord, pools: Mapping[str, PoolContents], policy: GcPolicy, now: datetime) -> Iterator[Item]:
    """Judge everything as if nobody used it."""
    for pool, contents in pools.items():
        for remnant in contents.remnants:
            yield _remnant(record, pool, remnant, policy, now)
    for key, replica in record.replicas.items():
        if key.pool not in pools:
            continue
        for behind, former in enumerate(reversed(replica.formers)):
            yield _former(record, replica, former, is_kept=behind < policy.keep_generations)
        if replica.placement is not None:
            yield _replica(record, replica, replica.placement, policy, now)


def _remnant(record: HostRecord, pool: str, remnant: Remnant, policy: GcPolicy, now: datetime) -> Item:
    item = Item(pool, remnant.path, GcKind.STAGING, remnant.size, Verdict.KEEP, "", remnant.modified, remnant=remnant)
    waiting = _waiting_for(record, pool, remnant.volume)
    if remnant.is_active:
        return replace(item, why="somebody is working on it")
    if waiting is not None:
        return replace(item, why=f"template {waiting.key.template} goes on from it")
    if now - remnant.modified <= policy.staging_ttl:
        return replace(item, why=f"it stays {_span(policy.staging_ttl)} after the last attempt, to go on from")
    return replace(item, verdict=Verdict.DELETE, why=f"nobody has gone on from it for {_span(now - remnant.modified)}")


def _waiting_for(record: HostRecord, pool: str, volume: str) -> Desired | None:
    """Find a wish for this volume that is not settled yet."""
    for key, wish in record.desired.items():
        replica = record.replicas.get(key)
        is_open = replica is None or not replica.status.state.is_settled
        if key.pool == pool and wish.is_present and wish.data.volume == volume and is_open:
            return wish
    return None


def _former(record: HostRecord, replica: Replica, former: Former, *, is_kept: bool) -> Item:
    item = _item(replica, former.placement, GcKind.FORMER, idle=former.since)
    wish, sharer = record.desired.get(replica.key), _sharer(record, replica, former.placement.path)
    if sharer:
        return replace(item, why=f"template {sharer} needs it")
    if wish is not None and wish.is_present and _is_open(replica, wish, record):
        is_same = wish.data.volume == former.volume
        return replace(item, why="it is wished again" if is_same else "what is to take its place is not ready")
    why = f"template {replica.key.template} has not had it since {_day(former.since)}"
    if is_kept:
        return replace(item, verdict=Verdict.SPARE, why=f"{why}; keep_generations keeps it")
    return replace(item, verdict=Verdict.DELETE, why=why)


def _is_open(replica: Replica, wish: Desired, record: HostRecord) -> bool:
    """Whether there is still something to do for the wish, or it could not be done."""
    is_done = replica.status.state in {ReplicaState.READY, ReplicaState.ABSENT}
    return not is_done or replica.made_for != wish.fingerprint(record.templates)


def _replica(record: HostRecord, replica: Replica, placement: Placement, policy: GcPolicy, now: datetime) -> Item:
    idle = max(filter(None, (replica.status.last_used, replica.status.since)))
    item = _item(replica, placement, GcKind.REPLICA, idle=idle)
    wish = record.desired.get(replica.key)
    if obstacle := _obstacle(record, replica, placement, wish):
        return replace(item, why=obstacle)
    if wish is None:
        return replace(item, verdict=Verdict.DELETE, why="nobody wishes it")
    if policy.unused is None and not policy.low_space:
        return replace(item, why="it is deployed")
    unused = f"not used since {_day(idle)}"
    if policy.unused is not None and now - idle > policy.unused:
        return replace(item, verdict=Verdict.DELETE, why=f"{unused}, longer than unused_d")
    if policy.low_space and now - idle > FRESH:
        return replace(item, verdict=Verdict.SPARE, why=unused)
    return replace(item, why=f"it is deployed, and was used on {_day(idle)}")


def _obstacle(record: HostRecord, replica: Replica, placement: Placement, wish: Desired | None) -> str:
    """Tell why a replica stays whatever the policy says; empty where nothing stands in the way."""
    if not replica.is_ours:
        return "it was there before kvmd"
    if replica.status.state is not ReplicaState.READY:
        return f"it is {replica.status.state.value}: nobody may be sure of what it is"
    if wish is not None and wish.template(record.templates) is None:
        return "its template is not registered any more, so that nobody could fetch it again"
    if wish is not None and _is_open(replica, wish, record):
        return "it is about to be worked on"
    if sharer := _sharer(record, replica, placement.path):
        return f"template {sharer} needs it"
    machines = record.machines_wishing(replica.key)
    return f"it is to be used by machine {', '.join(machines)}" if machines else ""


def _sharer(record: HostRecord, replica: Replica, path: str) -> str:
    """Name another replica with a volume of this path."""
    others = (one for key, one in record.replicas.items() if key != replica.key and one.placement is not None)
    return next((one.key.template for one in others if one.placement and one.placement.path == path), "")


def _item(replica: Replica, placement: Placement, kind: GcKind, *, idle: datetime) -> Item:
    return Item(
        pool=replica.key.pool,
        path=placement.path,
        kind=kind,
        size=placement.size,
        verdict=Verdict.KEEP,
        why="",
        idle=idle,
        template=replica.key.template,
        placement=placement,
    )


def _unless_used(item: Item, users: Users) -> Item:
    if item.kind is GcKind.STAGING or item.verdict is Verdict.KEEP:
        return item
    if item.path not in users:
        return replace(item, verdict=Verdict.KEEP, why="nobody could be asked who uses it")
    if names := users[item.path]:
        return replace(item, verdict=Verdict.KEEP, why=f"in use by {', '.join(names)}", is_used=True)
    return item


def _missing(pool: str, contents: PoolContents, items: Sequence[Item], policy: GcPolicy) -> int:
    """Give the bytes that must still be freed, after what goes in any case."""
    if contents.available is None:
        return 0
    freed = sum(one.size for one in items if one.pool == pool and one.verdict is Verdict.DELETE)
    return max(0, policy.low_space - contents.available - freed)


def _day(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d}"


def _span(span: timedelta) -> str:
    return f"{span.days} d" if span.days else f"{span.seconds // 3600} h"
