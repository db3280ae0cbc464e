"""Waiting for hosts: shows them, ends when all are settled, when the time is up, or when the person leaves."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Generator, Sequence

from controller.outcome import Phase, Standing
from controller.output import Output
from controller.publish import Sent
from controller.screen import open_screen
from controller.session import Session
from kvmwire.status import Receipt


@contextlib.contextmanager
def detaching(output: Output, how_to_watch: str) -> Generator[None]:
    """Tell a person who leaves, from the first event that may be out to the last word of the hosts, that it goes on."""
    try:
        yield
    except asyncio.CancelledError:
        output.say(f"Detached; what was published goes on by itself. Watch it with: {how_to_watch}")
        raise


async def wait_settled(
    session: Session,
    output: Output,
    *,
    standings: Callable[[], Sequence[Standing]],
    timeout_s: float | None,
    how_to_watch: str,
) -> Sequence[Standing]:
    """Give the standings when all hosts are settled, or when the time is up."""
    with open_screen(output) as screen:

        def is_settled() -> bool:
            now = standings()
            screen.update(now)
            return all(one.is_settled for one in now)

        _name_missing(output, standings(), timeout_s)
        try:
            async with asyncio.timeout(timeout_s):
                await session.until(is_settled)
        except TimeoutError:
            pending = ", ".join(f"{one.host} ({one.state})" for one in standings() if not one.is_settled)
            output.say(f"not done in time: {pending}. It goes on by itself; watch it with: {how_to_watch}")
    return standings()


async def wait_answered(session: Session, sent: Sequence[Sent], *, timeout_s: float) -> dict[str, Receipt]:
    """Give the answers by host when every host that listens has answered, or when the time is up."""

    def found() -> dict[str, Receipt]:
        return {host: receipt for one in sent for host, receipt in session.receipts.get(one.event.id, {}).items()}

    def is_complete() -> bool:
        answered = found()
        asked = (host for one in sent for host in one.hosts)
        return all(host in answered for host in asked if session.fleet.is_online(host))

    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await session.until(is_complete)
    return found()


def _name_missing(output: Output, standings: Sequence[Standing], timeout_s: float | None) -> None:
    missing = [one.host for one in standings if one.phase is Phase.MISSING]
    if missing:
        limit = "Press Ctrl-C to leave" if timeout_s is None else f"Waiting at most {timeout_s:g} s"
        output.say(f"not listening now: {', '.join(missing)}; they get the event when they come. {limit}.")
