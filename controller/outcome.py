"""How far the hosts are with what was asked of them, and the exit code that follows. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

from controller.fleet import Fleet
from kvmwire.codes import CODES, Exit, FailureCode
from kvmwire.events import CredentialData, Ensure, Event, Machine
from kvmwire.status import (
    CredentialState,
    CredentialStatus,
    MachineState,
    MachineStatus,
    Outcome,
    ProbeStatus,
    Progress,
    Receipt,
    ReplicaState,
    ReplicaStatus,
    Verdict,
)
from kvmwire.topics import CredentialStatusTopic, CredentialTopic, MachineTopic, ProbeTopic, ProgressTopic, ReplicaTopic

_WORST_FIRST = (Exit.VERIFICATION, Exit.POLICY, Exit.UNREACHABLE, Exit.USAGE, Exit.FAILED)


class Phase(StrEnum):
    """Of one host's part: ``pending`` goes on, ``missing`` is pending on a host that does not listen."""

    PENDING = "pending"
    MISSING = "missing"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Standing:
    """Where one host is with one replica, probe or credential."""

    host: str
    phase: Phase
    state: str
    code: FailureCode | None = None
    message: str = ""
    hint: str = ""
    next_attempt: datetime | None = None
    progress: Progress | None = None
    status: ReplicaStatus | ProbeStatus | CredentialStatus | MachineStatus | None = None

    @property
    def is_settled(self) -> bool:
        """Whether waiting on can change nothing."""
        return self.phase in {Phase.DONE, Phase.FAILED}


@dataclass(frozen=True, slots=True)
class Wish:
    """What one event asks of one host: this replica, or this machine, present or absent, at this generation or a later one."""

    host: str
    pool: str
    template: str
    generation: int
    event_id: str
    ensure: Ensure
    machine: Machine | None = None


def standing_of(wish: Wish, fleet: Fleet, receipts: Mapping[str, Receipt]) -> Standing:
    """Tell how far a host is with what it was asked for."""
    return replica_standing(wish, fleet, receipts) if wish.machine is None else machine_standing(wish, fleet, receipts)


def machine_standing(wish: Wish, fleet: Fleet, receipts: Mapping[str, Receipt]) -> Standing:
    """Tell how far a host is with a machine; until it says something of it, with the replica that the machine waits for."""
    machine = wish.machine
    status = fleet.machines.get(MachineTopic(wish.host, machine.name)) if machine is not None else None
    if wish.ensure is Ensure.ABSENT:
        return _removal_standing(wish, status, fleet, receipts)
    if machine is None or status is None or status.generation < wish.generation:
        replica = replica_standing(wish, fleet, receipts)
        return replace(replica, phase=Phase.PENDING) if replica.phase is Phase.DONE else replica
    wanted = {MachineState.RUNNING} if machine.start else {MachineState.DEFINED, MachineState.STOPPED}
    phase = Phase.PENDING if fleet.is_online(wish.host) else Phase.MISSING
    if status.code is not None and status.next_attempt is None:
        phase = Phase.FAILED
    elif status.code is None and status.state in wanted:
        phase = Phase.DONE
    elif status.code is None and machine.start and status.state is MachineState.STOPPED:
        phase = Phase.FAILED
    return _standing_of_machine(wish, phase, status)


def _removal_standing(
    wish: Wish, status: MachineStatus | None, fleet: Fleet, receipts: Mapping[str, Receipt]
) -> Standing:
    receipt = receipts.get(wish.host)
    if status is not None and receipt is not None and _heard(receipt) is Phase.DONE:
        return _standing_of_machine(wish, Phase.PENDING, status)
    before = _before_status(wish.host, fleet, receipt)
    is_gone = status is None and before.phase is Phase.PENDING and receipt is not None
    return replace(before, phase=Phase.DONE, state="removed") if is_gone else before


def _standing_of_machine(wish: Wish, phase: Phase, status: MachineStatus) -> Standing:
    return Standing(
        wish.host,
        phase,
        status.state.value,
        code=status.code,
        message=status.message,
        hint=status.hint,
        next_attempt=status.next_attempt,
        status=status,
    )


