"""A site for tests of the daemon: a broker, an origin, real ``kvmd run`` processes, and somebody who publishes and watches."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import uuid
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from kvmwire.codec import bare_id
from kvmwire.status import HostStatus, ProbeStatus, Progress, Receipt, ReplicaState, ReplicaStatus, StatusModel
from tests.support.brokers import Broker
from tests.support.mqtt import MqttClient, Received
from tests.support.processes import ChildProcess
from tests.support.programs import require_program
from tests.support.waiting import eventually

PREFIX = "kvmd/v1"
HOST = "kvm01"
LOOPBACK = "127.0.0.0/8"


def sha256(content: bytes) -> str:
    """Write a checksum as users do."""
    return f"{{SHA-256}}{hashlib.sha256(content).hexdigest()}"


def toml(table: Mapping[str, Any], prefix: str = "") -> str:
    """Write settings as TOML: scalars first, then the tables."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in table.items() if not isinstance(value, Mapping)]
    for key, value in table.items():
        if isinstance(value, Mapping):
            lines += [f"[{prefix}{key}]", toml(value, f"{prefix}{key}.")]
    return "\n".join(lines)


class Daemon:
    """``kvmd run`` in a folder of its own with one pool; leaving the context kills it and looks for tracebacks in its log.

    ``tables`` are added to the settings; ``wrapper`` are words before the command, such as strace and its options.
    """

    def __init__(
        self,
        folder: Path,
        url: str,
        *,
        host: str = HOST,
        tables: Mapping[str, Any] | None = None,
        env: Mapping[str, str] | None = None,
        wrapper: Sequence[str | Path] = (),
    ) -> None:
        self.host = host
        self.folder = folder
        self.state = folder / "state"
        self.pool = folder / "pool"
        self.pool.mkdir(parents=True, exist_ok=True)
        self.config = folder / "kvmd.toml"
        self.config.write_text(toml(self._settings(url, tables or {})))
        command = [*wrapper, require_program("kvmd"), "run", "--config", self.config]
        self.process = ChildProcess(command, log=folder / "kvmd.log", env=env)

    def _settings(self, url: str, tables: Mapping[str, Any]) -> dict[str, Any]:
        settings: dict[str, Any] = {
            "host": self.host,
            "state_dir": str(self.state),
            "mqtt": {"url": url},
            "policy": {"allowed_networks": [LOOPBACK]},
            "pools": {"default": {"path": str(self.pool)}},
            "log": {"format": "json"},
        }
        for name, value in tables.items():
            settings[name] = {**settings.get(name, {}), **value} if isinstance(value, Mapping) else value
        return settings

    def __enter__(self) -> Self:
        self.process.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.__exit__(kind, error, trace)
        if error is None:
            self.assert_no_traceback()

    def assert_no_traceback(self) -> None:
        """Nothing that the daemon wrote is a traceback."""
        assert "Traceback" not in self.process.log_text(), self.process.log_text()[-6000:]

    async def start(self) -> None:
        """Start again after its end."""
        await asyncio.to_thread(self.process.start)

    async def kill(self) -> None:
        """SIGKILL."""
        await asyncio.to_thread(self.process.kill)

    async def restart(self) -> None:
        """SIGKILL and start."""
        await asyncio.to_thread(self.process.restart)

    async def stop(self, *, timeout_s: float = 10) -> int:
        """SIGTERM, and give the exit code."""
        return await asyncio.to_thread(self.process.terminate, timeout_s=timeout_s)

    def logged(self, message: str, **fields: object) -> list[dict[str, Any]]:
        """Give the log lines with this message and these fields, of all runs."""
        lines = [json.loads(line) for line in self.process.log_text().splitlines() if line.startswith("{")]
        return [
            line for line in lines if line["message"] == message and all(line.get(k) == v for k, v in fields.items())
        ]

    async def has_logged(self, message: str, *, times: int = 1, timeout_s: float = 10, **fields: object) -> None:
        """Wait until it was logged so often."""
        await eventually(
            lambda: len(self.logged(message, **fields)) >= times,
            timeout_s=timeout_s,
            what=f"{message} is logged; log: {self.process.log_text()[-3000:]}",
        )

    def python(self) -> psutil.Process:
        """Give the process that runs kvmd, which may be a child of the wrapper."""
        top = psutil.Process(self.process.pid)
        return ([*top.children(recursive=True)] or [top])[-1]

    def volume(self, name: str) -> Path:
        """Give the final path of a volume."""
        return self.pool / name

    def leftovers(self) -> list[str]:
        """Name the files of partial volumes."""
        staging = self.pool / ".kvmd"
        names = [path.name for path in staging.iterdir()] if staging.exists() else []
        return sorted(name for name in names if not name.endswith(".record"))


