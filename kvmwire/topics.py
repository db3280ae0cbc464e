"""Every MQTT topic, built and parsed in one place (``DESIGN``: the MQTT contract)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from kvmwire.codes import FailureCode, WireError
from kvmwire.names import is_event_id, is_name

DEFAULT_PREFIX = "kvmd/v1"


class Verb(StrEnum):
    """What a command asks a host to do."""

    CANCEL = "cancel"
    RECHECK = "recheck"
    REPAIR = "repair"
    SCRUB = "scrub"
    GC = "gc"
    ANNOUNCE = "announce"


@dataclass(frozen=True, slots=True)
class RegisterTopic:
    """Carries the retained Register event of a template."""

    template: str


@dataclass(frozen=True, slots=True)
class DeployTopic:
    """Carries a retained Deploy event; ``host`` None means the topic that all hosts read."""

    deployment: str
    host: str | None = None


@dataclass(frozen=True, slots=True)
class CredentialTopic:
    """Carries a retained credential; ``host`` None means the topic that all hosts read."""

    name: str
    host: str | None = None


@dataclass(frozen=True, slots=True)
class CommandTopic:
    """Carries a command, never retained; ``host`` None means the topic that all hosts read."""

    verb: Verb
    host: str | None = None


@dataclass(frozen=True, slots=True)
class HostTopic:
    """Carries a host's retained HostStatus, which is its last will too."""

    host: str


@dataclass(frozen=True, slots=True)
class ProbeTopic:
    """Carries what a host found out about a template's sources."""

    host: str
    template: str


@dataclass(frozen=True, slots=True)
class ReplicaTopic:
    """Carries the state of a template's replica in a pool of a host."""

    host: str
    pool: str
    template: str


@dataclass(frozen=True, slots=True)
class GcTopic:
    """Carries what a host made of the garbage in its pools, the last time that it looked."""

    host: str


@dataclass(frozen=True, slots=True)
class MachineTopic:
    """Carries the state of a virtual machine."""

    host: str
    name: str


@dataclass(frozen=True, slots=True)
class CredentialStatusTopic:
    """Carries whether a credential is installed on a host."""

    host: str
    credential: str


@dataclass(frozen=True, slots=True)
class ReceiptTopic:
    """Carries a host's answer to one event."""

    host: str
    event_id: str


@dataclass(frozen=True, slots=True)
class ProgressTopic:
    """Carries a running download's figures, at most once a second, QoS 0."""

    host: str
    pool: str
    template: str


EventTopic = RegisterTopic | DeployTopic | CredentialTopic | CommandTopic
StatusTopic = (
    HostTopic
    | ProbeTopic
    | ReplicaTopic
    | GcTopic
    | MachineTopic
    | CredentialStatusTopic
    | ReceiptTopic
    | ProgressTopic
)
Topic = EventTopic | StatusTopic


