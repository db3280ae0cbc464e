"""What commands change of what is wished: cancel, recheck, repair and scrub."""

from __future__ import annotations

from dataclasses import replace

from kvmd.core.desired import Desired, HostRecord, MachineWish, Recorded, TemplateRecord, rechecked
from kvmwire.events import CommandData
from kvmwire.status import Receipt, ReplicaState
from kvmwire.topics import Verb

_BEYOND_CANCELLING = {ReplicaState.READY, ReplicaState.ABSENT, ReplicaState.CANCELLED}


def commanded(record: HostRecord, verb: Verb | None, data: CommandData, receipt: Receipt) -> Recorded:
    """Give what a command changes, with its receipt."""
    is_recheck = verb is Verb.RECHECK
    return Recorded(
        receipt,
        templates=_probed_again(record, data) if is_recheck else (),
        desired=_wished_now(record, verb, data),
        machines=_tried_again(record, data) if is_recheck else (),
    )


def _probed_again(record: HostRecord, data: CommandData) -> tuple[TemplateRecord, ...]:
    chosen = (one for one in record.templates.values() if data.template in {None, one.data.template})
    return tuple(replace(one, round=one.round + 1) for one in chosen)


def _tried_again(record: HostRecord, data: CommandData) -> tuple[MachineWish, ...]:
    """Give the machines whose template is rechecked, and which are not as wished."""
    return tuple(
        replace(wish, round=wish.round + 1)
        for name, wish in record.wished_machines.items()
        if data.template in {None, wish.replica.template}
        and data.pool in {None, wish.replica.pool}
        and (name not in record.machines or record.machines[name].status.code is not None)
    )


def _wished_now(record: HostRecord, verb: Verb | None, data: CommandData) -> tuple[Desired, ...]:
    chosen = [
        wish
        for key, wish in record.desired.items()
        if data.template in {None, key.template} and data.pool in {None, key.pool} and wish.is_present
    ]
    match verb:
        case Verb.RECHECK | Verb.REPAIR:
            return tuple(rechecked(wish, is_repair=verb is Verb.REPAIR) for wish in chosen)
        case Verb.CANCEL:
            can_be = (wish for wish in chosen if _can_be_cancelled(record, wish))
            return tuple(replace(wish, is_cancelled=True, reason=data.reason) for wish in can_be)
        case Verb.SCRUB:
            return tuple(replace(wish, scrubs=wish.scrubs + 1) for wish in chosen)
        case _:
            return ()


def _can_be_cancelled(record: HostRecord, wish: Desired) -> bool:
    replica = record.replicas.get(wish.key)
    return replica is None or replica.status.state not in _BEYOND_CANCELLING