@dataclass(frozen=True)
class Seen:
    """One status as it was published."""

    topic: str
    status: StatusModel
    retain: bool


class Watch:
    """What was published under ``status/``, parsed; waits for what is still to come."""

    def __init__(self, client: MqttClient) -> None:
        self.client = client

    def of(self, model: type[Any], topic: str) -> list[Any]:
        """Give every status of one topic, the oldest first."""
        return [_parsed(model, one) for one in self.client.messages if one.topic == f"{PREFIX}/status/{topic}"]

    async def until(self, model: type[Any], topic: str, fits: Callable[[Any], bool], *, timeout_s: float = 15) -> Any:
        """Wait for a status of the topic that fits, those already there included."""
        text = f"{PREFIX}/status/{topic}"
        found = await self._received(
            lambda one: one.topic == text and bool(one.payload) and fits(_parsed(model, one)), topic, timeout_s
        )
        return _parsed(model, found)

    async def _received(self, fits: Callable[[Received], bool], topic: str, timeout_s: float) -> Received:
        try:
            return await self.client.received(fits, timeout_s)
        except AssertionError:
            kind = topic.split("/")[1]
            related = [(m.topic, m.payload.decode()[:400]) for m in self.client.messages if f"/{kind}" in m.topic]
            raise AssertionError(f"{topic}: not within {timeout_s} s; seen: {related[-12:]}") from None

    async def receipt(self, event_id: str, *, host: str = HOST, timeout_s: float = 15) -> Receipt:
        """Wait for a host's first answer to an event."""
        receipt: Receipt = await self.until(Receipt, f"{host}/receipt/{event_id}", lambda _: True, timeout_s=timeout_s)
        return receipt

    def receipts(self, event_id: str, *, host: str = HOST) -> list[str]:
        """Give the outcomes that a host has answered; the very same receipt may be sent again after a lost connection."""
        answers = self.of(Receipt, f"{host}/receipt/{event_id}")
        return [one.outcome.value for i, one in enumerate(answers) if one not in answers[:i]]

    async def replica(
        self,
        template: str,
        state: str,
        *,
        pool: str = "default",
        host: str = HOST,
        timeout_s: float = 15,
        generation: int | None = None,
    ) -> ReplicaStatus:
        """Wait until the replica was in this state; at once where it has been."""
        wanted = ReplicaState(state)
        replica: ReplicaStatus = await self.until(
            ReplicaStatus,
            f"{host}/replica/{pool}/{template}",
            lambda one: one.state is wanted and generation in {None, one.generation},
            timeout_s=timeout_s,
        )
        return replica

    async def until_code(self, template: str, code: str, *, host: str = HOST) -> ReplicaStatus:
        """Wait until the replica carried this failure code."""
        replica: ReplicaStatus = await self.until(
            ReplicaStatus, f"{host}/replica/default/{template}", lambda one: one.code == code
        )
        return replica

    def replicas(self, template: str, *, pool: str = "default", host: str = HOST) -> list[ReplicaStatus]:
        """Give every status of a replica."""
        return self.of(ReplicaStatus, f"{host}/replica/{pool}/{template}")

    def states(self, template: str, *, pool: str = "default", host: str = HOST) -> list[str]:
        """Give the states that a replica went through, repeats of the same left out."""
        states = [one.state.value for one in self.replicas(template, pool=pool, host=host)]
        return [state for i, state in enumerate(states) if i == 0 or states[i - 1] != state]

    def progress(self, template: str, *, pool: str = "default", host: str = HOST) -> list[Progress]:
        """Give the figures of a download."""
        return self.of(Progress, f"{host}/progress/{pool}/{template}")

    async def probe(
        self, template: str, *, host: str = HOST, generation: int | None = None, timeout_s: float = 15
    ) -> ProbeStatus:
        """Wait for what a host found out about a template."""
        probe: ProbeStatus = await self.until(
            ProbeStatus,
            f"{host}/probe/{template}",
            lambda one: generation in {None, one.generation},
            timeout_s=timeout_s,
        )
        return probe

    async def host(self, state: str, *, host: str = HOST, timeout_s: float = 15) -> HostStatus:
        """Wait until the host said this of itself."""
        status: HostStatus = await self.until(
            HostStatus, f"{host}/host", lambda one: one.state.value == state, timeout_s=timeout_s
        )
        return status


