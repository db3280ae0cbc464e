"""Free TCP ports on loopback that stay free until the test takes them."""

from __future__ import annotations

import random
import socket

# Below Linux's ephemeral range (32768-60999): no outgoing connection can take a port
# between its choice and its use, nor while a server is down before it restarts on it.
_FIRST, _LAST = 20_000, 32_000
_ATTEMPTS = 200

_choice = random.SystemRandom()


def free_port() -> int:
    """Return a TCP port nobody listens on; not one of the ephemeral range."""
    for _ in range(_ATTEMPTS):
        port = _choice.randint(_FIRST, _LAST)
        if _is_free(port):
            return port
    raise RuntimeError(f"no free TCP port between {_FIRST} and {_LAST} in {_ATTEMPTS} attempts")


def _is_free(port: int) -> bool:
    with socket.socket() as candidate:
        candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            candidate.bind(("", port))
        except OSError:
            return False
    return True


def accepts(port: int) -> bool:
    """Tell whether something on loopback accepts connections at this port now."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
