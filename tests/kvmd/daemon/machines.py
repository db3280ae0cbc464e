"""A host with machines for tests: a real libvirtd, a daemon that uses it, and machines that are waited for."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import Any

from kvmwire.status import MachineState, MachineStatus
from tests.kvmd.daemon.harness import HOST, Daemon, Site
from tests.support.libvirtd import Libvirtd
from tests.support.waiting import eventually

BOOT_S = 15.0


def machine_host(
    folder: Path,
    url: str,
    libvirtd: Libvirtd,
    *,
    pool_format: str = "keep",
    env: Mapping[str, str] | None = None,
    **machines: Any,
) -> Daemon:
    """Give a daemon whose only pool is libvirt's pool ``images``, and which makes machines under emulation."""
    tables = {
        "machines": {"uri": libvirtd.uri, "type": "qemu", "network": "none", **machines},
        "pools": {"default": {"type": "libvirt", "uri": libvirtd.uri, "pool": "images", "format": pool_format}},
    }
    return Daemon(folder, url, tables=tables, env=env)


def define_pool(libvirtd: Libvirtd, folder: Path) -> None:
    """Make the pool ``images`` in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    libvirtd.define_pool(f"<pool type='dir'><name>images</name><target><path>{folder}</path></target></pool>")


def forget_all(libvirtd: Libvirtd) -> None:
    """Destroy and undefine every machine, and the pool."""
    for name in domains(libvirtd):
        with contextlib.suppress(AssertionError):
            libvirtd.virsh("destroy", name)
        libvirtd.virsh("undefine", name)
    for verb in ("pool-destroy", "pool-undefine"):
        with contextlib.suppress(AssertionError):
            libvirtd.virsh(verb, "images")


def domains(libvirtd: Libvirtd, *words: str) -> list[str]:
    """Name the machines that libvirt has; with ``--state-running`` those that run."""
    return libvirtd.virsh("list", "--name", *(words or ("--all",))).split()


async def machine(lab: Site, name: str, state: str, *, timeout_s: float = 15, host: str = HOST) -> MachineStatus:
    """Wait until a machine was in this state."""
    wanted = MachineState(state)
    status: MachineStatus = await lab.watch.until(
        MachineStatus, f"{host}/machine/{name}", lambda one: one.state is wanted, timeout_s=timeout_s
    )
    return status


async def is_gone(lab: Site, name: str) -> None:
    """Wait until what was retained of a machine is cleared."""
    topic = f"kvmd/v1/status/{HOST}/machine/{name}"
    await lab.client.received(lambda one: one.topic == topic and not one.payload, 15)


async def on_console(pool: Path, name: str, *words: str) -> str:
    """Wait until the machine has written all these words on its serial console."""
    path = pool / f"{name}+console.log"

    def text() -> str:
        return path.read_text(errors="replace") if path.exists() else ""

    await eventually(
        lambda: all(word in text() for word in words), timeout_s=BOOT_S, what=f"{words} in {text()[-800:]}"
    )
    return text()


@contextlib.asynccontextmanager
async def frozen(libvirtd: Libvirtd) -> AsyncGenerator[None]:
    """Let libvirtd answer nothing for a while."""
    await asyncio.to_thread(libvirtd.freeze)
    try:
        yield
    finally:
        await asyncio.to_thread(libvirtd.thaw)
