"""Telling the fleet which keys count, and signing anew what a former key of the controller has signed."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

from controller.credentials.clearing import clear_revoked
from controller.errors import ControlError
from controller.keys.keyring import FleetKeys
from controller.keys.rotation import retired_keys, signed_anew
from controller.keys.signer import Signer
from controller.publish import Sent, make_event, now_utc, publish_kept, publish_one
from controller.registry import Registry
from controller.session import Session
from kvmwire.events import CredentialData, Event
from kvmwire.topics import CredentialTopic, DeployTopic, EventTopic, RegisterTopic
from kvmwire.trust import ROOT


@dataclass(frozen=True, slots=True)
class Distributed:
    """What was published: the list of keys, and the topics of events that were cleared, signed anew, or left as they are."""

    sent: Sent
    cleared: tuple[str, ...]
    signed_anew: tuple[str, ...]
    left: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Retained:
    """An event as it is kept; ``is_ours``: this controller published exactly that."""

    event_id: str
    payload: bytes
    is_ours: bool


def trust_event(keys: FleetKeys) -> Event:
    """Make the event that carries the list of keys. Its id follows from the generation: told twice, it is one event."""
    data = CredentialData(credential=ROOT, trust=keys.trust)
    generation = keys.trust.generation
    event = make_event(CredentialTopic(ROOT), data, generation=generation, now=now_utc())
    return replace(event, id=f"{ROOT}-{generation}")


async def distribute(session: Session, keys: FleetKeys) -> Distributed:
    """Publish the list, signed by the root key, then what was signed anew: hosts know the new key by then.

    What is retained for revoked hosts is cleared rather than signed.

    Raises ControlError; the same call later does what is left to do.
    """
    root = await asyncio.to_thread(lambda: Signer(keys.root_key))
    sent = await publish_one(session, trust_event(keys), root)
    cleared = await clear_revoked(session)
    return Distributed(sent, cleared, *await _sign_anew(session, keys))


async def _sign_anew(session: Session, keys: FleetKeys) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Sign what former keys have signed, and give the topics of what was, and of what was not.

    A key whose time is over may have been stolen: of what it signed only our own counts.
    """
    now = now_utc()
    retired = retired_keys(keys.register, now)
    believed = [key for key in retired if key.is_valid_at(now)]
    if not retired:
        return (), ()
    known = await _retained(session)
    key = await asyncio.to_thread(lambda: keys.signing_key)
    done, left = list[str](), list[str]()
    for topic, one in known.items():
        if session.fleet.is_for_revoked(topic):
            continue
        text = session.topics.build(topic)
        fresh = signed_anew(session.topics, topic, one.payload, retired=retired, key=key)
        if fresh is None:
            continue
        if not one.is_ours and signed_anew(session.topics, topic, one.payload, retired=believed, key=key) is None:
            left.append(text)
            continue
        await session.archive.call(partial(Registry.replace_payloads, payloads={one.event_id: fresh}))
        await publish_kept(session, text, fresh, is_retained=True)
        done.append(text)
    return tuple(done), tuple(left)


async def _retained(session: Session) -> Mapping[EventTopic, _Retained]:
    """Give the newest event of each topic: what the registry keeps, and what the broker has beside it."""
    known, generations = dict[EventTopic, _Retained](), dict[EventTopic, int]()
    for stored in await session.archive.call(Registry.retained):
        topic = session.topics.parse(stored.topic)
        if isinstance(topic, RegisterTopic | DeployTopic | CredentialTopic):
            known[topic] = _Retained(stored.id, stored.payload, stored.is_ours)
            generations[topic] = stored.generation or 0
    for topic, seen in session.fleet.events.items():
        ours = known.get(topic)
        if (seen.event.generation or 0) >= generations.get(topic, 0):
            is_ours = ours is not None and ours.is_ours and ours.payload == seen.payload
            known[topic] = _Retained(seen.event.id, seen.payload, is_ours)
    return known


def not_told(error: ControlError, *, is_changed: bool) -> ControlError:
    """Say that hosts were not told which keys count, and whether these were changed here before."""
    begin = "the keys were changed, but hosts were not told" if is_changed else "hosts were not told which keys count"
    told = ControlError(
        f"{begin}: {error.message}",
        hint=f"{error.hint} Then tell them with: kvmctl keys publish",
        code=error.code,
    )
    told.exit = error.exit
    return told
