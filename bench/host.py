"""A whole host for measurements: a broker, the daemon with one pool, and deployments that are waited for."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import aiomqtt
import psutil

from bench.processes import ended, free_port, serving

_DEPLOY_S = 120.0


@dataclass(frozen=True)
class Host:
    """The running daemon, its broker's port, its pool's folder, and the seconds until it said READY."""

    process: psutil.Process
    port: int
    pool: Path
    ready_s: float


@contextmanager
def running_host(folder: Path, settings: str = "") -> Generator[Host]:
    """Run broker and daemon with everything they write in ``folder``; both have ended when the context is left.

    ``settings`` is TOML that is added to the daemon's.
    """
    with _broker(folder) as port, _daemon(folder, port, settings) as host:
        yield host


async def deploy(host: Host, images: Mapping[str, str], *, stem: str = "image", rate_limit: int = 0) -> float:
    """Deploy images, digests by URL, all at once; give the seconds from the first event to the last one ready.

    ``stem`` begins the names of their templates: one that the host has not seen yet. ``rate_limit`` is in bytes a second, 0: none.
    """
    async with asyncio.timeout(_DEPLOY_S), aiomqtt.Client("127.0.0.1", host.port) as client:
        await client.subscribe("kvmd/v1/status/bench/replica/default/+", qos=1)
        started = time.monotonic()
        for number, (url, digest) in enumerate(images.items()):
            template = {"template": f"{stem}{number}", "url": url, "checksum": f"{{SHA-256}}{digest}"}
            event = json.dumps({"template": template, "rate_limit": rate_limit})
            await client.publish(f"kvmd/v1/deploy/all/{stem}{number}", event, qos=1, retain=True)
        await _all_ready(client, {f"{stem}{number}" for number in range(len(images))})
        return time.monotonic() - started


async def _all_ready(client: aiomqtt.Client, names: set[str]) -> None:
    missing = set(names)
    async for message in client.messages:
        name = message.topic.value.rpartition("/")[2]
        state = json.loads(bytes(message.payload))["state"]
        if name in missing and state in {"failed", "waiting"}:
            raise SystemExit(f"the deployment failed: {message.payload!r}")
        missing -= {name} if state == "ready" else set()
        if not missing:
            return


@contextmanager
def _broker(folder: Path) -> Generator[int]:
    port = free_port()
    config = folder / "nats.conf"
    config.write_text(
        f'server_name: bench\nlisten: "127.0.0.1:{free_port()}"\njetstream {{ store_dir: "{folder}/nats" }}\n'
        f'mqtt {{ listen: "127.0.0.1:{port}" }}\n'
    )
    with serving([Path(sys.executable).parent / "nats-server", "-c", config], port):
        yield port


@contextmanager
def _daemon(folder: Path, port: int, settings: str) -> Generator[Host]:
    pool = folder / "pool"
    pool.mkdir()
    config = folder / "kvmd.toml"
    config.write_text(
        f'host = "bench"\nstate_dir = "{folder}/state"\n[mqtt]\nurl = "mqtt://127.0.0.1:{port}"\n'
        f'[pools.default]\npath = "{pool}"\n[policy]\nallowed_networks = ["127.0.0.0/8"]\n{settings}'
    )
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(folder / "notify"))
        notify.settimeout(10)
        started = time.monotonic()
        command: list[str | Path] = [Path(sys.executable).with_name("kvmd"), "run", "--config", config]
        environment = {**os.environ, "NOTIFY_SOCKET": str(folder / "notify")}
        child = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        with ended(child):
            while b"READY=1" not in notify.recv(4096):
                pass
            yield Host(psutil.Process(child.pid), port, pool, time.monotonic() - started)
