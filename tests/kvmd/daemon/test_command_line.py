"""``kvmd run`` with settings that cannot work: one clear message, the right exit code, never a traceback."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.kvmd.daemon.harness import Daemon, running
from tests.support.ports import free_port


async def ended(daemon: Daemon) -> tuple[int, str]:
    """Start a daemon that cannot run; give its exit code and what it said."""
    await asyncio.to_thread(daemon.process.start)
    try:
        code = await asyncio.to_thread(daemon.process.wait)
    finally:
        await daemon.kill()
    daemon.assert_no_traceback()
    return code, daemon.process.log_text()


@pytest.mark.parametrize(
    ("tables", "says"),
    [
        ({"tranfer": {"sessions": 4}}, "tranfer: unknown key; did you mean transfer?"),
        ({"transfer": {"sesions": 4}}, "transfer.sesions: unknown key; did you mean transfer.sessions?"),
        ({"transfer": {"sessions": "many"}}, "transfer.sessions: expected a whole number"),
        ({"transfer": {"sessions": 0}}, "transfer.sessions"),
        ({"mqtt": {"url": "http://broker"}}, "mqtt.url"),
        ({"mqtt": {"prefix": "a//b"}}, "mqtt.prefix"),
        ({"mqtt": {"username": "u", "password_file": "/nonexistent/password"}}, "mqtt.password_file"),
        ({"mqtt": {"url": "mqtts://broker", "ca": "/nonexistent/ca.pem"}}, "mqtt.ca"),
        ({"host": "kvm/01"}, "host"),
        ({"policy": {"require_signature": True}}, "require_signature = true, and no trust.keys"),
        ({"pools": {"default": {"path": "relative"}}}, "pools.default.path"),
        ({"pools": {"fast": {"type": "libvirt", "uri": "qemu:///system"}}}, "pools.fast.pool: is missing"),
    ],
)
async def test_a_setting_that_cannot_be_used_is_named(tmp_path: Path, tables: dict[str, Any], says: str) -> None:
    code, said = await ended(Daemon(tmp_path / "kvm01", "mqtt://127.0.0.1:1", tables=tables))

    assert code == 2
    assert says in said
    assert said.startswith("kvmd: ")
    assert len(said.splitlines()) <= 4


async def test_the_message_names_the_file(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path / "kvm01", "mqtt://127.0.0.1:1", tables={"colour": "blue"})

    _, said = await ended(daemon)

    assert f"{daemon.config}: colour: unknown key." in said


async def test_a_broker_that_is_not_there_does_not_end_the_daemon(tmp_path: Path) -> None:
    port = free_port()
    async with running(Daemon(tmp_path / "kvm01", f"mqtt://127.0.0.1:{port}"), is_connected=False) as daemon:
        await daemon.has_logged("broker not reachable", times=3)

        said = daemon.logged("broker not reachable")[0]
        assert said["broker"] == f"127.0.0.1:{port}"
        assert "refused" in said["reason"].lower()
        assert await daemon.stop() == 0


async def test_a_broker_name_that_does_not_resolve_is_told(tmp_path: Path) -> None:
    url = "mqtt://broker.invalid:1883"
    async with running(Daemon(tmp_path / "kvm01", url), is_connected=False) as daemon:
        await daemon.has_logged("broker not reachable", times=2)

        assert daemon.logged("broker not reachable")[0]["broker"] == "broker.invalid:1883"
