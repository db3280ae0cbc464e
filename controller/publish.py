"""Making events and publishing them: kept in the registry first, then sent, then followed until the receipts come."""

from __future__ import annotations

import asyncio
import socket
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol

from controller.archive import Archive
from controller.broker import Link
from controller.config import Settings
from controller.delivery import Deliveries
from controller.errors import ControlError
from controller.fleet import Fleet
from controller.keys.signer import Signer
from controller.registry import Stored
from controller.session import Session
from kvmwire.codec import content_of, encode_event
from kvmwire.codes import FailureCode, WireError
from kvmwire.events import MAX_GENERATION, CommandData, DeployData, Ensure, Event, EventData, RegisterData
from kvmwire.status import ReplicaState
from kvmwire.topics import CommandTopic, DeployTopic, EventTopic, RegisterTopic, Verb

COMMAND_LIFE = timedelta(hours=1)
_PUBLISH_TIMEOUT_S = 30.0


class Sender(Protocol):
    """What events are published through: a command's session, or the long-running controller."""

    @property
    def settings(self) -> Settings:
        """Tells what signs them."""
        ...

    @property
    def fleet(self) -> Fleet:
        """Tells whom they are meant for."""
        ...

    @property
    def archive(self) -> Archive:
        """Keeps them before they are sent."""
        ...

    @property
    def deliveries(self) -> Deliveries:
        """Follows them."""
        ...

    @property
    def link(self) -> Link:
        """Sends them."""
        ...


@dataclass(frozen=True, slots=True)
class Sent:
    """A published event and the hosts it was meant for."""

    event: Event
    topic: str
    hosts: frozenset[str]


def source() -> str:
    """Name this controller in the events it makes."""
    return f"kvmctl@{socket.gethostname()}"


def default_deployment(template: str, pool: str) -> str:
    """Name the deployment of a template in a pool."""
    return template if pool == "default" else f"{template}.{pool}"


def next_generation(now: datetime, *known: int, highest: int = MAX_GENERATION) -> int:
    """Milliseconds since the epoch, but higher than every known generation. Raises ControlError where none is left."""
    found = max(int(now.timestamp() * 1000), *(one + 1 for one in known), 1)
    if found > highest:
        raise ControlError(
            f"generation {max(known)} is known of this subject, and none above {highest} may be given.",
            hint="Somebody, an event or a host's status, has used it up: use another name, or clear what is retained.",
            code=FailureCode.EVENT_STALE,
        )
    return found


def make_event(topic: EventTopic, data: EventData, *, generation: int | None, now: datetime) -> Event:
    """Make an event of this controller. Commands expire: nobody wants last week's cancel."""
    return Event(
        id=str(uuid.uuid4()),
        topic=topic,
        data=data,
        content=content_of(data),
        source=source(),
        is_bare=False,
        generation=generation,
        time=now,
        expires=now + COMMAND_LIFE if isinstance(data, CommandData) else None,
    )


def register_event(fleet: Fleet, data: RegisterData, *, known: int, now: datetime) -> Event:
    """Make the event that registers a template or, with ``ensure: absent``, unregisters it."""
    generation = next_generation(now, known, fleet.generation_of_template(data.template))
    return make_event(RegisterTopic(data.template), data, generation=generation, now=now)


def deploy_events(
    fleet: Fleet, wanted: Iterable[tuple[DeployTopic, DeployData]], *, known: int, now: datetime
) -> list[Event]:
    """Make deploy events; those about one template in one pool get rising generations, so that none equals another."""
    events = list[Event]()
    highest = dict[tuple[str, str], int]()
    for topic, data in wanted:
        subject = data.template_name, data.pool
        of_machine = fleet.generation_of_machine(data.machine.name) if data.machine else 0
        known_here = fleet.generation_of_replicas(*subject), of_machine, highest.get(subject, 0)
        generation = next_generation(now, known, *known_here)
        highest[subject] = generation
        events.append(make_event(topic, data, generation=generation, now=now))
    return events


def removals(
    fleet: Fleet, template: str, *, hosts: Iterable[str], pool: str | None
) -> list[tuple[DeployTopic, DeployData]]:
    """Say what makes a template absent: on each topic that deploys it, or on the named hosts' own topics.

    A replica whose deploy event nobody retains any more is removed on its host's topic, and one that a machine was made from: the
    machine's event stays.
    """
    named = tuple(hosts)
    if named:
        places = [(host, one) for host in named for one in _pools_on(fleet, template, host=host, pool=pool)]
        return _removals_at(fleet, template, places)
    deployments = tuple(d for d in fleet.deployments(template, pool) if d.data.machine is None)
    covered = {(host, d.data.pool) for d in deployments for host in fleet.audience(d.event)}
    left = {
        (topic.host, topic.pool)
        for topic, status in fleet.replicas.items()
        if topic.template == template and pool in {None, topic.pool} and status.state is not ReplicaState.ABSENT
    }
    return [(d.topic, _absent(d.data)) for d in deployments] + _removals_at(fleet, template, sorted(left - covered))


