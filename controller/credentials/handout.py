"""What has to be published so that hosts have what they are to have. Pure, but for the random numbers of sealing.

One rule for a new credential, for a host that joins later and for a revocation: compare what is kept with what is known to be
out, and publish the difference. An event of a higher generation that takes it away is never overruled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from controller.credentials.known import Known, data_of
from controller.credentials.record import Recipient, Record
from kvmwire.events import CredentialData, Ensure, Event, Sealed
from kvmwire.seal import Binding, seal
from kvmwire.status import CredentialState
from kvmwire.topics import CredentialTopic

Newer = Callable[[int], int]
"""Gives a generation above the given one: see ``controller.publish.next_generation``."""


@dataclass(frozen=True, slots=True)
class Part:
    """One event to make."""

    topic: CredentialTopic
    data: CredentialData
    generation: int


def due(
    record: Record, secret: bytes | None, recipients: Iterable[Recipient], known: Known, *, newer: Newer
) -> list[Part]:
    """Give what has to be published still. ``secret`` is the record's, in clear, where it has one."""
    if record.ensure is Ensure.ABSENT:
        return list(_revocations(record, known, newer))
    if record.is_public:
        return [*_for_all(record, known), *_exclusions(record, known, newer)]
    return _for_hosts(record, secret, record.targets(recipients), known, newer)


def withdrawn(record: Record, recipients: Iterable[Recipient], known: Known) -> list[Part]:
    """Give what takes it from hosts that had it and are selected no more, just before a new generation goes out."""
    if record.is_public:
        return []
    parts, shared = list[Part](), CredentialTopic(record.name)
    if known.has(shared, Ensure.PRESENT) and known.generation(shared) < record.generation - 1:
        parts.append(_tombstone(shared, record.generation - 1))  # less than what the selected hosts get
    selected = {one.name for one in record.targets(recipients)}
    for topic in known.events:
        if topic.host is not None and topic.host not in selected and known.has(topic, Ensure.PRESENT):
            parts.append(_tombstone(topic, record.generation))
    return parts


def taken_from(name: str, hosts: Iterable[str], known: Known, *, newer: Newer) -> list[Part]:
    """Give what revokes it on these hosts alone."""
    topics = [CredentialTopic(name, host) for host in hosts]
    return [_tombstone(topic, newer(known.of_host(topic))) for topic in topics]


def _for_all(record: Record, known: Known) -> Iterator[Part]:
    topic = CredentialTopic(record.name)
    if known.generation(topic) < record.generation:
        yield Part(topic, _present(record, None), record.generation)


def _exclusions(record: Record, known: Known, newer: Newer) -> Iterator[Part]:
    """Keep an event for all from hosts on which it was revoked."""
    for host in record.excluded:
        topic = CredentialTopic(record.name, host)
        shared = max(record.generation, known.generation(CredentialTopic(record.name)))
        if not known.has(topic, Ensure.ABSENT) or known.generation(topic) <= shared:
            yield _tombstone(topic, newer(max(shared, known.of_host(topic))))


def _for_hosts(
    record: Record, secret: bytes | None, selected: Sequence[Recipient], known: Known, newer: Newer
) -> list[Part]:
    """Seal it to those who have none, each generation once: the content is encrypted once and its key wrapped for each."""
    first, again = list[Recipient](), list[Recipient]()
    for one in selected:
        topic = CredentialTopic(record.name, one.name)
        if _is_settled(record, one, known.events.get(topic)):
            continue
        (first if known.of_host(topic) < record.generation else again).append(one)
    parts = _sealed(record, secret, first, record.generation) if first else []
    if again:
        highest = max(known.of_host(CredentialTopic(record.name, one.name)) for one in again)
        parts += _sealed(record, secret, again, newer(max(highest, record.generation)))
    return parts


def _is_settled(record: Record, recipient: Recipient, event: Event | None) -> bool:
    """Whether the host's topic holds what it can use, or something newer that takes it away."""
    data = data_of(event)
    if event is None or data is None or (event.generation or 0) < record.generation:
        return False
    if data.ensure is Ensure.ABSENT:
        return (event.generation or 0) > record.generation
    return data.sealed is None or record.sealed is None or data.sealed.recipient == recipient.keyid


def _sealed(record: Record, secret: bytes | None, recipients: Sequence[Recipient], generation: int) -> list[Part]:
    binding = Binding(record.name, generation, record.origins or ())
    keys = {one.name: one.key for one in recipients if one.key is not None}
    sealed = seal(secret, binding, keys) if secret is not None else {}
    return [
        Part(CredentialTopic(record.name, one.name), _present(record, sealed.get(one.name)), generation)
        for one in recipients
    ]


def _revocations(record: Record, known: Known, newer: Newer) -> Iterator[Part]:
    """Take it away on the topic of all, for hosts that nobody knows, and wherever anything of it is out."""
    out = {topic for topic in known.events if known.has(topic, Ensure.PRESENT)}
    using = {h for h, status in known.statuses.items() if status.state is not CredentialState.REVOKED}
    topics = {CredentialTopic(record.name), *out, *(CredentialTopic(record.name, host) for host in using)}
    for topic in sorted(topics, key=lambda one: one.host or ""):
        if known.has(topic, Ensure.ABSENT) and known.generation(topic) >= record.generation:
            continue
        highest = known.of_host(topic) if topic.host is not None else known.generation(topic)
        generation = record.generation if highest < record.generation else newer(highest)
        yield _tombstone(topic, generation)


def _present(record: Record, sealed: Sealed | None) -> CredentialData:
    return CredentialData(credential=record.name, origins=record.origins, anchors=record.anchors, sealed=sealed)


def _tombstone(topic: CredentialTopic, generation: int) -> Part:
    return Part(topic, CredentialData(credential=topic.name, ensure=Ensure.ABSENT), generation)
