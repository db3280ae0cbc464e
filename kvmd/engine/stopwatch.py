"""Cuts a stream that is too slow to be alive."""

from __future__ import annotations

from kvmd.core.watch import SpeedWatch
from kvmd.errors import SourceStalledError
from kvmd.ports import Clock


class Stopwatch:
    """Counts the time that is spent waiting for a stream, and its bytes. ``url`` is redacted, for messages."""

    def __init__(self, url: str, stall_timeout_s: float, clock: Clock) -> None:
        self._url = url
        self._stall_timeout_s = stall_timeout_s
        self._clock = clock
        self._watch = SpeedWatch()
        self._asked = clock.monotonic()

    def heard(self, length: int) -> None:
        """Note bytes. Raises SourceStalledError where they came in a trickle."""
        self._watch = self._watch.heard(length, self._clock.monotonic() - self._asked)
        if self._watch.is_due(self._stall_timeout_s):
            if self._watch.is_too_slow:
                raise SourceStalledError(f"source {self._url}: {self._watch}; the connection was cut.")
            self._watch = SpeedWatch()

    def restart(self) -> None:
        """Wait again: what was done since the bytes came was not the stream's fault."""
        self._asked = self._clock.monotonic()
