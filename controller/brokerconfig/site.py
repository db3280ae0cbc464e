"""Where a broker listens and where its files lie: what a configuration names beside the identities. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

from controller.errors import UsageError

_LAST_PORT = 65535
_LISTEN = re.compile(r"(?P<address>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):(?P<port>[0-9]{1,5})")


@dataclass(frozen=True, slots=True)
class Listener:
    """A TCP address and port; an IPv6 address stands without brackets."""

    address: str = "0.0.0.0"  # noqa: S104 - a broker is there for the network, and refuses whoever has no certificate
    port: int = 8883

    @classmethod
    def parse(cls, text: str) -> Listener:
        """Read ``address:port`` or ``[IPv6 address]:port``. Raises UsageError."""
        match = _LISTEN.fullmatch(text)
        if match is None or not 0 < int(match["port"]) <= _LAST_PORT:
            raise UsageError(
                f"broker-config: --listen {text[:80]!a}: expected ADDRESS:PORT, such as 0.0.0.0:8883 or [::]:8883.",
                hint="Correct --listen.",
            )
        return cls(match["address"].strip("[]"), int(match["port"]))

    def __str__(self) -> str:
        """Write it as ``parse`` reads it."""
        address = f"[{self.address}]" if ":" in self.address else self.address
        return f"{address}:{self.port}"


@dataclass(frozen=True, slots=True)
class Site:
    """The machine of a broker: ``ca`` signed the clients' certificates, ``cert`` and ``key`` are the broker's own.

    All paths are of that machine: the files need not be on this one.
    """

    ca: PurePosixPath
    cert: PurePosixPath
    key: PurePosixPath
    listener: Listener = Listener()

    def __post_init__(self) -> None:
        """Raise UsageError for a path that a line of a configuration cannot hold."""
        for path in (self.ca, self.cert, self.key):
            check_path(path)


def check_path(path: PurePosixPath) -> None:
    """Raise UsageError for a path that is not absolute or that a line of a configuration cannot hold."""
    text = str(path)
    if not path.is_absolute() or not text.isprintable() or '"' in text or "\\" in text or text != text.strip():
        raise UsageError(
            f"broker-config: {text[:200]!a}: expected an absolute path on the broker's machine, without quotes, "
            "backslashes, line breaks or spaces at its ends; nothing was written.",
            hint="Give the path where the broker finds the file.",
        )
