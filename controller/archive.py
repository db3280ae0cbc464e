"""The registry's calls for the event loop: each on the registry's own thread, one after the other."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from controller.registry import Registry

T = TypeVar("T")


class Archive:
    """``await archive.call(lambda registry: registry.store(...))``; made by ``open_archive``."""

    def __init__(self, registry: Registry, executor: ThreadPoolExecutor) -> None:
        self._registry = registry
        self._executor = executor

    async def call(self, work: Callable[[Registry], T]) -> T:
        """Run one piece of work on the registry's thread."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, work, self._registry)


@contextlib.asynccontextmanager
async def open_archive(state_dir: Path) -> AsyncGenerator[Archive, None]:
    """Give the archive and close its file at the end."""
    registry = Registry(state_dir)
    executor = ThreadPoolExecutor(1, thread_name_prefix="registry")
    archive = Archive(registry, executor)
    try:
        yield archive
    finally:
        await asyncio.shield(archive.call(Registry.close))
        executor.shutdown(wait=False)  # nothing is left to wait for, and waiting would hold up the loop
