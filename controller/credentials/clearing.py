"""Clearing what is retained for hosts that were revoked: neither the broker nor the registry keeps it for them."""

from __future__ import annotations

from controller.publish import Sender, publish_kept
from controller.registry import Registry


async def clear_revoked(sender: Sender) -> tuple[str, ...]:
    """Clear the credential topics of revoked hosts, and give them. Raises ControlError; the same call later does the rest.

    The registry forgets first what is retained there: `kvmctl serve` would restore it.
    """
    fleet = sender.fleet
    kept = {fleet.topics.parse(stored.topic) for stored in await sender.archive.call(Registry.retained)}
    known = kept | fleet.events.keys() | fleet.unreadable.keys()
    topics = sorted(fleet.topics.build(topic) for topic in known if topic is not None and fleet.is_for_revoked(topic))
    if topics:
        await sender.archive.call(lambda registry: registry.drop_topics(topics))
    for topic in topics:
        await publish_kept(sender, topic, b"", is_retained=True)
    return tuple(topics)