class Heard:
    """The topics on which a message came that fits. Each message is looked at once: there may be thousands."""

    def __init__(self, client: MqttClient, fits: Callable[[Received], bool]) -> None:
        self._client = client
        self._fits = fits
        self._looked_at = 0
        self._topics: set[str] = set()

    def count(self) -> int:
        """Tell how many there are by now."""
        news = self._client.messages[self._looked_at :]
        self._looked_at += len(news)
        self._topics.update(one.topic for one in news if self._fits(one))
        return len(self._topics)


class Site:
    """Publishes events and watches statuses over one connection."""

    def __init__(self, client: MqttClient) -> None:
        self.client = client
        self.watch = Watch(client)

    async def send(self, topic: str, payload: bytes | str, *, retain: bool = True) -> str:
        """Publish a payload as it is, and give the id that a bare event has."""
        text = f"{PREFIX}/{topic}"
        raw = payload.encode() if isinstance(payload, str) else payload
        await self.client.publish(text, raw, retain=retain)
        return bare_id(text, raw)

    async def bare(self, topic: str, data: Mapping[str, Any], *, retain: bool = True) -> str:
        """Publish data as a person does."""
        return await self.send(topic, json.dumps(data), retain=retain)

    async def event(self, topic: str, data: Mapping[str, Any], *, retain: bool = True, **attributes: Any) -> str:
        """Publish an envelope, and give its id."""
        envelope = enveloped(topic, data, **attributes)
        await self.send(topic, json.dumps(envelope), retain=retain)
        return str(envelope["id"])

    async def register(self, name: str, url: str, **fields: Any) -> str:
        """Publish a bare Register event."""
        return await self.bare(f"register/{name}", {"template": name, "url": url, **fields})

    async def deploy(self, template: Any, deployment: str | None = None, **fields: Any) -> str:
        """Publish a bare Deploy event of a name or a whole record to all hosts."""
        name = deployment or (template if isinstance(template, str) else template["template"])
        return await self.bare(f"deploy/all/{name}", {"template": template, **fields})

    async def command(self, verb: str, *, audience: str = "all", **fields: Any) -> str:
        """Publish a command."""
        return await self.bare(f"command/{audience}/{verb}", fields, retain=False)


def enveloped(topic: str, data: Mapping[str, Any], **attributes: Any) -> dict[str, Any]:
    """Put data into a CloudEvents envelope with a fresh id."""
    return {
        "specversion": "1.0",
        "id": uuid.uuid4().hex,
        "source": "/tests",
        "type": f"io.kvmd.{topic.partition('/')[0]}.v1",
        "data": data,
        **attributes,
    }


def record(name: str, url: str, content: bytes | None = None, **fields: Any) -> dict[str, Any]:
    """Give a whole template record, with the checksum of the content if it is given."""
    checksum = {"checksum": sha256(content)} if content is not None else {}
    return {"template": name, "url": url, **checksum, **fields}


@contextlib.asynccontextmanager
async def site(broker: Broker, **options: Any) -> AsyncGenerator[Site, None]:
    """Connect to a broker and watch every status."""
    async with broker.client(**options) as client:
        await client.subscribe(f"{PREFIX}/status/#")
        yield Site(client)


@contextlib.asynccontextmanager
async def running(daemon: Daemon, *, is_connected: bool = True) -> AsyncGenerator[Daemon, None]:
    """Run a daemon while the test's loop goes on; wait until it reads events."""
    await asyncio.to_thread(daemon.__enter__)
    try:
        await daemon.has_logged("broker connected" if is_connected else "ready")
        yield daemon
    except BaseException as exc:
        await asyncio.to_thread(daemon.__exit__, type(exc), exc, exc.__traceback__)
        raise
    else:
        await asyncio.to_thread(daemon.__exit__, None, None, None)


def _parsed(model: type[Any], message: Received) -> Any:
    return model.model_validate_json(message.payload)
