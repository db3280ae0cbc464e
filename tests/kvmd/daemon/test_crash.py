"""Host and broker are killed at random moments; a publisher that knows nothing of it sends again until it is answered."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections import defaultdict
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiomqtt
import pytest

from kvmwire.status import Outcome, Receipt
from tests.kvmd.daemon.harness import HOST, PREFIX, Daemon, enveloped, record, running, sha256, site
from tests.support import images
from tests.support.brokers import Broker
from tests.support.hostile import HostileServer
from tests.support.waiting import eventually

KILLS = 16
"""For each broker, so that both together have more than thirty."""
TEMPLATES = 8
MIB = 1 << 20
_RESEND_S = 0.3
_ALIVE_S = (0.05, 0.9)


@dataclass
class Publisher:
    """Publishes every event until the host has answered it; its connection may be lost at any time."""

    broker: Broker
    events: dict[str, tuple[str, str]] = field(default_factory=dict[str, tuple[str, str]])
    answers: defaultdict[str, list[Receipt]] = field(default_factory=lambda: defaultdict(list))

    def add(self, topic: str, data: dict[str, Any], *, generation: int) -> str:
        """Take an event into the outbox."""
        envelope = enveloped(topic, data, generation=generation)
        self.events[envelope["id"]] = (f"{PREFIX}/{topic}", json.dumps(envelope))
        return str(envelope["id"])

    @property
    def unanswered(self) -> list[str]:
        return [event for event in self.events if not self.answers[event]]

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncGenerator[None, None]:
        task = asyncio.create_task(self._run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def _run(self) -> None:
        while True:
            with contextlib.suppress(aiomqtt.MqttError, AssertionError, OSError):
                await self._serve()
            await asyncio.sleep(0.05)

    async def _serve(self) -> None:
        async with self.broker.client(timeout_s=2) as client:
            await client.subscribe(f"{PREFIX}/status/{HOST}/receipt/+")
            while True:
                for event in self.unanswered:
                    topic, payload = self.events[event]
                    await client.publish(topic, payload, retain=True)
                with contextlib.suppress(TimeoutError):
                    await client.lost(_RESEND_S)
                    return
                for message in client.messages:
                    receipt = Receipt.model_validate_json(message.payload)
                    if receipt not in self.answers[receipt.event]:
                        self.answers[receipt.event].append(receipt)
                client.messages.clear()


def wishes(url: str, name: str, content: bytes, rng: random.Random) -> list[tuple[dict[str, Any], int]]:
    """Give a template's deploy events, a few generations in any order."""
    template = record(name, url, content)
    ensures = ["present", *rng.choices(["present", "absent"], k=rng.randrange(3))]
    events = [({"template": template, "ensure": ensure}, number) for number, ensure in enumerate(ensures, start=1)]
    rng.shuffle(events)
    return events


def assert_nothing_broken(daemon: Daemon, contents: dict[str, bytes]) -> None:
    """Whatever has a final name has the right bytes."""
    for path in daemon.pool.iterdir():
        if path.is_file():
            assert sha256(path.read_bytes()) == sha256(contents[path.name])


@pytest.mark.timeout(90)
async def test_every_event_is_carried_out_once_whatever_is_killed(
    broker: Broker, tmp_path: Path, hostile: HostileServer
) -> None:
    rng = random.Random(f"seed of {broker.name}")
    contents = {f"t{n}": images.raw(2 * MIB + 512 * n, seed=n) for n in range(TEMPLATES)}
    pending: list[tuple[str, dict[str, Any], int]] = []
    final: dict[str, str] = {}
    for name, content in contents.items():
        hostile.add(name, content)
        events = wishes(hostile.url(name, rate=MIB // 2), name, content, rng)
        final[name] = max(events, key=lambda event: event[1])[0]["ensure"]
        pending += [(f"deploy/all/{name}", data, generation) for data, generation in events]
    rng.shuffle(pending)
    publisher = Publisher(broker)
    async with publisher.running(), running(Daemon(tmp_path / "kvm01", broker.url)) as daemon:
        for kill in range(KILLS):
            share = len(pending) // (KILLS - kill)
            for topic, data, generation in pending[:share]:
                publisher.add(topic, data, generation=generation)
            del pending[:share]
            await asyncio.sleep(rng.uniform(*_ALIVE_S))  # the moment of the kill, not a wait for something
            if rng.random() < 0.4:
                await asyncio.to_thread(broker.restart, wipe=rng.random() < 0.5)
            else:
                await daemon.kill()
                assert_nothing_broken(daemon, contents)
                await daemon.start()
        for topic, data, generation in pending:
            publisher.add(topic, data, generation=generation)
        await daemon.restart()  # its pause between two connections may have grown to a minute by now

        await eventually(lambda: not publisher.unanswered, timeout_s=30, what="every event is answered")
        async with site(broker) as lab:
            for name, ensure in final.items():
                await lab.watch.replica(name, "ready" if ensure == "present" else "absent", timeout_s=30)
        assert_nothing_broken(daemon, contents)
        there = {path.name for path in daemon.pool.iterdir() if path.is_file()}
        assert there == {name for name, ensure in final.items() if ensure == "present"}
        assert daemon.leftovers() == []
    for event in publisher.events:
        outcomes = [answer.outcome for answer in publisher.answers[event]]
        assert outcomes.count(Outcome.ACCEPTED) <= 1
        assert set(outcomes) <= {Outcome.ACCEPTED, Outcome.DUPLICATE} or set(outcomes) == {Outcome.STALE}
