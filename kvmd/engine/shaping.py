"""Rate limits in force: the pure buckets, held where several streams share them."""

from __future__ import annotations

import asyncio

from kvmd.core.bucket import Bucket
from kvmd.ports import Clock


class Shaper:
    """One limit, shared by every stream that awaits it. A rate of 0 never waits."""

    def __init__(self, rate_bps: int, clock: Clock) -> None:
        self._bucket = Bucket(rate_bps)
        self._clock = clock

    @property
    def rate_bps(self) -> int:
        """Bytes a second, 0: no limit."""
        return self._bucket.rate_bps

    async def spend(self, length: int) -> None:
        """Pay for bytes that arrived; returns when more may be read."""
        self._bucket, pause_s = self._bucket.take(length, self._clock.monotonic())
        if pause_s > 0:
            await asyncio.sleep(pause_s)
