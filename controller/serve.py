"""The long-running controller: sends events again until their hosts have answered, and restores what a broker lost.

It keeps every retained event it sees. After each connection it compares: what the broker lacks, or has in an older
generation, is published again. So a topic that was cleared while nobody served comes back (`unregister`, `remove` and
`credential revoke` are the lasting ways); one that is cleared under its eyes stays clear. Hosts that were enrolled since
get the credentials that are for them.

Room is left beside ``_Server`` for a REST API and a web page; they are later work.
"""

from __future__ import annotations

import asyncio
import math
import random
import signal
import time
from collections import deque
from dataclasses import dataclass

from controller import log
from controller.archive import Archive, open_archive
from controller.broker import Link, Message, open_link
from controller.config import Settings
from controller.credentials.desk import Desk, Synced, kept_version
from controller.delivery import Deliveries
from controller.errors import ControlError, UnreachableError
from controller.fleet import Change, EventChange, Fleet, Overwritten, Seen, StatusChange
from controller.notify import Notifier
from controller.publish import source
from controller.registry import Registry, Stored
from controller.supervise import beside
from kvmwire.codec import EventRefusedError, decode_event
from kvmwire.events import Event
from kvmwire.status import HostState, HostStatus, Receipt
from kvmwire.topics import CommandTopic, CredentialTopic, DeployTopic, EventTopic, HostTopic, RegisterTopic

_TICK_S = 0.25
_MAX_WAITING = 100_000
_PRUNE_EVERY_S = 3600.0
_PATIENCE_S = 0.2
_RETRY_S = 60.0
_log = log.get("serve")


