"""Which hosts a machine may go to, and the events that change the machines there are. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from controller.fleet import Deployment, Fleet
from controller.outcome import Phase, Standing
from controller.publish import default_deployment
from kvmwire.codes import FailureCode
from kvmwire.events import DeployData, Ensure, Machine
from kvmwire.status import MachineStatus, PoolState, ReplicaState
from kvmwire.topics import DeployTopic, MachineTopic, ReplicaTopic

Wanted = tuple[DeployTopic, DeployData]

OF_THE_HOST = frozenset(
    {
        FailureCode.NO_SPACE,
        FailureCode.POOL_MISSING,
        FailureCode.POOL_READONLY,
        FailureCode.IO,
        FailureCode.EXISTS,
        FailureCode.IN_USE,
        FailureCode.MACHINE,
        FailureCode.UNSUPPORTED,
        FailureCode.TEMPLATE_UNKNOWN,
        FailureCode.INTERNAL,
    }
)
"""Codes that say something of one host: another one may well be able to."""


def machine_deployment(template: str, pool: str, machine: str) -> str:
    """Name the deployment of a machine, so that a plain deployment of the template never takes its topic."""
    return f"{default_deployment(template, pool)}.{machine}"[:63]


def candidates(fleet: Fleet, data: DeployData, *, hosts: Iterable[str]) -> list[str]:
    """Give the hosts that listen and match, those first that have the replica, then those with most free space in the pool.

    A host that says its pool is gone or read-only comes last: it may have come back since. ``hosts`` empty: all.
    """
    named = tuple(dict.fromkeys(hosts))
    found = [
        name
        for name, status in fleet.hosts.items()
        if fleet.is_online(name) and (name in named if named else data.selects(name, status.labels))
    ]
    return sorted(found, key=lambda host: (*_rank(fleet, host, data), host))


def is_hopeless(standing: Standing) -> bool:
    """Whether another host is worth trying: this one has failed, or waits for what may never come."""
    if standing.phase is Phase.MISSING:
        return True
    return standing.code in OF_THE_HOST and standing.phase in {Phase.FAILED, Phase.PENDING}


def withdrawals(fleet: Fleet, data: DeployData, host: str) -> list[Wanted]:
    """Take back what was asked of a host: the machine, and the replica unless it was ready or others ask for it."""
    taken_back = [(DeployTopic(data.deployment, host), absent(data))]
    replica = fleet.replicas.get(ReplicaTopic(host, data.pool, data.template_name))
    is_ready = replica is not None and replica.state is ReplicaState.READY
    if not is_ready and not _is_asked_for(fleet, data, host):
        deployment = default_deployment(data.template_name, data.pool)
        plain = DeployData(deployment=deployment, template=data.template, pool=data.pool, ensure=Ensure.ABSENT)
        taken_back.append((DeployTopic(deployment, host), plain))
    return taken_back


def absent(data: DeployData) -> DeployData:
    """Ask for the machine to be removed; of the replica this says nothing."""
    name = data.machine.name if data.machine else ""
    return DeployData(
        deployment=data.deployment,
        template=data.template,
        pool=data.pool,
        hosts=data.hosts,
        ensure=Ensure.ABSENT,
        machine=Machine(name=name),
    )


def switched(fleet: Fleet, name: str, *, hosts: Iterable[str], is_on: bool) -> list[Wanted]:
    """Say what starts or stops a machine: its own event again, on its topic, or on the topics of the named hosts."""
    wanted: list[Wanted] = []
    for topic, one in _events_of(fleet, name, hosts=hosts):
        if one.data.machine is not None and one.data.ensure is Ensure.PRESENT:
            machine = one.data.machine.model_copy(update={"start": is_on})
            wanted.append((topic, one.data.model_copy(update={"machine": machine})))
    return wanted


def removed(fleet: Fleet, name: str, *, hosts: Iterable[str]) -> list[Wanted]:
    """Say what removes a machine; one whose event nobody retains is removed on its host's topic."""
    wanted = [(topic, absent(one.data)) for topic, one in _events_of(fleet, name, hosts=hosts)]
    named = set(hosts)
    covered = {topic.host for topic, _ in wanted}
    for topic, one in _events_of(fleet, name, hosts=()):
        covered |= {topic.host} if named else set(fleet.audience(one.event))
    for place, status in sorted(statuses(fleet, name).items(), key=lambda pair: pair[0].host):
        if place.host not in covered and (not named or place.host in named):
            wanted.append((DeployTopic(status.deployment, place.host), _absent_of(status)))
    return wanted


def statuses(fleet: Fleet, name: str) -> dict[MachineTopic, MachineStatus]:
    """Give what hosts say of a machine."""
    return {topic: status for topic, status in fleet.machines.items() if topic.name == name}


def _events_of(fleet: Fleet, name: str, *, hosts: Iterable[str]) -> Iterator[tuple[DeployTopic, Deployment]]:
    """Give the newest deploy events of a machine, each with the topic to publish a newer one on."""
    named = tuple(dict.fromkeys(hosts))
    for one in fleet.deployments():
        if one.data.machine is None or one.data.machine.name != name:
            continue
        if not named:
            yield one.topic, one
        for host in named:
            if host in fleet.audience(one.event):
                yield DeployTopic(one.data.deployment, host), one


def _is_asked_for(fleet: Fleet, data: DeployData, host: str) -> bool:
    """Whether another deployment wants this replica on the host."""
    return any(
        one.data.deployment != data.deployment
        and one.data.ensure is Ensure.PRESENT
        and host in fleet.audience(one.event)
        for one in fleet.deployments(data.template_name, data.pool)
    )


def _absent_of(status: MachineStatus) -> DeployData:
    return DeployData(
        deployment=status.deployment,
        template=status.template,
        pool=status.pool,
        ensure=Ensure.ABSENT,
        machine=Machine(name=status.name),
    )


def _rank(fleet: Fleet, host: str, data: DeployData) -> tuple[bool, bool, int]:
    pool = next((one for one in fleet.hosts[host].pools if one.name == data.pool), None)
    replica = fleet.replicas.get(ReplicaTopic(host, data.pool, data.template_name))
    is_usable = pool is not None and pool.state is PoolState.ACTIVE
    has_replica = replica is not None and replica.state is ReplicaState.READY
    return not is_usable, not has_replica, -(pool.available or 0) if pool else 0
