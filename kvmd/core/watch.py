"""When a stream is too slow to be alive. Values in, values out."""

from __future__ import annotations

from dataclasses import dataclass

LOW_SPEED_BPS = 256
"""Slower than this over the stall timeout is as good as dead; eight streams share the thinnest link that is worth it."""


@dataclass(frozen=True, slots=True)
class SpeedWatch:
    """Bytes of one stream, and the seconds spent waiting for them: time that a disk or a rate limit took does not count."""

    received: int = 0
    waited_s: float = 0.0

    def heard(self, length: int, waited_s: float) -> SpeedWatch:
        """Note bytes, and how long they were waited for."""
        return SpeedWatch(self.received + length, self.waited_s + waited_s)

    def is_due(self, stall_timeout_s: float) -> bool:
        """Whether it was watched for long enough to be judged; judge it, and begin a new watch."""
        return self.waited_s >= stall_timeout_s

    @property
    def is_too_slow(self) -> bool:
        """Whether it is a trickle."""
        return self.received < LOW_SPEED_BPS * self.waited_s

    def __str__(self) -> str:
        return f"{self.received} bytes in {self.waited_s:.1f} s of waiting, less than {LOW_SPEED_BPS} a second"
