"""The composition root: the only place that constructs edges and ties them to the engine."""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from kvmd.clock import SystemClock
from kvmd.config import PolicySettings, Settings
from kvmd.core.addresses import AddressPolicy
from kvmd.core.admission import Policy, check_policy
from kvmd.core.session import Started, State, Terms
from kvmd.engine.job import Job, Limits
from kvmd.engine.probing import Finding, Wish, probe_all
from kvmd.engine.runner import Edges, Listener, Session
from kvmd.engine.shaping import Shaper
from kvmd.fetch.connections import Connections, HttpSettings, TlsFiles
from kvmd.fetch.http import HttpSources
from kvmd.store.directory import DirectoryStore
from kvmwire.digest import Digest
from kvmwire.events import ImageFormat
from kvmwire.source import Origin, SourceUrl

_EVERYWHERE = AddressPolicy((), ())


@dataclass(frozen=True, slots=True)
class FetchRequest:
    """What a person typed after ``kvmd fetch``: all URLs are mirrors of one image. ``tls`` is for the origins of these URLs."""

    urls: Sequence[SourceUrl]
    folder: Path
    name: str
    checksum: Digest | None = None
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
        max_virtual_size=settings.policy.max_virtual_size,
    )
    clock = SystemClock()
    with disk_threads(settings) as executor:
        async with typed_sources(settings, request.urls, request.tls) as sources:
            edges = Edges(
                sources=sources,
                store=DirectoryStore("folder", request.folder, executor=executor),
                clock=clock,
                limits=limits_of(settings),
                shaper=Shaper(settings.transfer.rate_limit, clock),
            )
            job = Job(session=uuid.uuid4().hex, terms=terms, urls=request.urls, headers=request.headers)
            return await Session(job, edges, listener).run(Started())


async def probe(
    urls: Sequence[SourceUrl], settings: Settings, *, headers: Mapping[str, str], tls: TlsFiles
) -> list[Finding]:
    """Ask every URL what a host would see there."""
    check_policy(policy_of(settings.policy), digest=None, urls=urls)
    wish = Wish(max_size=settings.policy.max_size, max_virtual_size=settings.policy.max_virtual_size)
    async with typed_sources(settings, urls, tls) as sources:
        return await probe_all([sources.open(url, headers) for url in urls], wish, SystemClock())


@asynccontextmanager
async def typed_sources(
    settings: Settings, urls: Sequence[SourceUrl], tls: TlsFiles
) -> AsyncGenerator[HttpSources, None]:
    """Give sources that may reach any address for the URLs a person typed, and only allowed ones wherever these redirect to."""
    files: dict[Origin, TlsFiles] = {url.origin: tls for url in urls}
    typed = Connections(http_settings(settings, addresses=_EVERYWHERE, tls=files))
    sources = HttpSources(Connections(http_settings(settings)), typed=typed)
    try:
        yield sources
    finally:
        await sources.close()


def http_settings(
    settings: Settings, *, addresses: AddressPolicy | None = None, tls: Mapping[Origin, TlsFiles] | None = None
) -> HttpSettings:
    """Give how connections are made under these settings."""
    policy = settings.policy
    return HttpSettings(
        addresses=addresses or AddressPolicy(policy.allowed_networks, policy.denied_networks),
        allow_http=policy.allow_http,
        connect_timeout_s=settings.transfer.connect_timeout_s,
        stall_timeout_s=settings.transfer.stall_timeout_s,
        tls=tls or {},
    )


def limits_of(settings: Settings) -> Limits:
    """Give the limits of one session."""
    transfer = settings.transfer
    return Limits(
        connections=transfer.connections,
        connections_per_source=transfer.connections_per_source,
        stall_timeout_s=transfer.stall_timeout_s,
        max_size=settings.policy.max_size,
        max_virtual_size=settings.policy.max_virtual_size,
    )


def policy_of(policy: PolicySettings) -> Policy:
    """Give the rules that need no look at the source."""
    return Policy(
        require_checksum=policy.require_checksum,
        weak_checksums=policy.weak_checksums,
        protocols=policy.allowed_protocols,
    )


def disk_threads(settings: Settings) -> ThreadPoolExecutor:
    """Give the threads that files are written, synced and hashed on: sessions wait for a disk, not for each other."""
    workers = min(32, settings.transfer.sessions * 2 + (os.cpu_count() or 1) + 2)
    return ThreadPoolExecutor(max_workers=workers, thread_name_prefix="kvmd-disk")
