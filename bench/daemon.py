"""What the daemon costs: time to READY, memory and processor time when idle, memory while downloading."""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from pathlib import Path

import psutil

from bench.host import Host, deploy, running_host
from bench.origin import make_image, origin
from bench.report import keep

IMAGE_MIB = 1024
IDLE_S = 10.0


def main() -> int:
    """Measure, print, and write bench/results/daemon.json."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as text:
        folder = Path(text)
        folder.chmod(0o755)
        (folder / "served").mkdir()
        digest = make_image(folder / "served" / "image.raw", IMAGE_MIB << 20)
        with origin(folder / "served") as nginx, running_host(folder) as host:
            idle = _idle(host.process)
            peak_mib = asyncio.run(_download(host, f"{nginx.http}/image.raw", digest))
            ready_s = host.ready_s
    result = {"ready_seconds": round(ready_s, 3), **idle, "peak_mib_downloading": peak_mib, "image_mib": IMAGE_MIB}
    for name, value in result.items():
        print(f"  {name:<22} {value}")
    keep("daemon", result)
    return 0


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


async def _download(host: Host, url: str, digest: str) -> float:
    """Deploy the image and give the highest resident memory seen until it was ready."""
    peak = 0
    async with asyncio.TaskGroup() as group:
        ready = group.create_task(deploy(host, {url: digest}))
        while not ready.done():
            peak = max(peak, host.process.memory_info().rss)
            await asyncio.sleep(0.05)
    return round(peak / (1 << 20), 1)


if __name__ == "__main__":
    sys.exit(main())
