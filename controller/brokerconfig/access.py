"""Who may publish and read which topics: the rules of every role, in one place, for brokers of every kind.

An identity is the common name of a client certificate of the fleet's CA. Each has rules of its own, made for its name: there
is no pattern that a name could be shaped to fit, and whoever is not among the identities may do nothing.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from controller.errors import UsageError
from kvmwire.names import NAME_PATTERN, is_name
from kvmwire.topics import Topics

DEFAULT_CONTROLLER = "controller"
_LEVELS = {"all", "host"}
"""Levels of topics that stand where other topics have a host's name: ``deploy/all/x``, ``deploy/host/kvm01/x``."""


@dataclass(frozen=True, slots=True)
class Identities:
    """The common names that a broker lets in, by role: hosts, controllers, and publishers of templates and deployments."""

    hosts: tuple[str, ...] = ()
    controllers: tuple[str, ...] = (DEFAULT_CONTROLLER,)
    publishers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raise UsageError for what is no name, for a name with two roles, and for hosts whose topics would be others' too."""
        names = (*self.hosts, *self.controllers, *self.publishers)
        for name in names:
            if not is_name(name):
                raise _refused(f"{name[:80]!a} is no name: expected {NAME_PATTERN}", "Correct the name.")
        for name in self.hosts:
            if name in _LEVELS:
                raise _refused(
                    f"a host cannot be named {name!a}: topics such as deploy/{name}/... mean something else",
                    "Enrol the host under another name.",
                )
        twice = sorted(name for name, count in Counter(names).items() if count > 1)
        if twice:
            raise _refused(
                f"{', '.join(twice)}: named more than once; a certificate has one role, and its rights would add up",
                "Give each host, controller and publisher a name of its own.",
            )


@dataclass(frozen=True, slots=True)
class Access:
    """What the bearer of one certificate may do, as filters of MQTT topics.

    Messages that fit ``reads`` may reach it. ``subscriptions`` are filters which it may ask for though they are wider: only
    messages that fit ``reads`` exist there.
    """

    name: str
    publishes: tuple[str, ...]
    reads: tuple[str, ...] = ()
    subscriptions: tuple[str, ...] = ()


def accesses(topics: Topics, identities: Identities) -> tuple[Access, ...]:
    """Give the rules of every identity: controllers, then publishers, then hosts, each sorted by name."""
    return (
        *(_controller(topics, name) for name in sorted(identities.controllers)),
        *(_publisher(topics, name) for name in sorted(identities.publishers)),
        *(_host(topics, name) for name in sorted(identities.hosts)),
    )


def _controller(topics: Topics, name: str) -> Access:
    """Publish every event, and read everything; what hosts say of themselves is theirs alone to write."""
    kinds = ("deploy", "credential", "command")
    return Access(
        name,
        publishes=_under(
            topics, "register/+", *(f"{kind}/{audience}" for kind in kinds for audience in ("all/+", "host/+/+"))
        ),
        reads=_under(topics, "#"),
    )


def _publisher(topics: Topics, name: str) -> Access:
    """Publish templates and deployments, and read nothing."""
    return Access(name, publishes=_under(topics, "register/+", "deploy/all/+", "deploy/host/+/+"))


def _host(topics: Topics, name: str) -> Access:
    """Publish what the host says of itself; read the events that are meant for it, and what shows it that it is heard."""
    kinds = ("deploy", "credential", "command")
    return Access(
        name,
        publishes=_under(topics, f"status/{name}/#"),
        reads=_under(
            topics,
            "register/+",
            *(f"{kind}/{audience}" for kind in kinds for audience in ("all/+", f"host/{name}/+")),
            f"status/{name}/host",
            f"status/{name}/receipt/+",
        ),
        subscriptions=topics.event_filters(name),
    )


def _under(topics: Topics, *filters: str) -> tuple[str, ...]:
    return tuple(f"{topics.prefix}/{one}" for one in filters)


def _refused(what: str, hint: str) -> UsageError:
    return UsageError(f"broker-config: {what}; nothing was written.", hint=hint)
