"""The lab: starts broker, ``kvmctl serve`` and daemons as child processes, and waits until all hosts listen."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import sys
from pathlib import Path
from types import TracebackType
from typing import Never, Self

from controller.config import load
from controller.errors import UnreachableError
from controller.lab import brokers
from controller.lab.identity import LABELS, identify
from controller.lab.processes import Child
from controller.session import open_session
from controller.supervise import beside
from kvmwire.enrolment import SEALING_KEY, TRUST

_READY_S = 30.0
_STEP_S = 0.02


class Lab:
    """``async with Lab(folder, hosts=3) as lab:``; every child is ended on leaving, the folder stays."""

    def __init__(self, folder: Path, *, hosts: int = 3, broker: str = "auto") -> None:
        """Remember only; ``broker`` is nats, mosquitto or auto."""
        self.folder = folder.absolute()
        self.hosts = tuple(f"kvm{number:02}" for number in range(1, hosts + 1))
        self.config = self.folder / "kvmctl.toml"
        self.children: list[Child] = []
        self._broker = broker
        self._port = _free_port()

    @property
    def url(self) -> str:
        """URL of the broker."""
        return f"mqtt://127.0.0.1:{self._port}"

    def pool(self, host: str) -> Path:
        """Folder of a host's pool."""
        return self.folder / host / "pool"

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop()

    async def broken(self) -> Never:
        """Wait for a child's end, and raise ControlError with what it said last."""
        async with beside(*(self._watch(child) for child in self.children)):
            await asyncio.Event().wait()
        raise AssertionError("unreachable: nothing sets that event")

    async def _start(self) -> None:
        words = await asyncio.to_thread(brokers.command, self._broker, self.folder / "broker", self._port)
        await self._child("broker", words)
        async with beside(*(self._watch(child) for child in self.children)):
            await self._listening()
        await asyncio.to_thread(
            _write, self.config, f'state_dir = {_quoted(self.folder / "controller")}\n[mqtt]\nurl = "{self.url}"\n'
        )
        homes = [(host, self.folder / host) for host in self.hosts]
        await asyncio.to_thread(identify, self.folder / "controller/fleet", homes, url=self.url)
        await self._child("controller", [sys.executable, "-m", "controller", "serve", "--config", self.config])
        for host in self.hosts:
            config = await asyncio.to_thread(self._host_config, host)
            await self._child(host, [sys.executable, "-m", "kvmd", "run", "--config", config])
        async with beside(*(self._watch(child) for child in self.children)):
            await self._hosts_online()

    def _host_config(self, host: str) -> Path:
        """Write a daemon's settings: a directory pool, and leave to fetch from this machine.

        It knows who signs, and takes unsigned events too: a lab is for trying things out with a bare mosquitto_pub.
        """
        self.pool(host).mkdir(parents=True, exist_ok=True)
        config = self.folder / host / "kvmd.toml"
        _write(
            config,
            f"""host = "{host}"
labels = {{ zone = "{LABELS["zone"]}" }}
state_dir = {_quoted(self.folder / host / "state")}
[mqtt]
url = "{self.url}"
[pools.default]
type = "directory"
path = {_quoted(self.pool(host))}
[policy]
allowed_networks = ["127.0.0.0/8", "::1/128"]
[trust]
keys = "{TRUST}"
sealing_key = "{SEALING_KEY}"
""",
        )
        return config

    async def _child(self, name: str, words: list[str | Path]) -> None:
        self.children.append(await Child.start(name, words, log=self.folder / f"{name}.log"))

    async def _watch(self, child: Child) -> None:
        raise await child.ended()

    async def _listening(self) -> None:
        try:
            async with asyncio.timeout(_READY_S):
                while not await _accepts(self._port):  # noqa: ASYNC110 - a port gives no event
                    await asyncio.sleep(_STEP_S)
        except TimeoutError as exc:
            raise UnreachableError(
                f"lab: the broker does not listen on port {self._port}.", hint="See broker.log"
            ) from exc

    async def _hosts_online(self) -> None:
        settings = await asyncio.to_thread(load, self.config, {})
        async with open_session(settings, settings.mqtt.topics.host_filters()) as session:
            try:
                async with asyncio.timeout(_READY_S):
                    await session.until(lambda: all(map(session.fleet.is_online, self.hosts)))
            except TimeoutError as exc:
                missing = [host for host in self.hosts if not session.fleet.is_online(host)]
                raise UnreachableError(
                    f"lab: not online within {_READY_S:g} s: {', '.join(missing)}.",
                    hint=f"See {', '.join(str(self.folder / f'{host}.log') for host in missing)}",
                ) from exc

    async def _stop(self) -> None:
        """End the hosts first, then the controller, the broker last."""
        hosts = [child for child in self.children if child.name in self.hosts]
        others = [child for child in reversed(self.children) if child.name not in self.hosts]
        self.children.clear()
        async with asyncio.TaskGroup() as group:
            for child in hosts:
                group.create_task(child.stop())
        for child in others:
            await child.stop()


def _quoted(path: Path) -> str:
    """Write a path as a TOML string, which JSON's are."""
    return json.dumps(str(path), ensure_ascii=False)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


async def _accepts(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