def commands(verb: Verb, data: CommandData, *, hosts: Iterable[str], now: datetime) -> list[Event]:
    """Make a command for all hosts, or one for each that is named."""
    topics = [CommandTopic(verb, host) for host in hosts] or [CommandTopic(verb)]
    return [make_event(topic, data, generation=None, now=now) for topic in topics]


def known_template(fleet: Fleet, name: str) -> RegisterData:
    """Give the newest record of a template. Raises ControlError with TEMPLATE_UNKNOWN."""
    record = fleet.template(name)
    if record is not None:
        return record
    topic = RegisterTopic(name)
    refused = fleet.unreadable.get(topic)
    why = "it was unregistered" if topic in fleet.events else "no register event is retained at the broker"
    if refused is not None:
        why = f"its register event cannot be read: {refused.message.removesuffix('.')}"
    raise ControlError(
        f"template {name}: {why}; nothing was published.",
        hint=f"Register it: kvmctl register {name} URL --checksum '{{SHA-256}}...'; what is registered: kvmctl templates",
        code=FailureCode.TEMPLATE_UNKNOWN,
    )


async def publish(sender: Sender, events: Iterable[Event]) -> list[Sent]:
    """Sign, store, publish and follow events. Returns when the broker has acknowledged the last."""
    signer = await asyncio.to_thread(Signer.of, sender.settings)
    return [await publish_one(sender, event, signer) for event in events]


async def known_generation(session: Session, topics: Iterable[EventTopic]) -> int:
    """Give the highest generation that the registry has for these topics."""
    texts = [session.topics.build(topic) for topic in topics]
    return await session.archive.call(lambda registry: registry.generation(texts))


async def publish_one(sender: Sender, event: Event, signer: Signer) -> Sent:
    """Sign, store, publish and follow one event."""
    try:
        payload = signer.sign(encode_event(sender.fleet.topics, event))
    except WireError as exc:
        raise ControlError.of(exc) from exc
    topic = sender.fleet.topics.build(event.topic)
    hosts = sender.fleet.audience(event)
    stored = Stored(
        id=event.id,
        topic=topic,
        payload=payload,
        generation=event.generation,
        is_retained=not isinstance(event.topic, CommandTopic),
        is_ours=True,
        created=time.time(),
        expires=event.expires.timestamp() if event.expires else None,
    )
    await sender.archive.call(lambda registry: registry.store(stored, hosts))
    sender.deliveries.add(stored, event, now=time.monotonic())
    await publish_kept(sender, topic, payload, is_retained=stored.is_retained)
    return Sent(event, topic, hosts)


async def publish_kept(sender: Sender, topic: str, payload: bytes, *, is_retained: bool) -> None:
    """Publish what the registry keeps already. Raises ControlError where the broker does not acknowledge it in time."""
    try:
        async with asyncio.timeout(_PUBLISH_TIMEOUT_S):
            await sender.link.publish(topic, payload, is_retained=is_retained)
    except TimeoutError as exc:
        raise ControlError(
            f"{topic}: what is to be there was stored, but the broker did not acknowledge it within {_PUBLISH_TIMEOUT_S:g} s.",
            hint="Check the broker. `kvmctl serve` sends it as soon as it can; or give the command again.",
            code=FailureCode.SOURCE_UNREACHABLE,
        ) from exc


def _removals_at(
    fleet: Fleet, template: str, places: Iterable[tuple[str, str]]
) -> list[tuple[DeployTopic, DeployData]]:
    """Say what makes a template absent in these pools, each a host and a pool, on the hosts' own topics."""
    record = _record(fleet, template)
    return [
        (
            DeployTopic(deployment, host),
            DeployData(deployment=deployment, template=record, pool=pool, ensure=Ensure.ABSENT),
        )
        for host, pool in places
        for deployment in [default_deployment(template, pool)]
    ]


def _absent(data: DeployData) -> DeployData:
    """Ask for the opposite, and leave out what only matters to a download."""
    return DeployData(
        deployment=data.deployment,
        template=data.template,
        pool=data.pool,
        hosts=data.hosts,
        name=data.name,
        ensure=Ensure.ABSENT,
    )


def _record(fleet: Fleet, template: str) -> RegisterData | str:
    """Give the whole record from where there is one: a host that never saw the template need not wait for it."""
    deployed = (d.data.template for d in fleet.deployments(template) if isinstance(d.data.template, RegisterData))
    return fleet.template(template) or next(deployed, template)


def _pools_on(fleet: Fleet, template: str, *, host: str, pool: str | None) -> list[str]:
    """Pools of the host in which the template is, or is to be."""
    if pool is not None:
        return [pool]
    replicas = {t.pool for t in fleet.replicas if (t.host, t.template) == (host, template)}
    wanted = {d.data.pool for d in fleet.deployments(template) if host in fleet.audience(d.event)}
    return sorted(replicas | wanted)


def now_utc() -> datetime:
    """Give the time, as events carry it."""
    return datetime.now(UTC)
