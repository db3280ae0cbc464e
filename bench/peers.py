"""kvmd and what it is measured beside: the commands that put one file in place, its digest known to be right."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.processes import Command

KVMD = "kvmd"
ARIA2C = "aria2c -x16 -s16"
CURL = "curl + openssl"
REFERENCE = "C reference"


@dataclass(frozen=True)
class Download:
    """What is to be done; ``urls`` serve the same file. ``config`` is kvmd's settings file."""

    urls: tuple[str, ...]
    digest: str
    out: Path
    ca: Path
    is_synced: bool = False
    config: Path | None = None


Peer = Callable[[Download], list[Command]]


def kvmd(download: Download) -> list[Command]:
    """Give kvmd's command; it checks, and syncs to disk whether asked to or not."""
    return [[*_kvmd_fetch(download), "--checksum", f"{{SHA-256}}{download.digest}"]]


def kvmd_without_checksum(download: Download) -> list[Command]:
    """Give kvmd's command without a promised digest."""
    return [_kvmd_fetch(download)]


def _kvmd_fetch(download: Download) -> list[str | Path]:
    program = Path(sys.executable).with_name("kvmd")
    command: list[str | Path] = [program, "fetch", *download.urls, download.out, "--json"]
    command += ["--ca", download.ca] if download.urls[0].startswith("https:") else []
    command += ["--config", download.config] if download.config is not None else []
    return command


def aria2c(download: Download) -> list[Command]:
    """Give aria2c's command, with its defaults but for the number of connections."""
    out, checksum = download.out, f"--checksum=sha-256={download.digest}"
    command: list[str | Path] = ["aria2c", "-q", "-x16", "-s16", checksum, "-d", out.parent, "-o", out.name]
    command += [f"--ca-certificate={download.ca}", *download.urls]
    return [command, *_sync(download)]


def curl(download: Download) -> list[Command]:
    """Give curl's command and the one that hashes what came (Debian 12's sha256sum knows no SHA instructions)."""
    fetch: list[str | Path] = ["curl", "-sS", "--cacert", download.ca, "-o", download.out, download.urls[0]]
    digest: list[str | Path] = ["openssl", "dgst", "-sha256", "-r", download.out]
    return [fetch, digest, *_sync(download)]


def reference(program: Path, *, connections: int) -> Peer:
    """Give the peer that is bench/reference.c."""

    def commands(download: Download) -> list[Command]:
        command: list[str | Path] = [program, "-n", str(connections), "-c", download.ca]
        command += ["-f"] if download.is_synced else []
        return [[*command, download.urls[0], download.out, download.digest]]

    return commands


def standard(program: Path) -> Mapping[str, Peer]:
    """Give kvmd, aria2c, curl, and the reference with 1, 2 and 4 connections."""
    references = {f"{REFERENCE} -n{n}": reference(program, connections=n) for n in (1, 2, 4)}
    return {KVMD: kvmd, ARIA2C: aria2c, CURL: curl, **references}


def _sync(download: Download) -> list[Command]:
    return [["sync", download.out]] if download.is_synced else []
