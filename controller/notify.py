"""Tell systemd how the service is (sd_notify(3)); without NOTIFY_SOCKET nothing is told to nobody."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping


class Notifier:
    """Sends to the socket that systemd named."""

    def __init__(self, address: str, *, watchdog_s: float | None) -> None:
        """Take the address as systemd writes it: a path, or ``@name`` for an abstract socket; empty for none."""
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self.watchdog_s = watchdog_s

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Notifier:
        """Read NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID."""
        is_ours = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        micros = environ.get("WATCHDOG_USEC", "")
        watchdog_s = int(micros) / 1e6 if is_ours and micros.isdecimal() else None
        return cls(environ.get("NOTIFY_SOCKET", ""), watchdog_s=watchdog_s)

    def ready(self, status: str) -> None:
        """Say that the service does its work."""
        self._send(f"READY=1\nSTATUS={status}")

    def status(self, status: str) -> None:
        """Say in a line how it is."""
        self._send(f"STATUS={status}")

    def watchdog(self) -> None:
        """Say that the loop has come round."""
        self._send("WATCHDOG=1")

    def stopping(self) -> None:
        """Say that it ends."""
        self._send("STOPPING=1")

    def _send(self, text: str) -> None:
        if not self._address:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as notify:
            try:
                notify.sendto(text.encode(), self._address)
            except OSError:
                return  # systemd is not listening, or busy; the next word will reach it
