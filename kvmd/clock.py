"""The real time and the real dice."""

from __future__ import annotations

import random
import time
from datetime import UTC, datetime


class SystemClock:
    """Implements the port ``Clock``."""

    def now(self) -> datetime:
        """Give the wall-clock time in UTC."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Give seconds that never jump."""
        return time.monotonic()

    def jitter(self) -> float:
        """Give a random number in 0..1."""
        return random.random()  # noqa: S311 - spreads load, guards nothing
