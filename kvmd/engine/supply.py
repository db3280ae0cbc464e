"""Where an image can be had from: the event's sources, and those that Metalinks and Link headers add."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import replace

from kvmd.core.compression import Compression
from kvmd.core.digests import conflict
from kvmd.core.entity import Entity
from kvmd.core.manifest import Manifest, merged, preferred
from kvmd.core.metalink import MAX_MIRRORS, Selector, is_metalink, parse
from kvmd.core.mirrors import choose_entity
from kvmd.core.ranges import ByteRange
from kvmd.core.retry import is_retryable, server_pause_s
from kvmd.engine.documents import read_document
from kvmd.engine.job import Job, Limits
from kvmd.engine.probing import Finding, Wish, probe_all, probe_until_usable
from kvmd.errors import ChecksumConflictError, ContentError, KvmdError, MetalinkInvalidError, SourceError
from kvmd.log import get_logger
from kvmd.ports import Access, Clock, Head, Source, Sources
from kvmwire.digest import Digest
from kvmwire.source import SourceUrl

log = get_logger(__name__)

PROBE_GRACE_S = 1.0
"""How long slow mirrors may keep a download from starting once one has answered."""
_PROBE_TRIES = 3
"""So often a source is probed in one attempt while it fails in a way that may pass."""
_PATIENCE_S = 30.0
"""A longer pause that a source asks for is not spent inside of an attempt."""
DESCRIPTIONS_S = 5.0
"""How long the Metalinks that answers point to may keep a download from starting."""
_MAX_DESCRIPTIONS = 4


class Supply:
    """The sources of one job, and what each of them said. ``findings`` are None where there is no answer yet.

    A Metalink that was read is no source any more: its mirrors are. ``manifest`` is what documents and headers tell of the image.
    Mirrors that they name get none of the event's headers, its credentials where these cover them, and name no further mirrors.
    """

    def __init__(self, job: Job, sources: Sources, *, limits: Limits, clock: Clock) -> None:
        self.sources: list[Source] = [_opened(sources, url, job.access) for url in job.urls]
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
        return Wish(
            job.terms.format,
            size,
            limits.max_size,
            job.terms.served,
            job.terms.images,
            limits.decompress,
        )

    @property
    def entity(self) -> Entity | None:
        """The entity to fetch; None where no source has the image."""
        return choose_entity([f.entity if f is not None else None for f in self.findings], size=self.wish.size)

    @property
    def image(self) -> SourceUrl:
        """The URL of the first source that has the image. Raises StopIteration where none has: see ``entity``."""
        chosen = self.entity
        return next(f.url for f in self.findings if f is not None and f.entity is not None and f.entity == chosen)

    @property
    def compression(self) -> Compression | None:
        """How what is fetched is compressed; None where it is not, or is stored as it is served."""
        chosen = self.entity
        fits = (f for f in self.findings if f is not None and f.entity is not None and f.entity == chosen)
        return next((f.compression for f in fits), None)

    async def inquire(self) -> None:
        """Ask until one source can be used or none ever can; errors are among the findings. Raises ContentError."""
        await self._ask_patiently(range(len(self.sources)))
        added = await self._follow(list(self.findings))
        if added:
            await self._ask_patiently(added)
        late = [index for index, finding in enumerate(self.findings) if finding is None]
        if late and self.entity is None:
            # Nobody waited for these, because a document had answered; nothing that it names can be used.
            await self._ask_patiently(late)

    async def inquire_all(self) -> list[Finding]:
        """Ask every source once, and give what all of them said: first the job's, then those that were added."""
        self.findings = [*await probe_all(self.sources, self.wish, self._clock)]
        asked = list(self.findings)
        added = await self._follow(asked)
        found = await probe_all([self.sources[index] for index in added], self.wish, self._clock)
        for index, finding in zip(added, found, strict=True):
            self.findings[index] = finding
        return [*map(self._judged, filter(None, asked)), *found]

    def _judged(self, finding: Finding) -> Finding:
        """Blame a Metalink where there is nothing that can be used."""
        if finding.error is not None or not finding.is_document or self.entity is not None:
            return finding
        return replace(finding, error=MetalinkInvalidError(f"metalink {finding.url}: none of its mirrors can be used."))

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
            is_document = any((f := self.findings[i]) is not None and f.is_document for i in indices)
            if is_last or self.entity is not None or is_document:
                return
            await asyncio.sleep(pause_s)

    async def _follow(self, asked: list[Finding | None]) -> list[int]:
        """Read what the documents and the answers tell, add the mirrors that they name, and give the indices of these.

        ``asked`` are the findings; the error of a document that cannot be used is put there. What the server of an image tells beside
        its bytes is a courtesy, which counts less than a document.
        """
        documents = await self._documents(asked)
        self._drop([index for index, f in enumerate(asked) if f is not None and f.is_document and f.error is None])
        answers = [f for f in self.findings if f is not None and f.entity is not None]
        told = [*await self._described(answers), *(f.head.manifest for f in answers if f.head is not None)]
        self.manifest = preferred(merged(documents), merged(map(self._strong, told)))
        return self._add([mirror.url for mirror in self.manifest.mirrors])

    async def _documents(self, asked: list[Finding | None]) -> list[Manifest]:
        """Read the Metalinks among the sources; one that contradicts the event or an earlier one is refused."""
        manifests = list[Manifest]()
        for index, finding in enumerate(asked):
            if finding is None or not finding.is_document or finding.error is not None:
                continue
            try:
                manifest = await self._read(self.sources[index], finding.head)
                self._check(finding.url, manifest, [digest for one in manifests for digest in one.digests])
            except (SourceError, ContentError) as exc:
                asked[index] = self.findings[index] = replace(finding, error=exc)
            else:
                manifests.append(manifest)
        return manifests

    async def _described(self, answers: Sequence[Finding]) -> list[Manifest]:
        """Read the Metalinks that answers point to; one that cannot be had, or contradicts them, is no loss."""
        found = dict[str, tuple[SourceUrl, Finding]]()
        for answer in answers:
            for url in answer.head.described_by if answer.head is not None else ():
                found.setdefault(url.raw, (url, answer))
        manifests = list[Manifest]()
        with suppress(TimeoutError):
            async with asyncio.timeout(DESCRIPTIONS_S):
                for url, finding in list(found.values())[:_MAX_DESCRIPTIONS]:
                    try:
                        manifest = await self._read(self._opener.open(url, self._job.access.elsewhere), None)
                        self._check(url, manifest, [], size=finding.entity.size if finding.entity else None)
                    except KvmdError as exc:
                        log.info("description not used", source=url, code=exc.code, message=exc.message)
                    else:
                        manifests.append(manifest)
        return manifests

    async def _read(self, source: Source, head: Head | None) -> Manifest:
        document = await read_document(source, head)
        selector = Selector(self._job.terms.served, self._job.size, self._job.terms.volume)
        return await asyncio.to_thread(parse, document, source.url, selector=selector, schemes=self._limits.schemes)

    def _check(
        self, document: SourceUrl, manifest: Manifest, known: Sequence[Digest], *, size: int | None = None
    ) -> None:
        """Raise the error for what contradicts the event, digests that other documents told, or the size of what is served."""
        expected, size = self._job.terms.served, self._job.size if self._job.size is not None else size
        for one in (*((expected,) if expected else ()), *known):
            other = conflict(one, manifest.digests)
            if other is not None:
                raise ChecksumConflictError(
                    f"metalink {document}: it says {other}, {'the event' if one == expected else 'another one'} says {one}; not used.",
                    hint="Find out which of them is right, then correct the event or the document.",
                )
        if size is not None and manifest.size not in {None, size}:
            raise MetalinkInvalidError(
                f"metalink {document}: {size} bytes are promised, the document says {manifest.size}; not used."
            )

    def _strong(self, manifest: Manifest) -> Manifest:
        """Give it without weak digests where they are not accepted: as a courtesy they are no reason to refuse the image."""
        if self._limits.weak_checksums:
            return manifest
        return replace(manifest, digests=tuple(one for one in manifest.digests if not one.algorithm.is_weak))

    def _drop(self, indices: Sequence[int]) -> None:
        """Forget sources."""
        self.sources = [source for index, source in enumerate(self.sources) if index not in indices]
        self.findings = [finding for index, finding in enumerate(self.findings) if index not in indices]

    def _add(self, urls: Sequence[SourceUrl]) -> list[int]:
        """Open sources for those URLs that are not among the sources yet; one that may not be used says so."""
        known, first = {source.url.raw for source in self.sources}, len(self.sources)
        for url in [url for url in urls if url.raw not in known and not is_metalink(url, "")][:MAX_MIRRORS]:
            self.sources.append(_opened(self._opener, url, self._job.access.elsewhere))
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


def _opened(sources: Sources, url: SourceUrl, access: Access) -> Source:
    try:
        return sources.open(url, access)
    except SourceError as exc:
        return _Refused(url, exc)


async def survey(job: Job, sources: Sources, *, limits: Limits, clock: Clock) -> list[Finding]:
    """Tell what a host would find at each source. Errors are part of the answer."""
    return await Supply(job, sources, limits=limits, clock=clock).inquire_all()
