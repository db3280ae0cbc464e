"""The view of the fleet: folds retained events and statuses, and answers questions about them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from kvmwire.codec import EventRefusedError, decode_event, decode_status
from kvmwire.codes import WireError
from kvmwire.events import CommandData, CredentialData, DeployData, Ensure, Event, RegisterData
from kvmwire.signing import is_signed_by
from kvmwire.status import (
    CredentialStatus,
    GcStatus,
    HostState,
    HostStatus,
    MachineStatus,
    ProbeStatus,
    Progress,
    Receipt,
    ReplicaStatus,
    Status,
)
from kvmwire.topics import (
    CommandTopic,
    CredentialStatusTopic,
    CredentialTopic,
    DeployTopic,
    EventTopic,
    GcTopic,
    HostTopic,
    MachineTopic,
    ProbeTopic,
    ProgressTopic,
    ReceiptTopic,
    RegisterTopic,
    ReplicaTopic,
    StatusTopic,
    Topic,
    Topics,
)
from kvmwire.trust import TrustList


@dataclass(frozen=True, slots=True)
class Seen:
    """A retained event, decoded, and the bytes the broker keeps."""

    event: Event
    payload: bytes


@dataclass(frozen=True, slots=True)
class StatusChange:
    """A host said something; ``value`` is None where it took a retained status back."""

    topic: StatusTopic
    value: Status | None


@dataclass(frozen=True, slots=True)
class EventChange:
    """An event was published; ``seen`` is None where the retained one was cleared, or nobody can read it."""

    topic: EventTopic
    seen: Seen | None
    error: EventRefusedError | None = None


@dataclass(frozen=True, slots=True)
class Overwritten:
    """An older event came on a topic after the newer one ``seen``, which stays in the view, though not at the broker."""

    topic: EventTopic
    seen: Seen


Change = StatusChange | EventChange | Overwritten


@dataclass(frozen=True, slots=True)
class Deployment:
    """A readable deploy event with its topic and data."""

    topic: DeployTopic
    event: Event
    data: DeployData


class Fleet:
    """What is known of hosts, templates, deployments, replicas, garbage, machines, probes and credentials.

    Only ``take``, ``leave_out`` and ``forget_events`` change it.
    Of two events on one topic the higher generation stays, of two statuses the one that came last. Whatever comes on
    different topics may come in any order.
    """

    def __init__(self, topics: Topics) -> None:
        self.topics = topics
        self.hosts: dict[str, HostStatus] = {}
        self.events: dict[EventTopic, Seen] = {}
        self.unreadable: dict[EventTopic, EventRefusedError] = {}
        self.probes: dict[ProbeTopic, ProbeStatus] = {}
        self.replicas: dict[ReplicaTopic, ReplicaStatus] = {}
        self.progress: dict[ProgressTopic, Progress] = {}
        self.credentials: dict[CredentialStatusTopic, CredentialStatus] = {}
        self.garbage: dict[GcTopic, GcStatus] = {}
        self.machines: dict[MachineTopic, MachineStatus] = {}
        self.revoked: frozenset[str] = frozenset()
        self.trust = TrustList()

    def take(self, text: str, payload: bytes) -> Change | None:
        """Fold one message; None where it changes nothing or is not readable as a status. Never raises."""
        match self.topics.parse(text):
            case None | CommandTopic():
                return None
            case RegisterTopic() | DeployTopic() | CredentialTopic() as topic:
                return self._take_event(topic, payload)
            case (
                HostTopic()
                | ProbeTopic()
                | ReplicaTopic()
                | ProgressTopic()
                | ReceiptTopic()
                | CredentialStatusTopic()
                | GcTopic()
                | MachineTopic()
            ) as topic:
                return self._take_status(topic, payload)

    def forget_events(self) -> None:
        """Forget which events are retained, because the broker is about to send them again."""
        self.events.clear()
        self.unreadable.clear()

    def is_believed(self, event: Event) -> bool:
        """Whether hosts that require signatures believe the event, as far as its key goes; true where no keys are known here."""
        if not self.trust.keys:
            return True
        key = self.trust.find(event.signature.keyid) if event.signature else None
        return (
            key is not None
            and not key.is_revoked
            and event.signature is not None
            and is_signed_by(event.signature, key)
        )

    def leave_out(self, revoked: Iterable[str]) -> None:
        """Know nothing of these hosts from now on: the broker keeps for ever what a revoked one has said, `online` included."""
        self.revoked = frozenset(revoked)
        known: list[StatusTopic] = [
            *map(HostTopic, self.hosts),
            *self.probes,
            *self.replicas,
            *self.progress,
            *self.credentials,
            *self.garbage,
            *self.machines,
        ]
        for topic in known:
            if topic.host in self.revoked:
                self._drop(topic)

    def is_for_revoked(self, topic: Topic) -> bool:
        """Whether a credential is handed out there to a host that was revoked."""
        return isinstance(topic, CredentialTopic) and topic.host in self.revoked

    def templates(self) -> dict[str, RegisterData]:
        """Templates that are registered, by name."""
        found = dict[str, RegisterData]()
        for seen in self.events.values():
            data = seen.event.data
            if isinstance(data, RegisterData) and data.ensure is Ensure.PRESENT:
                found[data.template] = data
        return dict(sorted(found.items()))

    def template(self, name: str) -> RegisterData | None:
        """Give the record of a template, unless it was never registered, or unregistered."""
        seen = self.events.get(RegisterTopic(name))
        if seen is None or not isinstance(seen.event.data, RegisterData):
            return None
        return seen.event.data if seen.event.data.ensure is Ensure.PRESENT else None

    def is_known(self, template: str) -> bool:
        """Whether a register event, a deploy event or a host tells of the template."""
        told = {one.template for one in self.probes} | {one.template for one in self.replicas}
        return self.template(template) is not None or any(self.deployments(template)) or template in told

    def deployments(self, template: str | None = None, pool: str | None = None) -> Iterator[Deployment]:
        """Deploy events, of one template or pool where it is named."""
        for topic, seen in self.events.items():
            data = seen.event.data
            if not isinstance(topic, DeployTopic) or not isinstance(data, DeployData):
                continue
            if template in {None, data.template_name} and pool in {None, data.pool}:
                yield Deployment(topic, seen.event, data)

    def is_online(self, host: str) -> bool:
        """Whether the host listens, as far as the broker knows."""
        status = self.hosts.get(host)
        return status is not None and status.state is HostState.ONLINE

    def supersedes(self, event: Event) -> bool:
        """Whether a newer event is known on its topic."""
        seen = self.events.get(event.topic)
        return seen is not None and _is_older(event, than=seen.event)

    def audience(self, event: Event) -> frozenset[str]:
        """Hosts that this event is meant for: those known, and those that it names."""
        match event.topic, event.data:
            case DeployTopic(host=str(host)), DeployData() as data:
                is_selected = data.selects(host, self._labels(host))
                return frozenset([host]) if is_selected else frozenset()
            case _, DeployData(hosts=tuple(names)):
                return frozenset(names)
            case _, DeployData() as data:
                return frozenset(host for host in self.hosts if data.selects(host, self._labels(host)))
            case CommandTopic(host=str(host)), CommandData():
                return frozenset([host])
            case CredentialTopic(host=str(host)), CredentialData():
                return frozenset([host]) - self.revoked
            case _:
                return frozenset(self.hosts)

    def generation_of_template(self, template: str) -> int:
        """Give the highest generation known for a template; 0 for none."""
        seen = self.events.get(RegisterTopic(template))
        known = [probe.generation for topic, probe in self.probes.items() if topic.template == template]
        return max([seen.event.generation or 0 if seen else 0, *known])

    def generation_of_replicas(self, template: str, pool: str) -> int:
        """Give the highest generation known for a template in a pool, on any host; 0 for none."""
        statuses = (s for t, s in self.replicas.items() if (t.template, t.pool) == (template, pool))
        events = (d.event.generation or 0 for d in self.deployments(template, pool))
        return max([0, *(status.generation for status in statuses), *events])

    def generation_of_machine(self, name: str) -> int:
        """Give the highest generation known of a machine, on any host; 0 for none."""
        return max([0, *(status.generation for topic, status in self.machines.items() if topic.name == name)])

    def machines_on(self, host: str, *, template: str, pool: str) -> tuple[str, ...]:
        """Name the machines that stand on a replica, or are to, as far as the host has told."""
        return tuple(
            sorted(
                topic.name
                for topic, status in self.machines.items()
                if (topic.host, status.template, status.pool) == (host, template, pool)
            )
        )

    def _labels(self, host: str) -> dict[str, str]:
        status = self.hosts.get(host)
        return status.labels if status else {}

    def _take_event(
        self, topic: RegisterTopic | DeployTopic | CredentialTopic, payload: bytes
    ) -> EventChange | Overwritten | None:
        if not payload:
            self.unreadable.pop(topic, None)
            return EventChange(topic, None) if self.events.pop(topic, None) else None
        try:
            event = decode_event(self.topics, topic, payload)
        except EventRefusedError as exc:
            self.unreadable[topic] = exc
            return EventChange(topic, None, exc)
        self.unreadable.pop(topic, None)
        known = self.events.get(topic)
        if known is not None and _is_older(event, than=known.event):
            return Overwritten(topic, known)
        seen = Seen(event, payload)
        self.events[topic] = seen
        return EventChange(topic, seen)

    def _take_status(self, topic: StatusTopic, payload: bytes) -> StatusChange | None:
        if not payload:
            return StatusChange(topic, None) if self._drop(topic) else None
        if topic.host in self.revoked:
            return None
        try:
            status = decode_status(topic, payload)
        except WireError:
            return None  # a host of a later version, or a stranger: what it says is not for us
        match topic, status:
            case HostTopic(host), HostStatus():
                status = _with_facts(status, self.hosts.get(host))
                self.hosts[host] = status
            case ProbeTopic(), ProbeStatus():
                self.probes[topic] = status
            case ReplicaTopic(host, pool, template), ReplicaStatus():
                self.replicas[topic] = status
                if not status.state.is_running:
                    self.progress.pop(ProgressTopic(host, pool, template), None)
            case ProgressTopic(), Progress():
                self.progress[topic] = status
            case CredentialStatusTopic(), CredentialStatus():
                self.credentials[topic] = status
            case MachineTopic(), MachineStatus():
                self.machines[topic] = status
            case GcTopic(), GcStatus():
                self.garbage[topic] = status
            case ReceiptTopic(), Receipt():
                pass  # receipts belong to whoever asked, and to the registry
            case _:
                return None
        return StatusChange(topic, status)

    def _drop(self, topic: StatusTopic) -> bool:
        match topic:
            case HostTopic(host):
                return self.hosts.pop(host, None) is not None
            case ProbeTopic():
                return self.probes.pop(topic, None) is not None
            case ReplicaTopic():
                return self.replicas.pop(topic, None) is not None
            case ProgressTopic():
                return self.progress.pop(topic, None) is not None
            case GcTopic():
                return self.garbage.pop(topic, None) is not None
            case CredentialStatusTopic():
                return self.credentials.pop(topic, None) is not None
            case MachineTopic():
                return self.machines.pop(topic, None) is not None
            case _:
                return False


def _is_older(event: Event, *, than: Event) -> bool:
    """Whether both have generations and this one's is lower; an event without one is newer than all before."""
    return event.generation is not None and than.generation is not None and event.generation < than.generation


def _with_facts(status: HostStatus, known: HostStatus | None) -> HostStatus:
    """Keep labels and pools when a last will says no more than that the host is gone."""
    if known is None or status.state is HostState.ONLINE or status.labels or status.pools:
        return status
    return known.model_copy(update={"state": status.state, "since": status.since})
