"""Where an image can be had from: the event's sources, and those that Metalinks and Link headers add."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace

from kvmd.core.entity import Entity
from kvmd.core.manifest import Manifest, merged
from kvmd.core.metalink import Selector, is_metalink, parse
from kvmd.core.mirrors import choose_entity
from kvmd.core.ranges import ByteRange
from kvmd.core.retry import is_retryable, server_pause_s
from kvmd.engine.documents import read_document
from kvmd.engine.job import Job, Limits
from kvmd.engine.probing import Finding, Wish, probe_all, probe_until_usable
from kvmd.errors import ContentError, KvmdError, MetalinkInvalidError, SourceError
from kvmd.log import get_logger
from kvmd.ports import Clock, Head, Source, Sources
from kvmwire.source import SourceUrl

log = get_logger(__name__)

PROBE_GRACE_S = 1.0
"""How long slow mirrors may keep a download from starting once one has answered."""
_PROBE_TRIES = 3
"""So often a source is probed in one attempt while it fails in a way that may pass."""
_PATIENCE_S = 30.0
"""A longer pause that a source asks for is not spent inside of an attempt."""


class Supply:
    """The sources of one job, and what each of them said. ``findings`` are None where there is no answer yet.

    ``manifest`` is what documents and headers tell of the image. Mirrors that they name get none of the event's headers, and name no
    further mirrors.
    """

    def __init__(self, job: Job, sources: Sources, *, limits: Limits, clock: Clock) -> None:
        self.sources: list[Source] = [_opened(sources, url, job.headers) for url in job.urls]
        self.findings: list[Finding | None] = [None] * len(self.sources)
        self.manifest = Manifest()
        self._job = job
        self._opener = sources
        self._limits = limits
        self._clock = clock

    @property
    def wish(self) -> Wish:
        """What a source must serve to be used."""
        job, limits = self._job, self._limits
        size = job.size if job.size is not None else self.manifest.size
        return Wish(job.terms.format, size, limits.max_size, limits.max_virtual_size, job.terms.expected)

    @property
    def entity(self) -> Entity | None:
        """The entity to fetch; None where no source has the image."""
        return choose_entity([f.entity if f is not None else None for f in self.findings], size=self.wish.size)

    async def inquire(self) -> None:
        """Ask until one source can be used or none ever can; errors are among the findings. Raises ContentError."""
        await self._ask_patiently(range(len(self.sources)))
        added = await self._follow()
        if added:
            await self._ask_patiently(added)

    async def inquire_all(self) -> list[Finding]:
        """Ask every source once, and give what all of them said: of a Metalink, then of its mirrors."""
        self.findings = [*await probe_all(self.sources, self.wish, self._clock)]
        added = await self._follow()
        found = await probe_all([self.sources[index] for index in added], self.wish, self._clock)
        return [*filter(None, self.findings), *found]

    @property
    def asked_pause_s(self) -> float:
        """The shortest pause that a source asked for, 0 where one that may recover asked for none."""
        errors = [f.error for f in self.findings if f is not None]
        pauses = [
            error.retry_after_s for error in errors if isinstance(error, SourceError) and is_retryable(error.code)
        ]
        return min(pauses, default=0.0)

    async def _ask_patiently(self, indices: Sequence[int]) -> None:
        """Probe these sources at once; while nothing can be used, ask those again whose failure may pass."""
        todo, clock = list(indices), self._clock
        for tries in range(_PROBE_TRIES):
            asked = [self.sources[i] for i in todo]
            found = await probe_until_usable(asked, self.wish, clock, grace_s=PROBE_GRACE_S)
            for index, finding in zip(todo, found, strict=True):
                self.findings[index] = finding
            todo = [i for i in indices if (f := self.findings[i]) and f.error and is_retryable(f.error.code)]
            pause_s = server_pause_s(self.asked_pause_s, failures=tries, jitter=clock.jitter())
            is_last = not todo or tries == _PROBE_TRIES - 1 or pause_s > _PATIENCE_S
            if is_last or self.entity is not None or any(f is not None and f.is_document for f in self.findings):
                return
            await asyncio.sleep(pause_s)

    async def _follow(self) -> list[int]:
        """Read what the answers and the documents tell, add the mirrors that they name, and give the indices of these."""
        told = [f.head.manifest for f in self.findings if f is not None and f.head is not None and f.error is None]
        for index, finding in enumerate(self.findings):
            if finding is not None and finding.is_document and finding.error is None:
                try:
                    told.insert(0, await self._read(self.sources[index], finding))
                except (SourceError, ContentError) as exc:
                    self.findings[index] = replace(finding, error=exc)
        told += await self._described()
        self.manifest = merged(told)
        return self._add([mirror.url for mirror in self.manifest.mirrors])

    async def _described(self) -> list[Manifest]:
        """Read the Metalinks that answers point to; one that cannot be had is no loss."""
        found, manifests = list[SourceUrl](), list[Manifest]()
        for finding in self.findings:
            if finding is not None and finding.head is not None and finding.error is None:
                found += finding.head.described_by
        for url in dict.fromkeys(found):
            try:
                source = self._opener.open(url, {})
                manifests.append(await self._read(source, None))
            except KvmdError as exc:
                log.info("description not used", source=url, code=exc.code, message=exc.message)
        return manifests

    async def _read(self, source: Source, finding: Finding | None) -> Manifest:
        document = await read_document(source, finding.head if finding else None)
        selector = Selector(self._job.terms.expected, self._job.size, self._job.terms.volume)
        manifest = await asyncio.to_thread(parse, document, source.url, selector=selector, schemes=self._limits.schemes)
        if self._job.size is not None and manifest.size not in {None, self._job.size}:
            raise MetalinkInvalidError(
                f"metalink {source.url}: the event promises {self._job.size} bytes, the document {manifest.size}; refused."
            )
        return manifest

    def _add(self, urls: Sequence[SourceUrl]) -> list[int]:
        """Open sources for those URLs that are not among the sources yet; one that may not be used says so."""
        known, first = {source.url.raw for source in self.sources}, len(self.sources)
        for url in urls:
            if url.raw in known or is_metalink(url, ""):
                continue
            self.sources.append(_opened(self._opener, url, {}))
            self.findings.append(None)
        return list(range(first, len(self.sources)))


class _Refused:
    """A source that may not be opened: it says why when it is asked."""

    def __init__(self, url: SourceUrl, error: SourceError) -> None:
        self.url = url
        self._error = error

    async def probe(self) -> Head:
        raise self._error

    def read(
        self, wanted: ByteRange | None, entity: Entity, *, block: int
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes | memoryview]]:
        del wanted, entity, block
        raise self._error


def _opened(sources: Sources, url: SourceUrl, headers: Mapping[str, str]) -> Source:
    try:
        return sources.open(url, headers)
    except SourceError as exc:
        return _Refused(url, exc)


async def survey(job: Job, sources: Sources, *, limits: Limits, clock: Clock) -> list[Finding]:
    """Tell what a host would find at each source. Errors are part of the answer."""
    return await Supply(job, sources, limits=limits, clock=clock).inquire_all()
