"""The foreign module ``libvirt``: an optional extra, loaded where it is needed, silenced, and with its event loop running."""

from __future__ import annotations

import threading
from functools import cache
from types import ModuleType

from kvmd.errors import ConfigError
from kvmd.log import get_logger

log = get_logger(__name__)

INSTALL = "Install it: apt install libvirt-dev pkg-config gcc python3-dev, then pip install 'kvmd[libvirt]', into kvmd's own Python."


@cache
def load_libvirt() -> ModuleType:
    """Import libvirt-python. Raises ConfigError that says what to install. May take tens of milliseconds the first time.

    libvirt's own handler would print every error to stderr, also those that are expected. Its event loop answers and sends
    keepalive messages: without it a connection to a libvirtd that hangs would never be noticed.
    """
    try:
        import libvirt  # noqa: PLC0415 - an optional extra
    except ImportError as exc:
        raise ConfigError(
            f"a pool of type libvirt, or a virtual machine, needs the Python package libvirt-python: {exc}.",
            hint=INSTALL,
        ) from exc
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    libvirt.virEventRegisterDefaultImpl()
    threading.Thread(target=_run_events, args=(libvirt,), name="kvmd-libvirt-events", daemon=True).start()
    return libvirt


def _run_events(libvirt: ModuleType) -> None:
    try:
        while True:
            libvirt.virEventRunDefaultImpl()
    except libvirt.libvirtError as exc:
        log.error("libvirt's event loop ended: a libvirtd that hangs is noticed by time limits alone", exc=exc)
