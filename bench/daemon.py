"""What the daemon costs: time to READY, memory and processor time when idle, memory while downloading."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import aiomqtt
import psutil

from bench.origin import free_port, make_image, origin

RESULTS = Path(__file__).parent / "results"
IMAGE_MIB = 1024
IDLE_S = 10.0


def main() -> int:
    """Measure, print, and write bench/results/daemon.json."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as text:
        folder = Path(text)
        folder.chmod(0o755)
        (folder / "served").mkdir()
        digest = make_image(folder / "served" / "image.raw", IMAGE_MIB << 20)
        with origin(folder / "served") as url, _broker(folder) as port, _daemon(folder, port) as (process, ready_s):
            idle = _idle(process)
            peak_mib = asyncio.run(_download(process, port, f"{url}/image.raw", digest))
    result = {"ready_seconds": round(ready_s, 3), **idle, "peak_mib_downloading": peak_mib, "image_mib": IMAGE_MIB}
    for name, value in result.items():
        print(f"  {name:<22} {value}")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "daemon.json").write_text(json.dumps(result, indent=2) + "\n")
    return 0


@contextmanager
def _broker(folder: Path) -> Generator[int]:
    port = free_port()
    config = folder / "nats.conf"
    config.write_text(
        f'server_name: bench\nlisten: "127.0.0.1:{free_port()}"\njetstream {{ store_dir: "{folder}/nats" }}\n'
        f'mqtt {{ listen: "127.0.0.1:{port}" }}\n'
    )
    server = subprocess.Popen([Path(sys.executable).parent / "nats-server", "-c", config], stderr=subprocess.DEVNULL)
    try:
        time.sleep(0.5)
        yield port
    finally:
        server.terminate()
        server.wait()


@contextmanager
def _daemon(folder: Path, port: int) -> Generator[tuple[psutil.Process, float]]:
    """Start the daemon and give its process and the seconds until it said READY."""
    (folder / "pool").mkdir()
    config = folder / "kvmd.toml"
    config.write_text(
        f'host = "bench"\nstate_dir = "{folder}/state"\n[mqtt]\nurl = "mqtt://127.0.0.1:{port}"\n'
        f'[pools.default]\npath = "{folder}/pool"\n[policy]\nallowed_networks = ["127.0.0.0/8"]\n'
    )
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(folder / "notify"))
        notify.settimeout(10)
        started = time.monotonic()
        command = [sys.executable, "-m", "kvmd", "run", "--config", str(config)]
        environment = {**os.environ, "NOTIFY_SOCKET": str(folder / "notify")}
        child = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        try:
            while b"READY=1" not in notify.recv(4096):
                pass
            ready_s = time.monotonic() - started
            yield psutil.Process(child.pid), ready_s
        finally:
            child.terminate()
            child.wait()


def _idle(process: psutil.Process) -> dict[str, float]:
    time.sleep(2)
    before = process.cpu_times()
    time.sleep(IDLE_S)
    after = process.cpu_times()
    used = after.user + after.system - before.user - before.system
    return {
        "idle_mib": round(process.memory_info().rss / (1 << 20), 1),
        "idle_core_percent": round(100 * used / IDLE_S, 2),
    }


async def _download(process: psutil.Process, port: int, url: str, digest: str) -> float:
    """Deploy the image and give the highest resident memory seen until it was ready."""
    peak = 0
    template = {"template": "image", "url": url, "checksum": f"{{SHA-256}}{digest}"}
    async with aiomqtt.Client("127.0.0.1", port) as client:
        await client.subscribe("kvmd/v1/status/bench/replica/default/image", qos=1)
        await client.publish("kvmd/v1/deploy/all/image", json.dumps({"template": template}), qos=1, retain=True)
        async with asyncio.timeout(120), asyncio.TaskGroup() as group:
            ready = group.create_task(_ready(client))
            while not ready.done():
                peak = max(peak, process.memory_info().rss)
                await asyncio.sleep(0.05)
    return round(peak / (1 << 20), 1)


async def _ready(client: aiomqtt.Client) -> None:
    async for message in client.messages:
        state = json.loads(bytes(message.payload))["state"]  # type: ignore[arg-type] # a payload that arrives is bytes
        if state == "failed":
            raise SystemExit(f"the deployment failed: {message.payload!r}")
        if state == "ready":
            return


if __name__ == "__main__":
    sys.exit(main())
