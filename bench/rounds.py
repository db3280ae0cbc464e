"""Interleaved rounds of whole downloads, each from a clean folder and with its content compared afterwards."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.origin import Origin
from bench.peers import Download, Peer
from bench.processes import Run, run


@dataclass(frozen=True)
class Stage:
    """What all scenarios share: the served image, folders to write to, our programs in C, and the number of rounds."""

    origin: Origin
    image: Path
    digest: str
    memory: Path
    """A folder on a tmpfs."""
    disk: Path
    """A folder on a disk's filesystem."""
    reference: Path
    shaped: Path
    rounds: int

    @property
    def size(self) -> int:
        """Bytes of the image."""
        return self.image.stat().st_size

    def download(self, *urls: str, folder: Path | None = None) -> Download:
        """Give a download of the image to a file in ``folder`` (default: in memory)."""
        return Download(urls, self.digest, (folder or self.memory) / "out" / "image", self.origin.ca)


def race(stage: Stage, download: Download, peers: Mapping[str, Peer]) -> dict[str, list[Run]]:
    """Run every peer once a round, and give what each run has cost."""
    prime(stage.image, download.out.parent.parent)
    runs: dict[str, list[Run]] = {name: [] for name in peers}
    for _ in range(stage.rounds):
        for name, peer in peers.items():
            with clean(download.out.parent):
                runs[name].append(run(peer(download)))
                check(download.out, stage.image, name)
    return runs


def prime(image: Path, folder: Path) -> None:
    """Write and delete the output once: a virtual machine pays for fresh pages, and the first one must not pay for all."""
    with clean(folder / "out"):
        shutil.copyfile(image, folder / "out" / "image")


@contextmanager
def clean(folder: Path) -> Generator[None]:
    """Give an empty folder, with nothing left to be written back, and remove it with its content."""
    folder.mkdir()
    os.sync()
    try:
        yield
    finally:
        shutil.rmtree(folder)


def check(out: Path, image: Path, who: str) -> None:
    """End the bench when the file is not the image."""
    if subprocess.run(["cmp", "--", image, out], check=False).returncode:
        raise SystemExit(f"{who} ended well, and yet {out} is not what was served")
