"""A host that speaks the contract over a real broker and does what the test says instead of downloading.

Also a program: ``python -m tests.controller.scripted_host --broker URL --host kvm01``.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TypeVar
from urllib.parse import urlsplit

import aiomqtt
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from kvmwire.codec import EventRefusedError, decode_event, encode_status
from kvmwire.codes import FailureCode, WireError
from kvmwire.events import CommandData, CredentialData, DeployData, Ensure, Event, Machine, RegisterData
from kvmwire.seal import Binding, Secret, unseal
from kvmwire.status import (
    CredentialState,
    CredentialStatus,
    HostState,
    HostStatus,
    MachineState,
    MachineStatus,
    Outcome,
    PoolState,
    PoolStatus,
    ProbeStatus,
    Progress,
    Receipt,
    ReplicaState,
    ReplicaStatus,
    SourceProbe,
    Status,
    Trust,
    Verdict,
)
from kvmwire.topics import (
    CommandTopic,
    CredentialStatusTopic,
    CredentialTopic,
    DeployTopic,
    HostTopic,
    MachineTopic,
    ProbeTopic,
    ProgressTopic,
    ReceiptTopic,
    RegisterTopic,
    ReplicaTopic,
    Topic,
    Topics,
)

NOW = datetime(2030, 1, 1, tzinfo=UTC)
TOPICS = Topics()
T = TypeVar("T")


@dataclass
class Script:
    """What the host does: ``refuses`` is its answer to credentials, ``expires`` what it says of those that it installs."""

    verdict: Verdict = Verdict.GOOD
    fails_with: FailureCode | None = None
    refuses: FailureCode | None = None
    expires: datetime | None = None
    holds: bool = False
    machine_fails_with: FailureCode | None = None
    silent_for: int = 0
    labels: dict[str, str] = field(default_factory=dict)


class _Client(aiomqtt.Client):
    """aiomqtt's client; asyncio.wait_for, which it uses, loses a cancellation before Python 3.12 as an answer arrives."""

    async def _wait_for(self, fut: Awaitable[T], timeout: float | None) -> T:  # noqa: ASYNC109 - aiomqtt's signature
        try:
            async with asyncio.timeout(self.timeout if timeout is None else timeout):
                return await fut
        except TimeoutError:
            raise aiomqtt.MqttError("no answer") from None


