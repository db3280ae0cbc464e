"""A whole system of child processes that a test may kill one by one: broker, ``kvmctl serve``, two daemons, and a witness."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncGenerator, Mapping
from functools import partial
from pathlib import Path

import aiomqtt

from kvmwire.codec import decode_status
from kvmwire.status import Outcome, Receipt
from kvmwire.topics import ReceiptTopic, Topics
from tests.controller.kvmctl import Kvmctl
from tests.kvmd.daemon.harness import Daemon
from tests.support.brokers import Broker
from tests.support.mqtt import Received
from tests.support.ports import accepts
from tests.support.processes import ChildProcess
from tests.support.programs import require_program
from tests.support.waiting import eventually

TOPICS = Topics()
HOSTS = ("kvm01", "kvm02")


class Cluster:
    """Starts, kills and ends the parts. ``groups`` holds every process group that there ever was."""

    def __init__(self, folder: Path, broker: Broker) -> None:
        self.broker = broker
        self.kvmctl = Kvmctl(broker.url, folder / "controller")
        self.daemons = {host: Daemon(folder / host, broker.url, host=host) for host in HOSTS}
        self.controller = ChildProcess(
            [require_program("kvmctl"), "serve"],
            log=folder / "controller.log",
            env={"KVMCTL_STATE_DIR": str(self.kvmctl.state), "KVMCTL_MQTT_URL": broker.url},
        )
        self.groups: list[int] = []

    @property
    def parts(self) -> Mapping[str, ChildProcess]:
        """Everything but the broker, by name."""
        return {"controller": self.controller, **{host: daemon.process for host, daemon in self.daemons.items()}}

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncGenerator[None, None]:
        """Run all parts; what still runs at the end is killed."""
        try:
            for name in self.parts:
                await self.start(name)
            yield
        finally:
            for part in self.parts.values():
                await asyncio.to_thread(part.kill)

    async def kill(self, name: str) -> None:
        """SIGKILL the process alone, not what it may have started."""
        if name == "broker":
            await asyncio.to_thread(self.broker.kill)
            return
        self.parts[name].signal(signal.SIGKILL)
        assert await asyncio.to_thread(self.parts[name].wait) == -signal.SIGKILL, f"{name} ended by itself"

    async def start(self, name: str, *, wipe: bool = False) -> None:
        """Start what was killed; a wiped broker comes back without any of its state."""
        if name == "broker":
            await asyncio.to_thread(self.broker.restart, wipe=wipe)
            return
        await asyncio.to_thread(self.parts[name].start)
        self.groups.append(self.parts[name].pid)

    async def end(self) -> None:
        """SIGTERM all parts. Each has to end well, without a traceback, and to leave no process behind."""
        for name, part in self.parts.items():
            # The last kill may have been a moment ago, and a process that only begins dies of SIGTERM like any other.
            await eventually(partial(_has_begun, part), what=f"{name} has begun")
            assert await asyncio.to_thread(part.terminate) == 0, f"{name}: {part.log_text()[-3000:]}"
            tracebacks = [line for line in part.log_text().splitlines() if "Traceback" in line]
            assert tracebacks == [], name
        await eventually(lambda: not any(map(_is_alive, self.groups)), what="no process of any group is left")


class Witness:
    """Reads every status as long as the broker lives, and comes back when it does."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._heard: list[list[Received]] = []

    @property
    def count(self) -> int:
        """How many statuses were heard."""
        return sum(map(len, self._heard))

    def accepted(self) -> dict[tuple[str, str], set[str]]:
        """Give the different ``accepted`` receipts by host and event; the very same one may have come twice."""
        found: dict[tuple[str, str], set[str]] = {}
        for message in (one for heard in self._heard for one in heard):
            topic = TOPICS.parse(message.topic)
            if isinstance(topic, ReceiptTopic):
                receipt = decode_status(topic, message.payload)
                assert isinstance(receipt, Receipt)
                if receipt.outcome is Outcome.ACCEPTED:
                    found.setdefault((topic.host, topic.event_id), set()).add(receipt.model_dump_json())
        return found

    async def watch(self) -> None:
        """Read until cancelled."""
        while True:
            with contextlib.suppress(aiomqtt.MqttError, AssertionError):
                async with self._broker.client(timeout_s=2) as client:
                    self._heard.append(client.messages)
                    await client.subscribe(f"{TOPICS.prefix}/status/#")
                    await client.lost(timeout_s=3600)
            await eventually(lambda: accepts(self._broker.port), what="the broker is back", timeout_s=60)


def _has_begun(part: ChildProcess) -> bool:
    """Whether it has said so: kvmd logs ``ready``, kvmctl serve ``started``."""
    log = part.log_since_start()
    return any(word in log for word in ('"message": "ready"', "info: started"))


def _is_alive(group: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, 0)
        return True
    return False
