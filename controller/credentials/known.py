"""What is known to be out of each credential. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from controller.fleet import Fleet
from controller.registry import Stored
from kvmwire.codec import EventRefusedError, decode_event
from kvmwire.events import CredentialData, Ensure, Event
from kvmwire.status import CredentialStatus
from kvmwire.topics import CredentialTopic
from kvmwire.trust import ROOT


@dataclass(frozen=True, slots=True)
class Known:
    """What is out of one credential: the newest event of each topic, and what hosts have said, by host."""

    events: Mapping[CredentialTopic, Event]
    statuses: Mapping[str, CredentialStatus]

    def generation(self, topic: CredentialTopic) -> int:
        """Give the generation of what is on a topic; 0 for nothing."""
        event = self.events.get(topic)
        return (event.generation or 0) if event else 0

    def of_host(self, topic: CredentialTopic) -> int:
        """Give the highest generation that the host of a topic may know."""
        status = self.statuses.get(topic.host or "")
        shared = self.generation(CredentialTopic(topic.name))
        return max(self.generation(topic), shared, status.generation if status else 0)

    def has(self, topic: CredentialTopic, ensure: Ensure) -> bool:
        """Whether the topic's event wants this."""
        data = data_of(self.events.get(topic))
        return data is not None and data.ensure is ensure

    @property
    def highest(self) -> int:
        """Give the highest generation that anybody knows; 0 for none."""
        return max([0, *map(self.generation, self.events), *(one.generation for one in self.statuses.values())])


def known_credentials(fleet: Fleet, retained: Iterable[Stored]) -> defaultdict[str, Known]:
    """Gather, by credential, what is retained as the registry keeps it or the broker has it, and what hosts have said.

    The list of signing keys, which travels as a credential, is none of these.
    """
    events, statuses = (
        defaultdict[str, dict[CredentialTopic, Event]](dict),
        defaultdict[str, dict[str, CredentialStatus]](dict),
    )
    for stored in retained:
        topic = fleet.topics.parse(stored.topic)
        if isinstance(topic, CredentialTopic) and (event := _decoded(fleet, topic, stored.payload)) is not None:
            events[topic.name][topic] = event
    for topic, seen in fleet.events.items():
        if isinstance(topic, CredentialTopic):
            kept = events[topic.name].get(topic, seen.event)
            events[topic.name][topic] = max(seen.event, kept, key=lambda one: one.generation or 0)
    for topic, status in fleet.credentials.items():
        statuses[topic.credential][topic.host] = status
    found = defaultdict[str, Known](lambda: Known({}, {}))
    found.update({name: Known(events[name], statuses[name]) for name in (events.keys() | statuses.keys()) - {ROOT}})
    return found


def data_of(event: Event | None) -> CredentialData | None:
    """Give what an event hands out; None without an event."""
    return event.data if event is not None and isinstance(event.data, CredentialData) else None


def _decoded(fleet: Fleet, topic: CredentialTopic, payload: bytes) -> Event | None:
    try:
        return decode_event(fleet.topics, topic, payload)
    except EventRefusedError:
        return None  # of another version of kvmd
