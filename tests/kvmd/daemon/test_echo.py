"""The echo of a host's own status: told when it is missing, and never when it only came before the acknowledgement."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from kvmd.clock import SystemClock
from kvmd.core.tally import Tally
from kvmd.daemon.announcer import ECHO_TIMEOUT_S, Announcer, Identity
from kvmd.journal import SqliteJournal
from kvmd.ports import Delivery, Message
from tests.kvmd.daemon.harness import HOST


class LateClock(SystemClock):
    """Runs ahead by what the test says."""

    ahead_s = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.ahead_s


@dataclass
class Outbox:
    """A bus that keeps what is posted."""

    posted: list[Message] = field(default_factory=list)
    is_connected: bool = True

    def post(self, message: Message) -> None:
        self.posted.append(message)

    def replay(self) -> None:
        pass

    async def flush(self) -> None:
        pass

    async def run(self, *, inbox: Callable[[Delivery], Awaitable[None]], greet: Callable[[], Awaitable[None]]) -> None:
        pass


@pytest.fixture
async def journal(tmp_path: Path) -> AsyncIterator[SqliteJournal]:
    one = await SqliteJournal.open(tmp_path)
    yield one
    await one.close()


@pytest.mark.parametrize(("order", "alarms"), [(("echo", "sent"), 0), (("sent", "echo"), 0), (("sent",), 1)])
async def test_the_alarm_is_for_what_never_came_back(
    journal: SqliteJournal, order: tuple[str, ...], alarms: int
) -> None:
    clock, bus, refused = LateClock(), Outbox(), Tally()
    identity = Identity(HOST, {}, (), started=clock.now())
    announcer = Announcer(
        identity, await journal.load(), bus=bus, journal=journal, stores={}, tally=refused, clock=clock
    )
    await announcer.announce()
    (said,) = bus.posted
    for step in order:
        if step == "echo":
            announcer.heard(Delivery(said.topic, said.payload, is_retained=False, is_redelivery=False))
        else:
            assert said.on_sent is not None
            await said.on_sent()
    clock.ahead_s = ECHO_TIMEOUT_S + 1
    announcer.check_heard()

    assert sum(refused.refusals.values()) == alarms