class ScriptedHost:
    """One host; ``received`` holds every event as it came, repeats included."""

    def __init__(
        self, url: str, name: str, script: Script | None = None, *, sealing: X25519PrivateKey | None = None
    ) -> None:
        self.name = name
        self.sealing = sealing
        self.secrets: dict[str, Secret] = {}
        self.installed: dict[str, int] = {}
        self.script = script or Script()
        self.received: list[Event] = []
        self.seen: set[str] = set()
        self._url = urlsplit(url)
        self._generations: dict[object, int] = {}
        self._client: aiomqtt.Client | None = None
        self.connections = 0

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncGenerator[ScriptedHost, None]:
        """Be online; on leaving go offline."""
        online = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            task = group.create_task(self._live(online.set))
            await online.wait()
            try:
                yield self
            finally:
                task.cancel()

    async def run(self) -> None:
        """Be online until cancelled."""
        await self._live(lambda: None)

    async def say(self, topic: Topic, status: Status, *, retain: bool = True) -> None:
        """Publish a status."""
        assert self._client is not None
        await self._client.publish(TOPICS.build(topic), encode_status(status), qos=1, retain=retain)

    async def announce(self, state: HostState = HostState.ONLINE) -> None:
        """Publish the host's own status."""
        await self.say(HostTopic(self.name), self._status(state))

    async def _live(self, online: Callable[[], None]) -> None:
        will = aiomqtt.Will(
            TOPICS.build(HostTopic(self.name)), encode_status(self._status(HostState.OFFLINE)), 1, retain=True
        )
        while True:
            try:
                async with _Client(
                    self._url.hostname or "", self._url.port or 0, identifier=f"kvmd-{self.name}", will=will, timeout=5
                ) as client:
                    self._client = client
                    await client.subscribe([(one, 1) for one in TOPICS.event_filters(self.name)])
                    await self.announce()
                    self.connections += 1
                    online()
                    try:
                        async for message in client.messages:
                            await self._take(str(message.topic), bytes(message.payload))
                    except asyncio.CancelledError:
                        await self.announce(HostState.OFFLINE)
                        raise
                    finally:
                        if client._disconnected.done():
                            client._disconnected.exception()  # or asyncio logs that nobody asked for it
            except aiomqtt.MqttError:
                await asyncio.sleep(0.02)

    async def _take(self, text: str, payload: bytes) -> None:
        topic = TOPICS.parse(text)
        assert isinstance(topic, RegisterTopic | DeployTopic | CommandTopic | CredentialTopic)
        try:
            event = decode_event(TOPICS, topic, payload)
        except EventRefusedError as exc:
            await self._receipt(exc.event_id, text, Outcome.REFUSED, code=exc.code, message=exc.message, hint=exc.hint)
            return
        self.received.append(event)
        if self.script.silent_for > 0:
            self.script.silent_for -= 1
            return
        if isinstance(event.data, DeployData) and not event.data.selects(self.name, self.script.labels):
            return
        is_known = event.id in self.seen
        self.seen.add(event.id)
        outcome = Outcome.DUPLICATE if is_known else self._outcome(event)
        await self._receipt(event.id, text, outcome)
        if not is_known and outcome is Outcome.ACCEPTED:
            await self._act(event)

    def _outcome(self, event: Event) -> Outcome:
        match event.data:
            case RegisterData(template=template):
                subject: object = template
            case DeployData() as data:
                subject = (data.template_name, data.pool) if data.machine is None else ("machine", data.machine.name)
            case CredentialData(credential=credential):
                subject = ("credential", credential)
            case CommandData():
                return Outcome.ACCEPTED
        if (event.generation or 0) < self._generations.get(subject, 0):
            return Outcome.STALE
        self._generations[subject] = event.generation or 0
        return Outcome.ACCEPTED

    async def _act(self, event: Event) -> None:
        generation = event.generation or 0
        match event.data:
            case RegisterData() as data if data.ensure is Ensure.PRESENT:
                await self._probe(data, generation)
            case DeployData() as data:
                if data.machine is None or data.ensure is Ensure.PRESENT:
                    await self._replica(data, generation)
                if data.machine is not None and (self.script.fails_with is None or data.ensure is Ensure.ABSENT):
                    await self._machine(data, data.machine, generation)
            case CredentialData(trust=None) as data:
                await self._credential(data, generation)
            case _:
                pass

    async def _probe(self, data: RegisterData, generation: int) -> None:
        verdict = self.script.verdict if data.is_checked_by(self.name) else Verdict.UNCHECKED
        code = FailureCode.SOURCE_STATUS if verdict is Verdict.BAD else None
        sources = tuple(
            SourceProbe(url=url, reachable=code is None, size=4096, ranges=True, seconds=0.1, code=code)
            for url in data.urls
        )
        status = ProbeStatus(
            template=data.template, generation=generation, verdict=verdict, code=code, sources=sources, checked=NOW
        )
        await self.say(ProbeTopic(self.name, data.template), status)

    async def _credential(self, data: CredentialData, generation: int) -> None:
        name, code = data.credential, self.script.refuses
        if data.ensure is Ensure.ABSENT:
            self.installed.pop(name, None)
            self.secrets.pop(name, None)
            state = CredentialState.REVOKED
        else:
            try:
                if data.sealed is not None and code is None:
                    assert self.sealing is not None
                    binding = Binding(name, generation, data.origins or ())
                    self.secrets[name] = Secret.decode(unseal(data.sealed, binding, host=self.name, key=self.sealing))
            except WireError as exc:
                code = exc.code
            state = CredentialState.REFUSED if code else CredentialState.INSTALLED
            if code is None:
                self.installed[name] = generation
        status = CredentialStatus(
            credential=name,
            state=state,
            generation=generation,
            installed=self.installed.get(name),
            origins=data.origins or (),
            expires=self.script.expires,
            code=code,
            message="as the script says" if code else "",
            since=NOW,
        )
        await self.say(CredentialStatusTopic(self.name, name), status)

    async def _replica(self, data: DeployData, generation: int) -> None:
        topic = ReplicaTopic(self.name, data.pool, data.template_name)
        base = ReplicaStatus(
            template=data.template_name, generation=generation, pool=data.pool, state=ReplicaState.QUEUED, since=NOW
        )
        await self.say(topic, base)
        if data.ensure is Ensure.ABSENT:
            await self.say(topic, base.model_copy(update={"state": ReplicaState.ABSENT}))
            return
        await self.say(topic, base.model_copy(update={"state": ReplicaState.DOWNLOADING}))
        figures = Progress(size=1000, done=400, bytes_per_second=100)
        await self.say(ProgressTopic(self.name, data.pool, data.template_name), figures, retain=False)
        if not self.script.holds:
            await self.finish(data, generation)

    async def _machine(self, data: DeployData, machine: Machine, generation: int) -> None:
        topic = MachineTopic(self.name, machine.name)
        if data.ensure is Ensure.ABSENT:
            assert self._client is not None
            await self._client.publish(TOPICS.build(topic), b"", qos=1, retain=True)
            return
        code = self.script.machine_fails_with
        ends = MachineState.RUNNING if machine.start else MachineState.STOPPED
        status = MachineStatus(
            name=machine.name,
            generation=generation,
            deployment=data.deployment,
            template=data.template_name,
            pool=data.pool,
            state=MachineState.FAILED if code else ends,
            code=code,
            message="as the script says" if code else "",
            console="login:\nkvmd",
            since=NOW,
        )
        await self.say(topic, status)

    async def finish(self, data: DeployData, generation: int) -> None:
        """Publish the end of a download as the script wants it."""
        code = self.script.fails_with
        status = ReplicaStatus(
            template=data.template_name,
            generation=generation,
            pool=data.pool,
            state=ReplicaState.FAILED if code else ReplicaState.READY,
            code=code,
            message="as the script says" if code else "",
            path=None if code else f"/pool/{data.volume}",
            checksum=data.template.checksum if isinstance(data.template, RegisterData) else None,
            size=1000,
            trust=Trust.CHECKSUM,
            since=NOW,
        )
        await self.say(ReplicaTopic(self.name, data.pool, data.template_name), status)

    async def _receipt(
        self,
        event_id: str,
        topic: str,
        outcome: Outcome,
        *,
        code: FailureCode | None = None,
        message: str = "",
        hint: str = "",
    ) -> None:
        receipt = Receipt(
            event=event_id,
            host=self.name,
            outcome=outcome,
            topic=topic,
            code=code,
            message=message,
            hint=hint,
            time=NOW,
        )
        await self.say(ReceiptTopic(self.name, event_id), receipt, retain=False)

    def _status(self, state: HostState) -> HostStatus:
        pool = PoolStatus(name="default", type="directory", path="/pool", state=PoolState.ACTIVE, available=10**9)
        return HostStatus(
            host=self.name, state=state, version="0", labels=self.script.labels, pools=(pool,), started=NOW, since=NOW
        )


def main() -> None:
    """Run one host until it is killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--broker", required=True)
    parser.add_argument("--host", required=True)
    arguments = parser.parse_args()
    asyncio.run(ScriptedHost(arguments.broker, arguments.host).run())


if __name__ == "__main__":
    main()
