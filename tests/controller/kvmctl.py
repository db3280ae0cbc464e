"""The real ``kvmctl`` as a child process, against a broker, with a state folder of its own."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import sys
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from controller.output import Output
from controller.program import build_parser, run
from controller.registry import Registry

CHECKSUM = "{SHA-256}" + "ab" * 32
URL = "http://origin.test/deb12.qcow2"


@dataclass(frozen=True)
class Ended:
    """How a run ended, and what it wrote."""

    code: int
    stdout: str
    stderr: str

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The JSON lines of stdout."""
        return [json.loads(line) for line in self.stdout.splitlines()]


class Kvmctl:
    """Runs commands; ``state`` is the folder of the registry."""

    def __init__(self, url: str, folder: Path, **env: str) -> None:
        self.state = folder / "state"
        clean = {name: value for name, value in os.environ.items() if not name.startswith("KVMCTL_")}
        self._env = {**clean, "HOME": str(folder), "KVMCTL_STATE_DIR": str(self.state), "KVMCTL_MQTT_URL": url, **env}

    @property
    def env(self) -> Mapping[str, str]:
        """The environment of what is started."""
        return self._env

    def set_env(self, **env: str) -> None:
        """Add to the environment of what is started from now on."""
        self._env.update(env)

    @contextlib.asynccontextmanager
    async def started(self, *words: str) -> AsyncGenerator[asyncio.subprocess.Process, None]:
        """Start a command; what runs at the end is killed and reaped."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "controller", *words),
            env=self._env,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
            await process.communicate()

    async def run(self, *words: str) -> Ended:
        """Run a command to its end, in this process: starting Python takes longer than most commands."""
        arguments = await asyncio.to_thread(lambda: build_parser().parse_args(words))
        stdout, stderr = io.StringIO(), io.StringIO()
        output = Output(is_json=getattr(arguments, "json", False), stdout=stdout, stderr=stderr)
        async with asyncio.timeout(15):
            code = await run(arguments, output, environ=self._env)
        return Ended(code, stdout.getvalue(), stderr.getvalue())

    def history(self) -> list[tuple[str, set[str]]]:
        """Topics in the registry, the newest first, with the hosts that answered."""
        with contextlib.closing(Registry(self.state)) as registry:
            return [(s.topic, {r.host for r in registry.receipts(s.id)}) for s in registry.history(limit=99)]

    async def registered(self, name: str = "deb12") -> Ended:
        """Register a template."""
        done = await self.run("register", name, URL, "--checksum", CHECKSUM, "--json")
        assert done.code == 0, done.stderr
        return done


async def ended(process: asyncio.subprocess.Process, timeout_s: float = 15) -> Ended:
    """Wait for the end of a started command."""
    async with asyncio.timeout(timeout_s):
        stdout, stderr = await process.communicate()
    assert process.returncode is not None
    return Ended(process.returncode, stdout.decode(), stderr.decode())
