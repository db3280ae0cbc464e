"""Where each source of a download stands at its start: what it serves, or why it is not used."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from kvmd.core.entity import Entity
from kvmd.core.mirrors import Mirror, serves_same
from kvmd.engine.job import Limits
from kvmd.engine.probing import Finding
from kvmd.engine.supply import Supply
from kvmd.errors import (
    ChecksumMismatchError,
    EntityChangedError,
    KvmdError,
    MetalinkInvalidError,
    ProtocolError,
    RangeMismatchError,
    SourceError,
)
from kvmd.ports import Clock
from kvmwire.source import SourceUrl


@dataclass(frozen=True, slots=True)
class Lineup:
    """Turns findings into mirrors. ``has_checksum`` tells that a digest will prove the whole."""

    supply: Supply
    limits: Limits
    clock: Clock
    has_checksum: bool

    def mirrors(self, chosen: Entity | None) -> list[Mirror]:
        """Give a mirror for every source; those that cannot serve this entity (None: there is none) are banned and say why."""
        return [self._mirror(index, chosen) for index in range(len(self.supply.sources))]

    def alone(self, chosen: Entity, proven_wrong: Collection[str]) -> list[Mirror] | None:
        """Let only one take part, because the mix of all was wrong; None where all were tried: ``proven_wrong`` are their URLs."""
        mirrors = self.mirrors(chosen)
        urls = [source.url for source in self.supply.sources]
        able = [i for i, mirror in enumerate(mirrors) if not mirror.is_banned and urls[i].raw not in proven_wrong]
        if not able:
            return None
        alone = min(able, key=lambda i: (mirrors[i].entity is None, i))
        return [
            mirror if i == alone or mirror.is_banned else mirror.banned(_aside(urls[i], proven_wrong).failure)
            for i, mirror in enumerate(mirrors)
        ]

    def _mirror(self, index: int, chosen: Entity | None) -> Mirror:
        finding, most = self.supply.findings[index], self.limits.connections_per_source
        mirror = Mirror(order=index, limit=most, most=most)
        if finding is None:
            return mirror
        error = finding.error
        if error is not None:
            return mirror.failed(
                error.failure,
                now=self.clock.monotonic(),
                jitter=self.clock.jitter(),
                retry_after_s=error.retry_after_s if isinstance(error, SourceError) else 0.0,
                is_throttle=isinstance(error, SourceError) and error.is_throttle,
            )
        unfit = self._unfit(finding, chosen)
        if unfit is not None:
            return mirror.banned(unfit.failure)
        return Mirror(order=index, limit=most, most=most, entity=finding.entity)

    def _unfit(self, finding: Finding, chosen: Entity | None) -> KvmdError | None:
        """Say why a source that answered cannot take part."""
        url, entity = finding.url, finding.entity
        if finding.is_document:
            return MetalinkInvalidError(f"metalink {url}: another Metalink names it; not followed.")
        if entity is None or chosen is None:
            return ProtocolError(f"source {url}: no source serves the promised size.")
        if entity != chosen and not serves_same(entity, chosen, has_checksum=self.has_checksum):
            return EntityChangedError(
                f"source {url}: it serves {entity.size} bytes, the chosen file has {chosen.size}, or cannot be shown to be the same; "
                "not used."
            )
        if entity.has_ranges != chosen.has_ranges:
            return RangeMismatchError(f"source {url}: it does not serve ranges, others do; not used.")
        return None


def _aside(url: SourceUrl, proven_wrong: Collection[str]) -> KvmdError:
    if url.raw in proven_wrong:
        return ChecksumMismatchError(f"source {url}: what it serves has a wrong checksum; not used.")
    return ChecksumMismatchError(f"source {url}: set aside, because the mix of all sources had a wrong checksum.")
