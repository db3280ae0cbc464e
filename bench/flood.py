"""A flood of forged events while an image is downloaded: what it costs the download and the memory."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import tomli_w
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bench.host import Host, deploy, running_host
from bench.origin import make_image, origin
from bench.outcome import Figure, Outcome
from bench.report import keep, show
from kvmwire.signing import sign_payload
from kvmwire.trust import CONTROLLER_ROLES, TrustedKey, TrustList

IMAGE_MIB = 512
RATE_MIB = 64
"""MiB a second: a download at full speed uses both cores of a small machine, and tells only who else does."""
EVENTS_PER_S = 10_000
MAX_GROWTH_MIB = 64
MAX_SLOWDOWN = 1.1
_STEPS_PER_S = 100
_TOPIC = b"kvmd/v1/deploy/all/flood"


@dataclass
class Flood:
    """Publishes one payload with QoS 0 as fast as asked, from a thread, over a socket of its own."""

    port: int
    payload: bytes
    sent: int = 0

    @contextmanager
    def running(self) -> Generator[None]:
        """Publish until the context is left."""
        stopped = threading.Event()
        thread = threading.Thread(target=self._publish, args=(stopped,))
        thread.start()
        try:
            yield
        finally:
            stopped.set()
            thread.join()

    def _publish(self, stopped: threading.Event) -> None:
        batch = EVENTS_PER_S // _STEPS_PER_S
        body = len(_TOPIC).to_bytes(2, "big") + _TOPIC + self.payload
        packets = (b"\x30" + _length(len(body)) + body) * batch
        with socket.create_connection(("127.0.0.1", self.port)) as connection:
            connection.sendall(b"\x10\x11\x00\x04MQTT\x04\x02\x00\x3c\x00\x05flood")
            connection.recv(4)
            due = time.monotonic()
            while not stopped.wait(max(0.0, due - time.monotonic())):
                connection.sendall(packets)
                self.sent += batch
                due += 1 / _STEPS_PER_S


def main() -> int:
    """Measure, print, and write bench/results/flood.json."""
    key = Ed25519PrivateKey.generate()
    trust = TrustList(keys=(TrustedKey.of("controller", key.public_key(), CONTROLLER_ROLES),))
    with tempfile.TemporaryDirectory(dir="/dev/shm") as text:
        folder = Path(text)
        folder.chmod(0o755)
        (folder / "served").mkdir()
        (folder / "trust.toml").write_text(tomli_w.dumps(trust.model_dump(mode="json", exclude_none=True)))
        digests = {name: make_image(folder / "served" / name, IMAGE_MIB << 20) for name in ("calm", "flooded")}
        settings = f'[trust]\nkeys = "{folder}/trust.toml"\n'
        with origin(folder / "served") as nginx, running_host(folder, settings) as host:
            calm = asyncio.run(_watched(host, {f"{nginx.http}/calm": digests["calm"]}, "calm"))
            before = host.process.memory_info().rss
            flood = Flood(host.port, _forged(trust.keys[0].keyid))
            started = time.monotonic()
            with flood.running():
                flooded = asyncio.run(_watched(host, {f"{nginx.http}/flooded": digests["flooded"]}, "flooded"))
            rate = flood.sent / (time.monotonic() - started)
    figures = (
        Figure("forged events", rate, "/s", EVENTS_PER_S * 0.9, is_floor=True),
        Figure("time / time without", flooded.there_s / calm.there_s, target=MAX_SLOWDOWN),
        Figure("status comes later by", (flooded.told_s - flooded.there_s) - (calm.told_s - calm.there_s), "s"),
        Figure("memory gained", (flooded.peak - before) / (1 << 20), "MiB", MAX_GROWTH_MIB),
    )
    show("flood", Outcome("forged events during a download", figures))
    keep("flood", {one.name: round(one.value, 3) for one in figures})
    return 0


def _forged(keyid: str) -> bytes:
    """Give an event that claims the controller's key and is signed with another."""
    envelope = {
        "specversion": "1.0",
        "id": "flood",
        "source": "flood",
        "type": "io.kvmd.deploy.v1",
        "subject": _TOPIC.decode().removeprefix("kvmd/v1/"),
        "generation": 1,
        "data": {"template": {"template": "x", "url": "https://images.example/x"}},
    }
    signed = json.loads(sign_payload(json.dumps(envelope).encode(), Ed25519PrivateKey.generate()))
    return json.dumps(signed | {"keyid": keyid}).encode()


def _length(size: int) -> bytes:
    """Write a packet's remaining length (MQTT 3.1.1, 2.2.3)."""
    coded = bytearray()
    while True:
        size, low = divmod(size, 128)
        coded.append(low | (128 if size else 0))
        if not size:
            return bytes(coded)


@dataclass(frozen=True)
class _Seen:
    """Seconds until the volume was there, and until that was told; the highest resident memory in bytes."""

    there_s: float
    told_s: float
    peak: int


async def _watched(host: Host, images: dict[str, str], stem: str) -> _Seen:
    """Deploy one image, and look on."""
    peak, there_s, started = 0, 0.0, time.monotonic()
    async with asyncio.TaskGroup() as group:
        ready = group.create_task(deploy(host, images, stem=stem, rate_limit=RATE_MIB << 20))
        while not ready.done():
            peak = max(peak, host.process.memory_info().rss)
            if not there_s and (host.pool / f"{stem}0").exists():
                there_s = time.monotonic() - started
            await asyncio.sleep(0.02)
    told_s = time.monotonic() - started
    return _Seen(there_s or told_s, told_s, peak)


if __name__ == "__main__":
    sys.exit(main())
