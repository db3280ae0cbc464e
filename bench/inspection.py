"""What looking at an image costs: processor time and bytes from the start, for an image of each format."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.outcome import Figure, Outcome
from bench.report import keep, show
from kvmd.core.image import HEAD_SIZE, inspect_head
from kvmd.store.looking import image_of

ROUNDS = 200
TARGET_MS = 5.0
TARGET_KIB = 256.0
IMAGES = {
    "qcow2": ("qcow2", "64G", "preallocation=metadata"),
    "qcow2, clusters of 512": ("qcow2", "4G", "cluster_size=512"),
    "qcow2, clusters of 2M": ("qcow2", "1T", "cluster_size=2M,extended_l2=on"),
    "vmdk": ("vmdk", "64G", "subformat=monolithicSparse"),
    "vhdx": ("vhdx", "64G", "subformat=dynamic"),
    "vdi": ("vdi", "64G", "static=off"),
    "raw": ("raw", "64G", "preallocation=off"),
}


def main() -> int:
    """Measure, print, and write bench/results/inspection.json."""
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as text:
        for name, (kind, size, options) in IMAGES.items():
            path = Path(text) / "image"
            command = ["qemu-img", "create", "-q", "-f", kind, "-o", options, str(path), size]
            subprocess.run(command, check=True)
            figures += _measure(name, path)
            path.unlink()
    outcome = Outcome(f"medians of {ROUNDS} inspections", tuple(figures))
    show("inspection", outcome)
    measured = [
        {"name": one.name, "value": round(one.value, 3), "unit": one.unit, "target": one.target, "verdict": one.verdict}
        for one in figures
    ]
    keep("inspection", measured)
    return 0


def _measure(name: str, path: Path) -> list[Figure]:
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(HEAD_SIZE)
        more = inspect_head(head, size=size).wanted_head
        while more is not None:
            file.seek(0)
            head = file.read(more)
            more = inspect_head(head, size=size).wanted_head
        of_head, of_file = [], []
        for _ in range(ROUNDS):
            began = time.perf_counter()
            inspect_head(head, size=size)
            of_head.append(time.perf_counter() - began)
        for _ in range(ROUNDS // 10):
            began = time.perf_counter()
            image_of(file.fileno(), size)
            of_file.append(time.perf_counter() - began)
    is_promised = name.startswith("qcow2")
    return [
        Figure(f"{name}: head", statistics.median(of_head) * 1e3, "ms", TARGET_MS if is_promised else None),
        Figure(f"{name}: first bytes", len(head) / 1024, "KiB", TARGET_KIB),
        Figure(f"{name}: whole file", statistics.median(of_file) * 1e3, "ms"),
    ]


if __name__ == "__main__":
    sys.exit(main())
