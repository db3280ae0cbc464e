"""Four images at once against one of the same size together, in one daemon: from the first event to the last one ready."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

from bench.host import Host, deploy, running_host
from bench.origin import sha256
from bench.outcome import Figure, Outcome, median_s
from bench.processes import Run
from bench.rounds import Stage, check, prime

_SESSIONS = 4
_MOVED_SIZE = 1 << 20


def four_at_once(stage: Stage) -> Outcome:
    """Interleaved, each time in a new daemon with an empty pool in memory."""
    one, many = "one session", f"{_SESSIONS} sessions"
    runs: dict[str, list[Run]] = {one: [], many: []}
    with _quarters(stage) as quarters:
        prime(stage.image, stage.memory)
        for _ in range(stage.rounds):
            runs[one].append(_deploy(stage, {stage.image: stage.digest}))
            runs[many].append(_deploy(stage, quarters))
    throughput = Figure(
        f"throughput of {many} / of one", median_s(runs[one]) / median_s(runs[many]), target=0.95, is_floor=True
    )
    peak = Figure(f"peak memory of {many}", max(run.peak for run in runs[many]) / (1 << 20), "MiB")
    return Outcome("http, tmpfs, sessions of one daemon", (throughput, peak), runs)


@contextmanager
def _quarters(stage: Stage) -> Generator[Mapping[Path, str]]:
    """Cut the image into served files, one a session, and give their digests."""
    size = stage.size // _SESSIONS
    paths = [stage.image.with_name(f"part{number}.raw") for number in range(_SESSIONS)]
    try:
        with stage.image.open("rb") as image:
            for path in paths:
                with path.open("wb") as part:
                    for _ in range(size // _MOVED_SIZE):
                        part.write(image.read(_MOVED_SIZE))
        yield {path: sha256(path) for path in paths}
    finally:
        for path in paths:
            path.unlink(missing_ok=True)


def _deploy(stage: Stage, images: Mapping[Path, str]) -> Run:
    os.sync()
    with tempfile.TemporaryDirectory(dir=stage.memory) as folder, running_host(Path(folder)) as host:
        before = _cpu_s(host)
        seconds = asyncio.run(
            deploy(host, {f"{stage.origin.http}/{path.name}": digest for path, digest in images.items()})
        )
        cpu_s = _cpu_s(host) - before
        for number, path in enumerate(images):
            check(host.pool / f"image{number}", path, "the daemon")
        return Run(seconds, cpu_s, _peak(host))


def _cpu_s(host: Host) -> float:
    used = host.process.cpu_times()
    return used.user + used.system


def _peak(host: Host) -> int:
    """Give the most memory that was ever resident, in bytes (VmHWM in proc(5))."""
    status = Path(f"/proc/{host.process.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) << 10
