"""Reads what is ready again while it lies at rest, one volume after the other, and slowly: disks rot, and people write to files."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta

from kvmd.core.desired import HostRecord, Replica, ReplicaKey
from kvmd.core.placement import Placement
from kvmd.core.scrubbing import next_scrub, scrubbed, unreadable
from kvmd.daemon.replicas import Replicas
from kvmd.errors import KvmdError, StoreIoError
from kvmd.log import get_logger
from kvmd.ports import Clock, Keeper

log = get_logger(__name__)

_LOOK_EVERY_S = 300.0
_RETRY = timedelta(minutes=15)
"""A volume that cannot be read is tried again after so long."""


@dataclass(frozen=True, slots=True)
class ScrubRules:
    """``rate`` is bytes a second, 0: no limit. ``every`` is how often each replica is read unasked; None: never."""

    rate: int
    every: timedelta | None = None


class Scrubber:
    """One loop. What was asked for stands in the journal; a volume that was half read is begun anew after a restart."""

    def __init__(
        self,
        record: HostRecord,
        rules: ScrubRules,
        *,
        keepers: Mapping[str, Keeper],
        replicas: Replicas,
        clock: Clock,
    ) -> None:
        self._record = record
        self._rules = rules
        self._keepers = keepers
        self._replicas = replicas
        self._clock = clock
        self._not_before: dict[ReplicaKey, datetime] = {}
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """Look again whether there is something to read."""
        self._wake.set()

    async def run(self) -> None:
        """Scrub for ever."""
        while True:
            self._wake.clear()
            replica = next_scrub(
                self._record, now=self._clock.now(), every=self._rules.every, not_before=self._not_before
            )
            if replica is None or replica.placement is None:
                await self._rest()
                continue
            try:
                await self._scrub(replica, replica.placement)
            except KvmdError as exc:
                log.error("what a scrub found could not be journaled", volume=replica.placement.path, exc=exc)
                self._not_before[replica.key] = self._clock.now() + _RETRY

    async def _rest(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(_LOOK_EVERY_S):
                await self._wake.wait()

    async def _scrub(self, replica: Replica, placement: Placement) -> None:
        """Read one volume. Its result counts for nothing where a session has touched the replica in between.

        Raises KvmdError where the journal fails.
        """
        key, wish = replica.key, self._record.desired.get(replica.key)
        self._not_before.pop(key, None)
        if key.pool not in self._keepers:
            self._not_before[key] = self._clock.now() + _RETRY
            return
        log.info("scrub", volume=placement.path, size=placement.size)
        try:
            found = await self._keepers[key.pool].reread(placement, rate=self._rules.rate)
        except KvmdError as exc:
            log.error("volume at rest could not be read again", volume=placement.path, exc=exc)
            self._not_before[key] = self._clock.now() + _RETRY
            if not isinstance(exc, StoreIoError):
                return
            after = unreadable(replica, exc, now=self._clock.now())
        else:
            after = scrubbed(replica, placement, found, scrubs=wish.scrubs if wish else 0, now=self._clock.now())
        await self._replicas.amend(replica, after)
