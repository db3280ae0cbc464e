"""Run something beside a body of code, and let a failure of either be seen as itself."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Coroutine
from typing import cast


@contextlib.asynccontextmanager
async def beside(*works: Coroutine[object, object, object]) -> AsyncGenerator[None, None]:
    """Run the works until the body ends. A work that fails cancels the body; the first failure is raised, ungrouped."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work) for work in works]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
    except BaseExceptionGroup as failures:
        first = _first(failures)
        raise first from first.__cause__


def _first(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    first = failures.exceptions[0]
    if isinstance(first, BaseExceptionGroup):
        return _first(cast("BaseExceptionGroup[BaseException]", first))
    return first
