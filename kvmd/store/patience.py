"""Patience with a libvirtd that is being restarted."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from kvmd.errors import HypervisorUnreachableError

PATIENCE_S = 30.0
"""A commit waits so long for a libvirtd that is away; longer, and the replica waits and tries again."""
_PAUSE_S = 0.25
T = TypeVar("T")


async def patiently(ask: Callable[[], Awaitable[T]]) -> T:
    """Ask until libvirt answers. What is asked must do no harm when it is asked twice. Raises HypervisorUnreachableError."""
    loop = asyncio.get_running_loop()
    until = loop.time() + PATIENCE_S
    while True:
        try:
            return await ask()
        except HypervisorUnreachableError:
            if loop.time() >= until:
                raise
        await asyncio.sleep(_PAUSE_S)
