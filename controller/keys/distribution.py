"""Telling the fleet which keys count, and signing anew what a former key of the controller has signed."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

from controller.errors import ControlError
from controller.keys.keyring import FleetKeys
from controller.keys.rotation import retired_keys, signed_anew
from controller.keys.signer import Signer
from controller.publish import Sent, make_event, now_utc, publish_one
from controller.registry import Registry
from controller.session import Session
from kvmwire.events import CredentialData, Event
from kvmwire.topics import CredentialTopic, DeployTopic, EventTopic, RegisterTopic
from kvmwire.trust import ROOT


@dataclass(frozen=True, slots=True)
class Distributed:
    """What was published: the list of keys, and the topics of events that were signed anew."""

    sent: Sent
    signed_anew: tuple[str, ...]


def trust_event(keys: FleetKeys) -> Event:
    """Make the event that carries the list of keys. Its id follows from the generation: told twice, it is one event."""
    data = CredentialData(credential=ROOT, trust=keys.trust)
    generation = keys.trust.generation
    event = make_event(CredentialTopic(ROOT), data, generation=generation, now=now_utc())
    return replace(event, id=f"{ROOT}-{generation}")


async def distribute(session: Session, keys: FleetKeys) -> Distributed:
    """Publish the list, signed by the root key, then what was signed anew: hosts know the new key by then.

    Raises ControlError; the same call later does what is left to do.
    """
    root = await asyncio.to_thread(lambda: Signer(keys.root_key))
    sent = await publish_one(session, trust_event(keys), root)
    return Distributed(sent, tuple(await _sign_anew(session, keys)))


async def _sign_anew(session: Session, keys: FleetKeys) -> list[str]:
    retired = retired_keys(keys.register, now_utc())
    if not retired:
        return []
    known = await _retained(session)
    key = await asyncio.to_thread(lambda: keys.signing_key)
    done = list[str]()
    for topic, (event_id, payload) in known.items():
        fresh = signed_anew(session.topics, topic, payload, retired=retired, key=key)
        if fresh is None:
            continue
        await session.archive.call(partial(Registry.replace_payloads, payloads={event_id: fresh}))
        text = session.topics.build(topic)
        await session.link.publish(text, fresh, is_retained=True)
        done.append(text)
    return done


async def _retained(session: Session) -> Mapping[EventTopic, tuple[str, bytes]]:
    """Give the newest event of each topic: what the registry keeps, and what the broker has beside it."""
    known, generations = dict[EventTopic, tuple[str, bytes]](), dict[EventTopic, int]()
    for stored in await session.archive.call(Registry.retained):
        topic = session.topics.parse(stored.topic)
        if isinstance(topic, RegisterTopic | DeployTopic | CredentialTopic):
            known[topic] = stored.id, stored.payload
            generations[topic] = stored.generation or 0
    for topic, seen in session.fleet.events.items():
        if (seen.event.generation or 0) >= generations.get(topic, 0):
            known[topic] = seen.event.id, seen.payload
    return known


def not_told(error: ControlError) -> ControlError:
    """Say that the keys were changed here and that hosts do not know it yet."""
    told = ControlError(
        f"the keys were changed, but hosts were not told: {error.message}",
        hint=f"{error.hint} Then tell them with: kvmctl keys publish",
        code=error.code,
    )
    told.exit = error.exit
    return told
