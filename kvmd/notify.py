"""Tells systemd how the service is doing, by the protocol of sd_notify(3)."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from kvmd.log import get_logger

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Notifier:
    """Sends notes to the service manager; without one (``address`` None) it does nothing.

    ``watchdog_interval_s``: systemd ends the service that stays silent this long; call ``watchdog`` twice as often.
    None: no watchdog is wanted of this process.
    """

    address: str | None = None
    watchdog_interval_s: float | None = None

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Notifier:
        """Read NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID; what cannot be used counts as absent."""
        address = environ.get("NOTIFY_SOCKET", "")
        if not address.startswith(("/", "@")):
            return cls()
        return cls(address, _watchdog_interval_s(environ))

    def ready(self, status: str) -> None:
        """Say that the service does its work from now on."""
        self._send(f"READY=1\nSTATUS={_one_line(status)}")

    def status(self, text: str) -> None:
        """Show one line in ``systemctl status``."""
        self._send(f"STATUS={_one_line(text)}")

    def stopping(self) -> None:
        """Say that the service has begun to end."""
        self._send("STOPPING=1")

    def watchdog(self) -> None:
        """Say that the service is alive."""
        self._send("WATCHDOG=1")

    def _send(self, note: str) -> None:
        if self.address is None:
            return
        address = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as notes:
                notes.sendto(note.encode(errors="backslashreplace"), address)
        except OSError as exc:  # the service works without its manager's knowing
            _log.warning("service manager not notified", socket=self.address, note=note.partition("\n")[0], exc=exc)


def _watchdog_interval_s(environ: Mapping[str, str]) -> float | None:
    usec, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
    if not usec.isdecimal() or int(usec) == 0 or (pid and pid != str(os.getpid())):
        return None
    return int(usec) / 1_000_000


def _one_line(text: str) -> str:
    return " ".join(text.split())