def replica_standing(wish: Wish, fleet: Fleet, receipts: Mapping[str, Receipt]) -> Standing:
    """Tell how far a host is; ``receipts`` are its event's, by host."""
    status = fleet.replicas.get(ReplicaTopic(wish.host, wish.pool, wish.template))
    if status is None or status.generation < wish.generation:
        return _before_status(wish.host, fleet, receipts.get(wish.host))
    done = ReplicaState.READY if wish.ensure is Ensure.PRESENT else ReplicaState.ABSENT
    phase = Phase.PENDING if fleet.is_online(wish.host) else Phase.MISSING
    if status.state.is_settled:
        phase = Phase.DONE if status.state is done else Phase.FAILED
    return Standing(
        wish.host,
        phase,
        status.state.value,
        code=status.code or _code_of_unwanted(phase, status, wish),
        message=status.message,
        hint=status.hint,
        next_attempt=status.next_attempt,
        progress=_figures(fleet, wish, status),
        status=status,
    )


def probe_standing(
    host: str, template: str, generation: int, fleet: Fleet, receipts: Mapping[str, Receipt]
) -> Standing:
    """Tell whether a host has checked a template's sources, and what it found."""
    status = fleet.probes.get(ProbeTopic(host, template))
    if status is None or status.generation < generation:
        return _before_status(host, fleet, receipts.get(host))
    phase = Phase.FAILED if status.verdict is Verdict.BAD else Phase.DONE
    return Standing(
        host,
        phase,
        status.verdict.value,
        code=status.code,
        message=status.message,
        hint=status.hint,
        status=status,
    )


def credential_standing(host: str, event: Event, fleet: Fleet, receipts: Mapping[str, Receipt]) -> Standing:
    """Tell whether a host has installed, or dropped, what this credential event hands out or takes away."""
    topic = event.topic
    name = topic.name if isinstance(topic, CredentialTopic) else ""
    status = fleet.credentials.get(CredentialStatusTopic(host, name))
    if status is None or status.generation < (event.generation or 0):
        return _before_status(host, fleet, receipts.get(host))
    is_revocation = isinstance(event.data, CredentialData) and event.data.ensure is Ensure.ABSENT
    wanted = CredentialState.REVOKED if is_revocation else CredentialState.INSTALLED
    return Standing(
        host,
        Phase.DONE if status.state is wanted else Phase.FAILED,
        status.state.value,
        code=status.code,
        message=status.message,
        hint=status.hint,
        status=status,
    )


def exit_of(standings: Iterable[Standing]) -> Exit:
    """Done only if every host is; else what the worst failure's code says, or 4 where a host was not heard of."""
    exits = set[Exit]()
    for standing in standings:
        match standing.phase:
            case Phase.DONE:
                pass
            case Phase.FAILED:
                exits.add(CODES[standing.code].exit if standing.code else Exit.FAILED)
            case Phase.PENDING | Phase.MISSING:
                exits.add(Exit.UNREACHABLE)
    return next((one for one in _WORST_FIRST if one in exits), Exit.DONE)


def receipt_exit(hosts: Iterable[str], receipts: Mapping[str, Receipt]) -> Exit:
    """Give the exit code of a command that only wants to be heard."""
    return exit_of(
        Standing(
            host,
            Phase.PENDING if (r := receipts.get(host)) is None else _heard(r),
            "",
            code=r.code if r else None,
        )
        for host in hosts
    )


def _heard(receipt: Receipt) -> Phase:
    return Phase.FAILED if receipt.outcome in {Outcome.REFUSED, Outcome.STALE} else Phase.DONE


def _before_status(host: str, fleet: Fleet, receipt: Receipt | None) -> Standing:
    """Tell what is known before the host has said anything about this generation."""
    if receipt is not None and receipt.outcome in {Outcome.REFUSED, Outcome.STALE}:
        return Standing(
            host,
            Phase.FAILED,
            receipt.outcome.value,
            code=receipt.code,
            message=receipt.message,
            hint=receipt.hint,
        )
    if not fleet.is_online(host):
        why = "offline" if host in fleet.hosts else "unknown"
        return Standing(
            host, Phase.MISSING, why, message="it gets the event when it comes.", hint=f"Start kvmd on {host}."
        )
    state = receipt.outcome.value if receipt else "sent"
    return Standing(host, Phase.PENDING, state)


def _figures(fleet: Fleet, wish: Wish, status: ReplicaStatus) -> Progress | None:
    """Give the figures of a download that runs: those of the one before may come later than the next one's status."""
    if not status.state.is_running:
        return None
    return fleet.progress.get(ProgressTopic(wish.host, wish.pool, wish.template)) or status.progress


def _code_of_unwanted(phase: Phase, status: ReplicaStatus, wish: Wish) -> FailureCode | None:
    """Explain a settled state without a code that nobody here asked for: somebody asked for something newer."""
    if phase is Phase.FAILED and status.generation > wish.generation:
        return FailureCode.EVENT_STALE
    return None
