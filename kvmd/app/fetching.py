"""The engine alone: one session or one probe, without broker and journal."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path

from kvmd.app.parts import (
    converter_of,
    disk_threads,
    environment_of,
    images_of,
    inspector_of,
    keyring_of,
    limits_of,
    open_sources,
    policy_of,
)
from kvmd.clock import SystemClock
from kvmd.config import Settings
from kvmd.core.admission import check_policy
from kvmd.core.session import Started, State, Terms
from kvmd.engine.job import Job
from kvmd.engine.probing import Finding
from kvmd.engine.runner import Edges, Listener, Session
from kvmd.engine.shaping import Shaper
from kvmd.engine.supply import survey
from kvmd.errors import KvmdError
from kvmd.plugin import TlsFiles
from kvmd.ports import Access, Clock, Sweeper
from kvmd.store.directory import DirectoryStore
from kvmwire.digest import Digest
from kvmwire.images import ChecksumOf, ImageFormat
from kvmwire.source import SourceUrl

_KEPT = timedelta(days=30)
"""So long partial data stays after the last attempt, to go on from."""


@dataclass(frozen=True, slots=True)
class FetchRequest:
    """What a person typed after ``kvmd fetch``: all URLs are mirrors of one image. ``tls`` is for the origins of these URLs."""

    urls: Sequence[SourceUrl]
    folder: Path
    name: str
    checksum: Digest | None = None
    checksum_url: SourceUrl | None = None
    checksum_of: ChecksumOf = ChecksumOf.SERVED
    format: ImageFormat = ImageFormat.AUTO
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    tls: TlsFiles = TlsFiles()


async def fetch(request: FetchRequest, settings: Settings, listener: Listener) -> State:
    """Run one session without broker and journal, and give the state it ends in. Raises KvmdError."""
    check_policy(policy_of(settings.policy), digest=request.checksum, urls=request.urls)
    terms = Terms(
        volume=request.name,
        expected=request.checksum,
        format=request.format,
        sources=len(request.urls),
        images=images_of(settings.policy),
        is_of_content=request.checksum_of is ChecksumOf.CONTENT,
    )
    clock = SystemClock()
    with disk_threads(settings) as executor:
        environment = environment_of(settings, executor, typed=request.urls, tls=request.tls)
        async with open_sources(settings, environment) as sources:
            store = DirectoryStore("folder", request.folder, executor=executor)
            await _tidy(store, clock)
            edges = Edges(
                sources=sources,
                store=store,
                clock=clock,
                limits=limits_of(settings),
                shaper=Shaper(settings.transfer.rate_limit, clock),
                inspector=inspector_of(settings.inspector),
                converter=converter_of(settings.inspector),
                keyring=keyring_of(settings.policy, executor),
            )
            job = Job(
                session=uuid.uuid4().hex,
                terms=terms,
                urls=request.urls,
                access=Access(request.headers),
                checksum_url=request.checksum_url,
            )
            return await Session(job, edges, listener).run(Started())


async def _tidy(store: Sweeper, clock: Clock) -> None:
    """Delete what earlier attempts left long ago; here no daemon does. Not worth failing for."""
    oldest = clock.now() - _KEPT
    with suppress(KvmdError):
        for remnant in await store.remnants(unlocked_since=oldest):
            if remnant.modified < oldest and not remnant.is_active:
                await store.sweep(remnant)


async def probe(
    urls: Sequence[SourceUrl], settings: Settings, *, headers: Mapping[str, str], tls: TlsFiles
) -> list[Finding]:
    """Ask every URL what a host would see there."""
    policy = settings.policy
    check_policy(replace(policy_of(policy), require_checksum=False), digest=None, urls=urls)
    terms = Terms("", None, ImageFormat.AUTO, len(urls), images=images_of(policy))
    job = Job(session="", terms=terms, urls=urls, access=Access(headers))
    with disk_threads(settings) as executor:
        async with open_sources(settings, environment_of(settings, executor, typed=urls, tls=tls)) as sources:
            return await survey(job, sources, limits=limits_of(settings), clock=SystemClock())
