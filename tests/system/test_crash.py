"""Daemons, controller and broker are killed at random points of a stream of events; afterwards all is as it was asked for.

``make system KILLS=300`` runs the long form of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import random
import sqlite3
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from controller.registry import Registry, Stored
from kvmwire.codec import decode_event
from kvmwire.events import DeployData, Ensure, Event, RegisterData
from kvmwire.status import Outcome, Receipt
from kvmwire.topics import DeployTopic, RegisterTopic
from tests.controller.kvmctl import Kvmctl
from tests.support import images
from tests.support.brokers import Broker
from tests.support.hostile import HostileServer
from tests.support.waiting import NotInTimeError, eventually
from tests.system.cluster import HOSTS, TOPICS, Cluster, Witness

SHORT_KILLS = 30
TEMPLATES = {f"t{number}": images.raw((number + 1) * 384 << 10, seed=number) for number in range(5)}
DIGESTS = {hashlib.sha256(content).hexdigest(): name for name, content in TEMPLATES.items()}
SLOWLY = 1 << 20  # bytes a second and connection: most kills meet a download
SETTLE_S = 60.0
Key = tuple[str, str]
"""Host and template: what the events are about here, as there is one pool."""


@pytest.mark.timeout(150)
async def test_kills_at_random_points_change_nothing_in_the_outcome(
    broker: Broker, tmp_path: Path, hostile: HostileServer
) -> None:
    await survive(Crash(tmp_path, broker, hostile, kills=SHORT_KILLS))


@pytest.mark.system
@pytest.mark.timeout(3600)
async def test_very_many_kills_change_nothing_in_the_outcome(
    broker: Broker, tmp_path: Path, hostile: HostileServer
) -> None:
    kills = int(os.environ.get("CRASH_KILLS", "300"))
    await survive(Crash(tmp_path, broker, hostile, kills=kills))


async def survive(crash: Crash) -> None:
    """Publish and kill side by side, let the system settle, and look at everything it left."""
    async with crash.cluster.running(), crash.witnessed():
        await crash.kill_while_publishing()
        wanted = crash.wanted()
        crash.assert_stream()
        await crash.settled(wanted)
        await crash.cluster.end()
    crash.assert_volumes(wanted)
    crash.assert_receipts()


class Crash:
    """One run: ``published`` holds the ids of the events that kvmctl said it had published."""

    def __init__(self, folder: Path, broker: Broker, origin: HostileServer, *, kills: int) -> None:
        self.cluster = Cluster(folder, broker)
        self.witness = Witness(broker)
        self.published: list[str] = []
        self._origin = origin
        self._kills = kills
        self._chance = random.Random(f"{broker.name} {kills}")
        for name, content in TEMPLATES.items():
            origin.add(name, content)

    @contextlib.asynccontextmanager
    async def witnessed(self) -> AsyncGenerator[None, None]:
        """Listen to all statuses."""
        async with asyncio.TaskGroup() as group:
            task = group.create_task(self.witness.watch())
            yield
            task.cancel()

    async def kill_while_publishing(self) -> None:
        """Go on publishing until the last kill."""
        async with asyncio.TaskGroup() as group:
            stream = group.create_task(self._publish(self.cluster.kvmctl))
            for number in range(self._kills):
                await self._kill(number)
            stream.cancel()

    def wanted(self) -> dict[Key, Ensure]:
        """Tell from the registry what holds in the end: of all deploy events for a host the highest generation."""
        highest: dict[Key, Event] = {}
        for stored, event in self._events():
            for host in _hosts(stored, event):
                if isinstance(event.data, DeployData):
                    key = host, event.data.template_name
                    highest[key] = max(event, highest.get(key, event), key=lambda one: one.generation or 0)
        return {key: event.data.ensure for key, event in highest.items() if isinstance(event.data, DeployData)}

    async def settled(self, wanted: dict[Key, Ensure]) -> None:
        """Wait until every host says it has what is wanted, and every event that still counts was answered."""
        states = {Ensure.PRESENT: "ready", Ensure.ABSENT: "absent"}

        async def is_told() -> bool:
            done = await self.cluster.kvmctl.run("replicas", "--json")
            told = {(row["host"], row["template"]): row["state"] for row in done.rows if row["kind"] == "replica"}
            return told == {key: states[ensure] for key, ensure in wanted.items()}

        await eventually(is_told, what=f"every replica is as wanted: {wanted}", timeout_s=SETTLE_S)
        await eventually(lambda: not self._unanswered(), what="every event is answered", timeout_s=SETTLE_S)

    def assert_stream(self) -> None:
        """See that there was a stream: an event a kill, and replicas wished both present and absent."""
        assert len(self.published) >= self._kills
        wished = {
            getattr(event.data, "ensure", None)
            for _, event in self._events(is_current_only=False)
            if isinstance(event.topic, DeployTopic)
        }
        assert wished == set(Ensure)

    def assert_volumes(self, wanted: dict[Key, Ensure]) -> None:
        """Each volume that is wanted is there, whole; nothing else is, nor any partial file."""
        for host, daemon in self.cluster.daemons.items():
            names = {name for (at, name), ensure in wanted.items() if at == host and ensure is Ensure.PRESENT}
            assert {path.name for path in daemon.pool.iterdir()} - {".kvmd"} == names
            assert daemon.leftovers() == []
        self._assert_no_wrong_bytes()

    def assert_receipts(self) -> None:
        """Every event is accepted once a host, unless a newer one about the same replica overtook it."""
        assert all(len(texts) == 1 for texts in self.witness.accepted().values())
        known = {stored.id: (stored, event) for stored, event in self._events(is_current_only=False)}
        assert known.keys() >= set(self.published), "what was told to be published is kept"
        newest = self._newest()
        for host, daemon in self.cluster.daemons.items():
            answers = _journaled(daemon.state / "journal.db")
            assert answers.keys() <= known.keys()
            for event_id, (stored, event) in known.items():
                if host not in _hosts(stored, event):
                    continue
                if newest[host, _subject(event)] == event_id:
                    assert answers[event_id] is Outcome.ACCEPTED
                assert answers.get(event_id) in {Outcome.ACCEPTED, Outcome.STALE, None}

    async def _publish(self, kvmctl: Kvmctl) -> None:
        """Register, deploy and remove for ever; what the broker's absence refused is simply given up."""
        for name, content in TEMPLATES.items():
            while not await self._told(kvmctl, *self._registering(name, content)):
                await eventually(lambda: self.cluster.broker.process.running, what="the broker is back")
        while True:
            name = self._chance.choice(list(TEMPLATES))
            where = self._chance.choice([["--all"], ["--host", HOSTS[0]], ["--host", HOSTS[1]]])
            match self._chance.randrange(8):
                case 0:
                    await self._told(kvmctl, *self._registering(name, TEMPLATES[name]))
                case 1 | 2 | 3:
                    await self._told(kvmctl, "remove", name, *(where if where != ["--all"] else []))
                case _:
                    await self._told(kvmctl, "deploy", name, *where)

    def _registering(self, name: str, content: bytes) -> list[str]:
        checksum = f"{{SHA-256}}{hashlib.sha256(content).hexdigest()}"
        return ["register", name, self._origin.url(name, rate=SLOWLY), "--checksum", checksum]

    async def _told(self, kvmctl: Kvmctl, *words: str) -> bool:
        """Run kvmctl; whether it said that its events are published."""
        done = await kvmctl.run(*words, "--json")
        self.published += [row["event"] for row in done.rows if row["kind"] == "published"]
        return done.code == 0

    async def _kill(self, number: int) -> None:
        """Kill one part after some random progress of the whole, and start it again after some more."""
        victim = self._chance.choice([*HOSTS, *HOSTS, "controller", "broker"])
        await self._progress(self._chance.randint(1, 40))
        await self.cluster.kill(victim)
        self._assert_no_wrong_bytes()
        await self._progress(self._chance.randint(0, 8))
        broker = self.cluster.broker
        await self.cluster.start(victim, wipe=not broker.survives_kill or number % 3 == 0)

    async def _progress(self, steps: int) -> None:
        """Return when so much more was told, asked for or published; at the latest soon."""
        before = self._count()
        with contextlib.suppress(NotInTimeError):
            await eventually(lambda: self._count() >= before + steps, timeout_s=0.7)

    def _count(self) -> int:
        return self.witness.count + len(self._origin.requests) + len(self.published)

    def _assert_no_wrong_bytes(self) -> None:
        """Whatever has a final name has the content of its template."""
        for daemon in self.cluster.daemons.values():
            for path in daemon.pool.iterdir():
                if path.name == ".kvmd":
                    continue
                with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                    digest = hashlib.sha256(path.read_bytes()).hexdigest()
                    assert DIGESTS.get(digest) == path.name, f"{path} has wrong bytes"

    def _events(self, *, is_current_only: bool = True) -> list[tuple[Stored, Event]]:
        with contextlib.closing(Registry(self.cluster.kvmctl.state)) as registry:
            stored = registry.history(limit=100_000)
        found = []
        for one in stored:
            topic = TOPICS.parse(one.topic)
            assert isinstance(topic, RegisterTopic | DeployTopic)
            if one.is_current or not is_current_only:
                found.append((one, decode_event(TOPICS, topic, one.payload)))
        return found

    def _unanswered(self) -> list[tuple[str, str]]:
        with contextlib.closing(Registry(self.cluster.kvmctl.state)) as registry:
            answered = registry.receipted()
        return [
            (stored.id, host)
            for stored, event in self._events()
            for host in _hosts(stored, event)
            if host not in answered.get(stored.id, ())
        ]

    def _newest(self) -> dict[tuple[str, object], str]:
        """Give the event of the highest generation by host and subject."""
        newest: dict[tuple[str, object], Event] = {}
        for stored, event in self._events():
            for host in _hosts(stored, event):
                key = host, _subject(event)
                newest[key] = max(event, newest.get(key, event), key=lambda one: one.generation or 0)
        return {key: event.id for key, event in newest.items()}


def _hosts(stored: Stored, event: Event) -> tuple[str, ...]:
    """Hosts that read the event's topic."""
    assert stored.is_ours
    match event.topic:
        case DeployTopic(host=str(host)):
            return (host,)
        case _:
            return HOSTS


def _subject(event: Event) -> object:
    match event.data:
        case RegisterData(template=name):
            return "register", name
        case DeployData() as data:
            return "deploy", data.template_name
        case _:
            raise AssertionError(event)


def _journaled(journal: Path) -> dict[str, Outcome]:
    """Give what a host answered first, by event, from its journal."""
    with contextlib.closing(sqlite3.connect(journal)) as database:
        rows = database.execute("SELECT document FROM receipt").fetchall()
    receipts = [Receipt.model_validate_json(document) for (document,) in rows]
    return {receipt.event: receipt.outcome for receipt in receipts}
