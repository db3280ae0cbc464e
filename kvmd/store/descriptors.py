"""Descriptors that are opened on a thread, and whoever waited for them may have gone away meanwhile."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any


async def opened(executor: Executor, work: Callable[..., int], *arguments: object) -> int:
    """Have work that opens a file done on a thread, and give the descriptor; cancelled, it is closed as soon as it is open."""
    opening = asyncio.get_running_loop().run_in_executor(executor, work, *arguments)
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        opening.add_done_callback(close_unwanted)
        raise


def close_unwanted(opening: asyncio.Future[Any]) -> None:
    """Close what was opened for nobody: the future's result is a descriptor, or None."""
    if not opening.cancelled() and opening.exception() is None and opening.result() is not None:
        os.close(opening.result())
