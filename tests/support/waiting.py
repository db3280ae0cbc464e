"""Waiting for a condition with a deadline: the only place of the tests that sleeps."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar, overload

T = TypeVar("T")

_STEP_S = 0.005


class NotInTimeError(AssertionError):
    """A condition did not become true before its deadline."""

    def __init__(self, what: str, timeout_s: float, last: object) -> None:
        super().__init__(f"{what}: not within {timeout_s:g} s; last saw {last!r}")


@overload
async def eventually(predicate: Callable[[], Awaitable[T]], *, timeout_s: float = ..., what: str = ...) -> T: ...
@overload
async def eventually(predicate: Callable[[], T], *, timeout_s: float = ..., what: str = ...) -> T: ...
async def eventually(predicate: Callable[[], object], *, timeout_s: float = 10, what: str = "condition") -> object:
    """Return the first true value of the predicate (plain or async), polled in small steps."""
    deadline = time.monotonic() + timeout_s
    while True:
        outcome = predicate()
        last = await outcome if inspect.isawaitable(outcome) else outcome
        if last:
            return last
        if time.monotonic() >= deadline:
            raise NotInTimeError(what, timeout_s, last)
        await asyncio.sleep(_STEP_S)


def eventually_blocking(predicate: Callable[[], T], *, timeout_s: float = 10, what: str = "condition") -> T:
    """Return the first true value of the predicate; for tests without an event loop."""
    deadline = time.monotonic() + timeout_s
    while not (last := predicate()):
        if time.monotonic() >= deadline:
            raise NotInTimeError(what, timeout_s, last)
        time.sleep(_STEP_S)
    return last
