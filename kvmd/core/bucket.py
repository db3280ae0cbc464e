"""Rate limits as token buckets, with time as an argument."""

from __future__ import annotations

from dataclasses import dataclass, replace

BURST_SECONDS = 0.25
"""How much of a second's allowance may be spent at once."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """``level`` is the bytes that may go now; negative after more went. ``rate_bps`` 0 means no limit."""

    rate_bps: int
    level: float = 0.0
    filled_at: float = 0.0

    def take(self, length: int, now: float) -> tuple[Bucket, float]:
        """Take bytes that have already arrived, and give the seconds to pause before reading on."""
        if self.rate_bps <= 0:
            return self, 0.0
        gained = max(0.0, now - self.filled_at) * self.rate_bps
        level = min(self.rate_bps * BURST_SECONDS, self.level + gained) - length
        return replace(self, level=level, filled_at=now), max(0.0, -level / self.rate_bps)
