from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvmd.notify import Notifier


@pytest.fixture(params=["file", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """Give a datagram socket as the service manager's, and its name as NOTIFY_SOCKET has it."""
    name = f"@kvmd-test-{secrets.token_hex(8)}" if request.param == "abstract" else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind("\0" + name[1:] if name.startswith("@") else name)
        listening.settimeout(5)
        yield listening, name


def test_every_note_arrives(manager: tuple[socket.socket, str]) -> None:
    listening, name = manager
    notifier = Notifier.from_environ({"NOTIFY_SOCKET": name})
    notifier.ready("connected to broker\nSTOPPING=1")
    assert listening.recv(4096) == b"READY=1\nSTATUS=connected to broker STOPPING=1"
    notifier.status("2 sessions")
    assert listening.recv(4096) == b"STATUS=2 sessions"
    notifier.watchdog()
    assert listening.recv(4096) == b"WATCHDOG=1"
    notifier.stopping()
    assert listening.recv(4096) == b"STOPPING=1"


def test_without_the_variable_nothing_is_sent() -> None:
    notifier = Notifier.from_environ({"WATCHDOG_USEC": "1000000"})
    assert notifier == Notifier(None, None)
    notifier.ready("x")
    notifier.watchdog()


def test_a_manager_that_is_gone_is_told_in_the_log_and_does_no_harm(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Notifier.from_environ({"NOTIFY_SOCKET": str(tmp_path / "none")}).ready("x")
    assert [record.getMessage() for record in caplog.records] == ["service manager not notified"]


@pytest.mark.parametrize(
    ("environ", "interval_s"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_the_watchdog_interval_is_for_this_process(environ: dict[str, str], interval_s: float | None) -> None:
    assert Notifier.from_environ({"NOTIFY_SOCKET": "/run/notify", **environ}).watchdog_interval_s == interval_s


@pytest.mark.parametrize("name", ["", "notify", "vsock:2:1234"])
def test_an_address_of_another_kind_counts_as_absent(name: str) -> None:
    assert Notifier.from_environ({"NOTIFY_SOCKET": name}).address is None