async def serve(settings: Settings, notifier: Notifier) -> None:
    """Run until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with open_archive(settings.state_dir) as archive:
        server = _Server(settings, archive, notifier)
        # A registry that cannot be used is told at the start, not in the middle of the work.
        await archive.call(lambda registry: registry.prune(time.time()))
        topics = server.topics
        events = topics.wanted_filters() + topics.credential_filters()
        subscriptions = topics.host_filters() + events + topics.receipt_filters()
        async with open_link(
            settings.mqtt, filters=subscriptions, take=server.take, connecting=server.connecting, is_patient=True
        ) as link:
            notifier.ready(f"connecting to {settings.mqtt.url}")
            _log.info("started", broker=settings.mqtt.url, registry=str(settings.state_dir))
            await server.run(link, stop)
    notifier.stopping()
    _log.info("stopped")


@dataclass(frozen=True, slots=True)
class _Sender:
    """What this program publishes through: see ``controller.publish.Sender``."""

    settings: Settings
    fleet: Fleet
    archive: Archive
    deliveries: Deliveries
    link: Link


class _Server:
    def __init__(self, settings: Settings, archive: Archive, notifier: Notifier) -> None:
        self.topics = settings.mqtt.topics
        self._settings = settings
        self._archive = archive
        self._notifier = notifier
        self._fleet = Fleet(self.topics)
        self._deliveries = Deliveries(random.random)
        self._receipts: deque[Receipt] = deque(maxlen=_MAX_WAITING)  # one that falls out is asked for again
        self._seen: dict[EventTopic, Seen] = {}
        self._cleared: set[EventTopic] = set()
        self._overwritten: set[EventTopic] = set()
        self._is_restoring = True
        self._registry_version = (0, 0)
        self._openings = 0
        self._pruned = time.monotonic()
        self._handed_out: tuple[int, int] | None = None
        self._next_handout = math.inf
        self._status = ""

    def connecting(self) -> None:
        """Prepare for all retained messages to come again."""
        self._fleet.forget_events()
        self._is_restoring = True
        self._handed_out = None

    def take(self, message: Message) -> None:
        """Fold one message; what has to be written waits for the next tick."""
        match self.topics.parse(message.topic):
            case HostTopic(host):
                was_online = self._fleet.is_online(host)
            case _:
                was_online = True
        change = self._fleet.take(message.topic, message.payload)
        if change is not None:
            self._note(change, is_live=not message.retained, was_online=was_online)

    async def run(self, link: Link, stop: asyncio.Event) -> None:
        """Work until told to stop; then write what is not yet written."""
        async with beside(self._work(link)):
            await stop.wait()
        await self._save()

    async def _work(self, link: Link) -> None:
        """Tick for ever; the watchdog is fed by the loop that does the work."""
        while True:
            if link.is_connected:
                try:
                    async with asyncio.timeout(self._settle_limit_s()):
                        await self._tick(link)
                except TimeoutError:
                    _log.warning("the broker does not answer; trying again")
                except ControlError as exc:
                    _log.error("a round failed", error=exc.message, hint=exc.hint)
            self._notifier.watchdog()
            self._tell(link)
            await asyncio.sleep(_TICK_S)

    def _settle_limit_s(self) -> float:
        """Stay well under the watchdog, also when a broker hangs."""
        return min(30.0, (self._notifier.watchdog_s or 60.0) / 2)

    async def _tick(self, link: Link) -> None:
        if self._is_restoring:
            self._is_restoring = False
            try:
                await link.settle()
                await self._save()
                await self._restore(link)
            except BaseException:
                self._is_restoring = True
                raise
        await self._save()
        await self._put_back(link)
        await self._hand_out(link)
        await self._follow()
        for stored in self._deliveries.due(self._fleet, time.monotonic()):
            await link.publish(stored.topic, stored.payload, is_retained=stored.is_retained)
            _log.info("event sent again", topic=stored.topic, event=stored.id)
        if time.monotonic() - self._pruned > _PRUNE_EVERY_S:
            self._pruned = time.monotonic()
            await self._archive.call(lambda registry: registry.prune(time.time()))

    async def _save(self) -> None:
        """Write what was seen; after the file was lost, everything that the view holds."""
        version = await self._archive.call(Registry.version)
        if version[0] != self._openings:
            self._openings = version[0]
            self._seen = dict(self._fleet.events) | self._seen
        seen, cleared, receipts = dict(self._seen), set(self._cleared), list(self._receipts)
        adopted = [self._stored(one) for one in seen.values()]
        gone = [self.topics.build(topic) for topic in cleared]

        def write(registry: Registry) -> None:
            if adopted:
                registry.adopt(adopted)
            if gone:
                registry.drop_topics(gone)
            if receipts:
                registry.record(receipts)

        if adopted or gone or receipts:
            await self._archive.call(write)
        # Only what was written is forgotten here: a full disk or a lock must lose nothing.
        self._seen = {topic: one for topic, one in self._seen.items() if seen.get(topic) is not one}
        self._cleared -= cleared
        for _ in range(min(len(receipts), len(self._receipts))):
            self._receipts.popleft()
        if gone or any(stored.is_ours for stored in adopted):
            self._registry_version = (0, 0)  # SQLite tells of other connections' writes only

    async def _restore(self, link: Link) -> None:
        """Publish again what ought to be retained and is not there, or only in an older generation."""
        kept = await self._archive.call(Registry.retained)
        for stored in kept:
            topic = self.topics.parse(stored.topic)
            if not isinstance(topic, RegisterTopic | DeployTopic | CredentialTopic) or topic in self._fleet.unreadable:
                continue
            at_broker = self._fleet.events.get(topic)
            if at_broker is not None and not _is_behind(at_broker.event, stored):
                continue
            await link.publish(stored.topic, stored.payload, is_retained=True)
            _log.info("event restored at the broker", topic=stored.topic, event=stored.id)

    async def _put_back(self, link: Link) -> None:
        """Publish the newer event again where somebody has overwritten it by an older one."""
        while self._overwritten:
            topic = next(iter(self._overwritten))
            seen = self._fleet.events.get(topic)
            if seen is not None:
                await link.publish(self.topics.build(topic), seen.payload, is_retained=True)
                _log.warning("an older event had replaced a newer one", topic=self.topics.build(topic))
            self._overwritten.discard(topic)

    async def _hand_out(self, link: Link) -> None:
        """Give credentials to hosts that lack them: once connected, and when another kvmctl let a host in or handed one out."""
        version = await asyncio.to_thread(kept_version, self._settings)
        if version == self._handed_out and time.monotonic() < self._next_handout:
            return
        try:
            desk = await Desk.open(_Sender(self._settings, self._fleet, self._archive, self._deliveries, link))
            self._fleet.leave_out(desk.keys.revoked_hosts if desk.keys is not None else ())
            synced = await desk.sync(patience_s=_PATIENCE_S)
        except UnreachableError:
            return  # another kvmctl is at it; in the next round there is less to do
        except ControlError as exc:
            synced = Synced((), (exc,))
        self._handed_out = version
        self._next_handout = time.monotonic() + _RETRY_S if synced.failures else math.inf
        for sent in synced.sent:
            _log.info("credential handed out", topic=sent.topic, event=sent.event.id)
        for failure in synced.failures:
            _log.error("credentials cannot be handed out", error=failure.message, hint=failure.hint)

    async def _follow(self) -> None:
        """Follow what the registry says is awaited; it changes when another kvmctl publishes."""
        version = await self._archive.call(Registry.version)
        now = time.time()
        self._deliveries.expire(now)
        if version == self._registry_version:
            return
        awaited, answered = await self._archive.call(lambda registry: (registry.awaited(now), registry.receipted()))
        self._registry_version = version
        self._deliveries.keep_only({stored.id for stored in awaited})
        for stored in awaited:
            event = self._decoded(stored)
            if event is not None:
                self._deliveries.add(stored, event, answered=answered.get(stored.id, ()), now=time.monotonic())

    def _note(self, change: Change, *, is_live: bool, was_online: bool) -> None:
        match change:
            case EventChange(topic=topic, seen=Seen() as seen):
                self._cleared.discard(topic)
                self._seen[topic] = seen
            case Overwritten(topic=topic) if is_live:
                self._overwritten.add(topic)
            case EventChange(topic=topic, seen=None, error=None) if is_live:
                self._seen.pop(topic, None)
                self._cleared.add(topic)
            case StatusChange(value=Receipt() as receipt):
                self._deliveries.answer(receipt.event, receipt.host)
                self._receipts.append(receipt)
            case StatusChange(topic=HostTopic(host), value=HostStatus(state=HostState.ONLINE)) if not was_online:
                self._deliveries.host_came(host, time.monotonic())
            case _:
                pass

    def _decoded(self, stored: Stored) -> Event | None:
        topic = self.topics.parse(stored.topic)
        if not isinstance(topic, RegisterTopic | DeployTopic | CredentialTopic | CommandTopic):
            return None  # of another prefix, which was used before
        try:
            return decode_event(self.topics, topic, stored.payload)
        except EventRefusedError:
            return None  # of another version of kvmd; it stays retained, nobody is asked about it

    def _stored(self, seen: Seen) -> Stored:
        event = seen.event
        return Stored(
            id=event.id,
            topic=self.topics.build(event.topic),
            payload=seen.payload,
            generation=event.generation,
            is_retained=True,
            is_ours=event.source == source(),
            created=event.time.timestamp() if event.time else time.time(),
            expires=event.expires.timestamp() if event.expires else None,
        )

    def _tell(self, link: Link) -> None:
        online = sum(1 for host in self._fleet.hosts if self._fleet.is_online(host))
        broker = f"connected to {self._settings.mqtt.url}" if link.is_connected else "no broker"
        unanswered = self._deliveries.open_count
        status = f"{broker}; {online} of {len(self._fleet.hosts)} hosts online; {unanswered} events unanswered"
        if status != self._status:
            self._status = status
            self._notifier.status(status)


def _is_behind(event: Event, stored: Stored) -> bool:
    """Whether the broker's event is older than the one that was kept; without generations nobody can tell."""
    return event.generation is not None and stored.generation is not None and event.generation < stored.generation
