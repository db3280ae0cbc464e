"""Unpacking beside ``zcat`` and ``zstd -d`` that write the same file, and whole downloads of compressed images."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from bench.origin import origin
from bench.report import keep
from kvmd.app import fetching
from kvmd.config import Settings
from kvmd.core.compression import Bounds, compression_of
from kvmd.core.session import Ready
from kvmd.engine.runner import Listener
from kvmd.ports import Packing
from kvmd.store.unpacking import Unpacking
from kvmd.store.zeros import Allocation
from kvmwire.digest import Algorithm
from kvmwire.source import SourceUrl

MIB = 1 << 20
ROUNDS = 5
TARGET = 1.3
PACKERS = {"gz": ("gzip", "-6c"), "zst": ("zstd", "-3qc")}
TOOLS = {"gz": ("zcat",), "zst": ("zstd", "-qdf", "-o", "{out}")}


def main() -> int:
    """Measure, print, and write bench/results/decompress.json; 1 where the target is missed."""
    size = int(os.environ.get("BENCH_MIB", "1024")) // 2 * MIB
    result: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(dir="/dev/shm") as text:
        folder = Path(text)
        folder.chmod(0o755)
        (folder / "served").mkdir()
        digest = _make_image(folder / "image", size)
        for name, packer in PACKERS.items():
            with (folder / "served" / name).open("wb") as packed:
                subprocess.run([*packer, folder / "image"], stdout=packed, check=True)
        with origin(folder / "served") as nginx:
            for name in PACKERS:
                result[name] = _measure(name, folder, f"{nginx.http}/{name}", digest)
    for name, figures in result.items():
        print(f"  {name:<4} " + "  ".join(f"{key} {value}" for key, value in figures.items()))
    keep("decompress", {"image_mib": size // MIB, "target": TARGET, **result})
    return int(any(figures["ratio"] > TARGET for figures in result.values()))


def _measure(name: str, folder: Path, url: str, digest: str) -> dict[str, float]:
    """Take turns, so that a slow minute of the machine is everybody's."""
    packed, out = folder / "served" / name, folder / "out"
    tool, ours, fetches = list[float](), list[float](), list[float]()
    for _ in range(ROUNDS):
        tool.append(_timed(lambda: _run_tool(name, packed, out)))
        ours.append(_timed(lambda: _unpack(packed, out, digest)))
        fetches.append(_timed(lambda: asyncio.run(_fetch(url, folder, digest))))
    figures = {"tool_s": median(tool), "kvmd_s": median(ours), "fetch_s": median(fetches)}
    return {key: round(value, 3) for key, value in figures.items()} | {
        "ratio": round(median(ours) / median(tool), 2),
        "fetch_ratio": round(median(fetches) / median(tool), 2),
    }


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _run_tool(name: str, packed: Path, out: Path) -> None:
    out.unlink(missing_ok=True)
    command = [word.format(out=out) for word in TOOLS[name]]
    if "-o" in command:
        subprocess.run([*command, packed], check=True)
        return
    with out.open("wb") as file:
        subprocess.run([*command, packed], stdout=file, check=True)


def _unpack(packed: Path, out: Path, digest: str) -> None:
    """Unpack what is on disk, its digest included."""
    out.unlink(missing_ok=True)
    with packed.open("rb") as source, out.open("w+b") as target:
        compression = compression_of(source.read(4096))
        if compression is None:
            raise SystemExit(f"{packed} is not compressed")
        packing = Packing(compression, Bounds(ratio=200), Algorithm.SHA_256)
        unpacking = Unpacking(source.fileno(), target.fileno(), packing, allocation=Allocation.SPARSE)
        unpacking.finish(packed.stat().st_size)
        if unpacking.digest().hex != digest:
            raise SystemExit("the content is wrong")


async def _fetch(url: str, folder: Path, digest: str) -> None:
    """Download and unpack, as ``kvmd fetch`` does."""

    async def ignore(_: object) -> None: ...

    request = fetching.FetchRequest([SourceUrl.parse(url)], folder, "fetched")
    settings = Settings.model_validate({"policy": {"discover_checksums": False}})
    state = await fetching.fetch(request, settings, Listener(ignore, lambda _: None))
    (folder / "fetched").unlink()
    if not isinstance(state, Ready) or state.placement.digest.hex != digest:
        raise SystemExit(f"the download failed: {state}")


def _make_image(path: Path, size: int) -> str:
    """Write a disk of text, programs, packed files and a third of zeros; give its SHA-256."""
    chance = random.Random(1)  # noqa: S311 - the same image every time
    words = [chance.randbytes(chance.randint(2, 9)).hex().encode() for _ in range(4000)]
    texts = [b" ".join(chance.choices(words, k=MIB // 8))[:MIB] for _ in range(16)]
    programs = [
        b"".join(chance.randbytes(48) + bytes(chance.randint(4, 120)) + chance.choice(words) for _ in range(9000))
        for _ in range(8)
    ]
    kinds = [lambda: bytes(MIB)] * 4 + [lambda: chance.choice(texts)] * 3
    kinds += [lambda: chance.choice(programs)] * 3 + [lambda: chance.randbytes(MIB)] * 2
    digest = hashlib.sha256()
    with path.open("wb") as file:
        while (left := size - file.tell()) > 0:
            block = chance.choice(kinds)() if file.tell() else chance.randbytes(MIB)
            digest.update(block[:left])
            file.write(block[:left])
    return digest.hexdigest()


if __name__ == "__main__":
    sys.exit(main())
