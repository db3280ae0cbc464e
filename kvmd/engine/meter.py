"""Counts what a download costs, and tells it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kvmd.core.gauge import Figures, Gauge, describe
from kvmd.core.mirrors import Mirror
from kvmd.ports import Clock, Source
from kvmwire.status import Progress


class Meter:
    """Figures of one download of ``size`` bytes (None: unknown), which goes on from ``start``."""

    def __init__(
        self, sources: Sequence[Source], size: int | None, start: int, *, clock: Clock, tell: Callable[[Progress], None]
    ) -> None:
        self.received = 0
        self._urls = [str(source.url) for source in sources]
        self._size = size
        self._start = start
        self._clock = clock
        self._tell = tell
        self._gauges: list[Gauge] = [Gauge(clock.monotonic()) for _ in sources]
        self._refetched = self._retries = self._connections = 0

    def connections(self, count: int) -> None:
        """Note how many streams run at once."""
        self._connections = max(self._connections, count)

    def came(self, length: int, *, fresh: int) -> None:
        """Note bytes that came, ``fresh`` of them for the first time."""
        self.received += fresh
        self._refetched += length - fresh

    def retried(self) -> None:
        """Note a request that failed."""
        self._retries += 1

    def tell(self, mirrors: Sequence[Mirror], *, done: int) -> None:
        """Announce where it stands: ``done`` bytes are stored."""
        now = self._clock.monotonic()
        self._gauges = [gauge.look(now, m.bytes) for gauge, m in zip(self._gauges, mirrors, strict=True)]
        figures = Figures(self._start, self._refetched, self._connections, self._retries)
        self._tell(describe(mirrors, self._urls, self._gauges, size=self._size, done=done, figures=figures))
