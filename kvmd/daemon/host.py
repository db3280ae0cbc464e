"""Runs the parts of the daemon together, and stops them in the right order."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from kvmd.core.desired import HostRecord
from kvmd.core.tally import Tally
from kvmd.daemon.announcer import Announcer
from kvmd.daemon.caretaker import Caretaker
from kvmd.daemon.credentials import Credentials
from kvmd.daemon.inbox import Inbox
from kvmd.daemon.machines import Machines
from kvmd.daemon.prober import Prober
from kvmd.daemon.reconciler import Reconciler
from kvmd.daemon.scrubber import Scrubber
from kvmd.log import get_logger
from kvmd.notify import Notifier
from kvmd.ports import Bus, Clock
from kvmwire.status import ReplicaState

log = get_logger(__name__)

DRAIN_S = 7.0
"""Sessions get so long to sync and journal what they have; with flush and farewell it stays below 10 seconds."""
FLUSH_S = 1.0
FAREWELL_S = 1.5
POOLS_EVERY_S = 30.0
HEARD_EVERY_S = 5.0
_IDLE_PASS_S = 10.0


@dataclass(frozen=True, slots=True)
class Daemon:
    """The parts, made by the composition root; ``on_change`` has all of them look again what is to be done."""

    record: HostRecord
    tally: Tally
    bus: Bus
    inbox: Inbox
    credentials: Credentials
    announcer: Announcer
    prober: Prober
    reconciler: Reconciler
    scrubber: Scrubber
    caretaker: Caretaker
    notifier: Notifier
    clock: Clock
    on_change: Callable[[], None]
    machines: Machines | None = None

    async def run(self, stopped: asyncio.Event) -> None:
        """Serve until ``stopped``, then drain: sessions keep what they have, statuses are sent, the broker hears a goodbye."""
        interval_s = self.notifier.watchdog_interval_s
        pass_s = min(_IDLE_PASS_S, interval_s / 3) if interval_s else _IDLE_PASS_S
        async with asyncio.TaskGroup() as group:
            bus = group.create_task(self.bus.run(inbox=self.inbox.receive, greet=self.announcer.greet))
            work = [
                group.create_task(self.reconciler.run(beat=self._beat, at_least_every_s=pass_s)),
                group.create_task(self.prober.run()),
                group.create_task(self.scrubber.run()),
                group.create_task(self.caretaker.run()),
                group.create_task(self._watch_pools()),
                group.create_task(self._watch_broker()),
                *([group.create_task(self.machines.run())] if self.machines is not None else []),
            ]
            self.notifier.ready(self._summary())
            log.info("ready")
            await stopped.wait()
            self.notifier.stopping()
            log.info("stopping: downloads are kept and go on after the next start")
            for task in work:
                task.cancel()
            await asyncio.wait(work, timeout=DRAIN_S)
            with suppress(TimeoutError):
                async with asyncio.timeout(FLUSH_S):
                    await self.bus.flush()
            while not bus.done():  # a connection lost in the very moment hides the cancellation from the bus
                bus.cancel()
                await asyncio.wait([bus], timeout=FAREWELL_S)

    def _beat(self) -> None:
        """Feed the watchdog: called after a finished pass of the reconciler, so a loop that hangs starves it."""
        self.notifier.watchdog()
        self.notifier.status(self._summary())

    async def _watch_pools(self) -> None:
        while True:
            await asyncio.sleep(POOLS_EVERY_S)
            await self.announcer.refresh_pools()
            if self.credentials.restore(self.clock.now()):
                self.on_change()
            self.announcer.review_credentials()

    async def _watch_broker(self) -> None:
        while True:
            await asyncio.sleep(HEARD_EVERY_S)
            if self.bus.is_connected:
                self.announcer.check_heard()

    def _summary(self) -> str:
        counts = Counter(replica.status.state for replica in self.record.replicas.values())
        running = sum(count for state, count in counts.items() if state.is_running)
        broker = "connected" if self.bus.is_connected else "not connected"
        waiting = counts[ReplicaState.QUEUED] + counts[ReplicaState.WAITING]
        settled = f"{counts[ReplicaState.READY]} ready, {counts[ReplicaState.FAILED]} failed"
        return f"broker {broker}; {settled}, {running} running, {waiting} waiting"
