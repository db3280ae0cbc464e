"""Figures of a running download: rates that people can read, and the time that is left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from kvmd.core.mirrors import Mirror
from kvmwire.status import Progress, SourceProgress, SourceState

_WEIGHT = 0.4
"""Share of the newest second in the shown rate."""


@dataclass(frozen=True, slots=True)
class Gauge:
    """Bytes seen at the last look, and the smoothed rate since."""

    at: float
    seen: int = 0
    rate_bps: float = 0.0

    def look(self, now: float, total: int) -> Gauge:
        """Measure since the last look."""
        elapsed = now - self.at
        if elapsed <= 0:
            return self
        newest = max(0, total - self.seen) / elapsed
        rate = newest if not self.rate_bps else self.rate_bps + _WEIGHT * (newest - self.rate_bps)
        return replace(self, at=now, seen=total, rate_bps=rate)


@dataclass(frozen=True, slots=True)
class Figures:
    """What an attempt cost: bytes it went on from, bytes that came twice, most connections at once, requests that failed."""

    resumed_from: int = 0
    refetched: int = 0
    connections: int = 0
    retries: int = 0


def describe(
    mirrors: Sequence[Mirror],
    urls: Sequence[str],
    gauges: Sequence[Gauge],
    *,
    size: int | None,
    done: int,
    figures: Figures,
) -> Progress:
    """Build what is announced; ``urls`` are redacted, ``done`` bytes are stored."""
    rate = sum(gauge.rate_bps for gauge in gauges)
    left = None if size is None else size - done
    return Progress(
        size=size,
        done=done,
        bytes_per_second=int(rate),
        eta_seconds=round(left / rate, 1) if left is not None and rate > 0 else None,
        resumed_from=figures.resumed_from,
        refetched=figures.refetched,
        connections=figures.connections,
        retries=figures.retries,
        sources=tuple(
            SourceProgress(
                url=url,
                bytes=mirror.bytes,
                bytes_per_second=max(0, int(gauge.rate_bps)),
                state=_state(mirror),
                code=mirror.last_failure.code if mirror.last_failure else None,
                message=mirror.last_failure.message if mirror.last_failure else "",
            )
            for mirror, url, gauge in zip(mirrors, urls, gauges, strict=True)
        ),
    )


def _state(mirror: Mirror) -> SourceState:
    if mirror.is_banned:
        return SourceState.BANNED
    if mirror.active:
        return SourceState.ACTIVE
    return SourceState.WAITING if mirror.failures else SourceState.STANDBY
