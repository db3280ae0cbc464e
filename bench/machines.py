"""How soon a machine runs once its replica is ready, and how soon a replica that is there is ready again. Needs root, for a libvirtd.

The guest is a boot loader of 620 KB under emulation; its boot is not counted.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

import aiomqtt

from bench.host import Host, running_host
from bench.origin import origin
from bench.report import keep
from tests.support import bootable
from tests.support.libvirtd import Libvirtd

ROUNDS = 10
RUNNING_S, WARM_S = 1.0, 0.1
"""What is to be reached."""
_LIMIT_S = 60.0


def main() -> int:
    """Measure, print, and write bench/results/machines.json."""
    image = bootable.qcow2("bench")
    with Libvirtd() as libvirtd, tempfile.TemporaryDirectory(dir="/dev/shm") as text:
        folder = Path(text)
        folder.chmod(0o755)
        (folder / "served").mkdir()
        (folder / "served" / "guest.qcow2").write_bytes(image)
        settings = f'[machines]\nuri = "{libvirtd.uri}"\ntype = "qemu"\nnetwork = "none"\n'
        with origin(folder / "served") as nginx, running_host(folder, settings=settings) as host:
            template = {
                "template": "guest",
                "url": f"{nginx.http}/guest.qcow2",
                "checksum": f"{{SHA-256}}{hashlib.sha256(image).hexdigest()}",
            }
            cold, warm, running = asyncio.run(_measure(host, template))
    result = {
        "cold_ready_seconds": cold,
        "warm_ready_seconds": _spread(warm),
        "warm_target_seconds": WARM_S,
        "ready_to_running_seconds": _spread(running),
        "running_target_seconds": RUNNING_S,
        "rounds": ROUNDS,
    }
    for name, value in result.items():
        print(f"  {name:<26} {value}")
    keep("machines", result)
    return int(median(warm) > WARM_S or median(running) > RUNNING_S)


async def _measure(host: Host, template: dict[str, str]) -> tuple[float, list[float], list[float]]:
    """Deploy once; then often, alone and with a machine each time, which is removed again."""
    async with asyncio.timeout(_LIMIT_S), aiomqtt.Client("127.0.0.1", host.port) as client:
        await client.subscribe("kvmd/v1/status/bench/+/#", qos=1)
        statuses = _statuses(client)
        cold = await _ready(client, statuses, template, generation=1)
        numbers = iter(range(2, 2 + 2 * ROUNDS))
        warm = [await _ready(client, statuses, template, generation=next(numbers)) for _ in range(ROUNDS)]
        running = [await _running(client, statuses, template, generation=number) for number in numbers]
    return round(cold, 4), warm, running


async def _ready(
    client: aiomqtt.Client,
    statuses: AsyncIterator[tuple[str, dict[str, Any]]],
    template: dict[str, str],
    *,
    generation: int,
) -> float:
    began = time.monotonic()
    await _publish(client, "guest", {"template": template}, generation)
    async for topic, status in statuses:
        if topic.endswith("/guest") and status.get("state") == "ready" and status["generation"] == generation:
            return time.monotonic() - began
    raise AssertionError


async def _running(
    client: aiomqtt.Client,
    statuses: AsyncIterator[tuple[str, dict[str, Any]]],
    template: dict[str, str],
    *,
    generation: int,
) -> float:
    """Give the seconds from the replica's ``ready`` to the machine's ``running``, as the host tells both times."""
    name = f"vm{generation}"
    machine = {"name": name, "memory_mib": 64}
    await _publish(client, name, {"template": template, "machine": machine}, generation)
    ready: datetime | None = None
    async for topic, status in statuses:
        if status.get("state") == "ready" and status["generation"] == generation:
            ready = datetime.fromisoformat(status["since"])
        if topic.endswith(f"/machine/{name}") and status.get("state") == "running" and ready is not None:
            seconds = (datetime.fromisoformat(status["since"]) - ready).total_seconds()
            await _remove(client, statuses, name, template, generation + 1000)
            return seconds
        if status.get("state") == "failed":
            raise SystemExit(f"{topic}: {status}")
    raise AssertionError


async def _remove(
    client: aiomqtt.Client,
    statuses: AsyncIterator[tuple[str, dict[str, Any]]],
    name: str,
    template: dict[str, str],
    generation: int,
) -> None:
    """Remove a machine, and wait until it is gone: libvirt takes 0.2 s to end QEMU, which the next one must not wait for."""
    machine = {"name": name}
    await _publish(client, name, {"template": template, "ensure": "absent", "machine": machine}, generation)
    async for topic, status in statuses:
        if topic.endswith(f"/machine/{name}") and not status:
            return


async def _statuses(client: aiomqtt.Client) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """Give topics and statuses of replicas and machines; that of a machine which is gone is empty."""
    async for message in client.messages:
        kind = message.topic.value.split("/")[4]
        if kind in {"replica", "machine"}:
            yield message.topic.value, json.loads(bytes(message.payload) or b"{}")


async def _publish(client: aiomqtt.Client, deployment: str, data: dict[str, Any], generation: int) -> None:
    envelope = {
        "specversion": "1.0",
        "id": f"{deployment}-{generation}",
        "source": "/bench",
        "type": "io.kvmd.deploy.v1",
        "generation": generation,
        "data": data,
    }
    await client.publish(f"kvmd/v1/deploy/all/{deployment}", json.dumps(envelope), qos=1, retain=True)


def _spread(seconds: list[float]) -> dict[str, float]:
    return {"median": round(median(seconds), 4), "worst": round(max(seconds), 4)}


if __name__ == "__main__":
    sys.exit(main())