@dataclass(frozen=True, slots=True)
class Topics:
    """Builds and parses the topics under one prefix."""

    prefix: str = DEFAULT_PREFIX

    def __post_init__(self) -> None:
        """Raise WireError (EVENT_SCHEMA) for a prefix that is not a plain path of names."""
        if not all(is_name(level) for level in self.prefix.split("/")):
            raise WireError(
                FailureCode.EVENT_SCHEMA,
                f"topic prefix {self.prefix!a}: expected names separated by single slashes, such as {DEFAULT_PREFIX}.",
                hint="Correct mqtt.prefix.",
            )

    def build(self, topic: Topic) -> str:
        """Give the topic's text. The names inside were checked where they entered the program."""
        return "/".join((self.prefix, *_levels(topic)))

    def parse(self, text: str) -> Topic | None:
        """Read a topic; None where it is none of ours or holds something that is not a name."""
        start = self.prefix + "/"
        if not text.startswith(start):
            return None
        return _parse_levels(text[len(start) :].split("/"))

    def event_filters(self, host: str) -> tuple[str, ...]:
        """Name the subscriptions of one host: every event that can be meant for it, no filter overlapping another.

        As few as possible: nats-server keeps a consumer for each, and allows a stream 1000 of them by default.
        """
        return (f"{self.prefix}/register/+", f"{self.prefix}/+/all/+", f"{self.prefix}/+/host/{host}/+")

    def host_filters(self) -> tuple[str, ...]:
        """Name every host's own state. As with all filters of a controller, none of different names overlaps another."""
        return (f"{self.prefix}/status/+/host",)

    def wanted_filters(self, template: str = "+") -> tuple[str, ...]:
        """Name every retained event; register events of one template where it is named."""
        return (*self.register_filters(template), f"{self.prefix}/deploy/all/+", f"{self.prefix}/deploy/host/+/+")

    def register_filters(self, template: str = "+") -> tuple[str, ...]:
        """Name the register events of a template, or of all."""
        return (f"{self.prefix}/register/{template}",)

    def probe_filters(self, template: str = "+") -> tuple[str, ...]:
        """Name what hosts found at the sources of a template, or of all."""
        return (f"{self.prefix}/status/+/probe/{template}",)

    def outcome_filters(self, template: str = "+") -> tuple[str, ...]:
        """Name what hosts make of a template, or of all: probes and replicas."""
        return (*self.probe_filters(template), f"{self.prefix}/status/+/replica/+/{template}")

    def progress_filters(self, template: str = "+") -> tuple[str, ...]:
        """Name the figures of running downloads."""
        return (f"{self.prefix}/status/+/progress/+/{template}",)

    def gc_filters(self) -> tuple[str, ...]:
        """Name what hosts made of garbage."""
        return (f"{self.prefix}/status/+/gc",)

    def machine_filters(self, name: str = "+") -> tuple[str, ...]:
        """Name the states of virtual machines."""
        return (f"{self.prefix}/status/+/machine/{name}",)

    def receipt_filters(self) -> tuple[str, ...]:
        """Name the hosts' answers to events."""
        return (f"{self.prefix}/status/+/receipt/+",)

    def credential_filters(self, credential: str = "+") -> tuple[str, ...]:
        """Name what is handed out under a credential's name, or under any: as published, and what became of it on the hosts."""
        return (*self.handed_out_filters(credential), *self.credential_status_filters(credential))

    def handed_out_filters(self, credential: str = "+") -> tuple[str, ...]:
        """Name the events that hand out a credential, or any."""
        return (f"{self.prefix}/credential/all/{credential}", f"{self.prefix}/credential/host/+/{credential}")

    def credential_status_filters(self, credential: str = "+") -> tuple[str, ...]:
        """Name what became of a credential, or of any, on the hosts."""
        return (f"{self.prefix}/status/+/credential/{credential}",)

    def retained_filters(self) -> tuple[str, ...]:
        """Name all that is retained of hosts, events, probes and replicas."""
        return (*self.host_filters(), *self.wanted_filters(), *self.outcome_filters())


def _levels(topic: Topic) -> tuple[str, ...]:
    match topic:
        case RegisterTopic(template):
            return ("register", template)
        case DeployTopic(deployment, host):
            return ("deploy", *_audience(host), deployment)
        case CredentialTopic(name, host):
            return ("credential", *_audience(host), name)
        case CommandTopic(verb, host):
            return ("command", *_audience(host), verb.value)
        case HostTopic(host):
            return ("status", host, "host")
        case ProbeTopic(host, template):
            return ("status", host, "probe", template)
        case ReplicaTopic(host, pool, template):
            return ("status", host, "replica", pool, template)
        case GcTopic(host):
            return ("status", host, "gc")
        case MachineTopic(host, name):
            return ("status", host, "machine", name)
        case CredentialStatusTopic(host, credential):
            return ("status", host, "credential", credential)
        case ReceiptTopic(host, event_id):
            return ("status", host, "receipt", event_id)
        case ProgressTopic(host, pool, template):
            return ("status", host, "progress", pool, template)


def _audience(host: str | None) -> tuple[str, ...]:
    return ("all",) if host is None else ("host", host)


def _parse_levels(levels: list[str]) -> Topic | None:
    match levels:
        case ["status", host, "receipt", event_id] if is_name(host) and is_event_id(event_id):
            return ReceiptTopic(host, event_id)
        case _ if not all(is_name(level) for level in levels):
            return None
        case ["status", host, *rest]:
            return _parse_status(host, rest)
        case ["register", template]:
            return RegisterTopic(template)
        case [kind, "all", last]:
            return _parse_addressed(kind, None, last)
        case [kind, "host", host, last]:
            return _parse_addressed(kind, host, last)
        case _:
            return None


def _parse_addressed(kind: str, host: str | None, last: str) -> EventTopic | None:
    match kind:
        case "deploy":
            return DeployTopic(last, host)
        case "credential":
            return CredentialTopic(last, host)
        case "command" if last in set(Verb):
            return CommandTopic(Verb(last), host)
        case _:
            return None


def _parse_status(host: str, rest: list[str]) -> StatusTopic | None:
    match rest:
        case ["host"]:
            return HostTopic(host)
        case ["gc"]:
            return GcTopic(host)
        case ["probe", template]:
            return ProbeTopic(host, template)
        case ["replica", pool, template]:
            return ReplicaTopic(host, pool, template)
        case ["machine", name]:
            return MachineTopic(host, name)
        case ["credential", name]:
            return CredentialStatusTopic(host, name)
        case ["progress", pool, template]:
            return ProgressTopic(host, pool, template)
        case _:
            return None
