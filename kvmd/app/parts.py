"""What the daemon and the commands are both built from: the settings, turned into what the engine and the edges take."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import asynccontextmanager

from kvmd.config import InspectorSettings, PolicySettings, Settings
from kvmd.core.addresses import AddressPolicy
from kvmd.core.admission import Policy
from kvmd.core.image import ImagePolicy
from kvmd.engine.job import Limits
from kvmd.fetch.gpg import GpgKeyring
from kvmd.fetch.protocols import Protocols, load_plugins
from kvmd.plugin import Environment, TlsFiles
from kvmd.ports import Credentials
from kvmd.sandbox.client import QemuConverter, QemuInspector
from kvmd.vault import Vault
from kvmwire.source import SourceUrl


def environment_of(
    settings: Settings,
    executor: Executor,
    *,
    typed: Sequence[SourceUrl] = (),
    tls: TlsFiles | None = None,
    credentials: Credentials | None = None,
) -> Environment:
    """Give what protocols work with under these settings: any address and port is dialled for origins of URLs a person typed."""
    policy, transfer = settings.policy, settings.transfer
    origins = frozenset(url.origin for url in typed)
    return Environment(
        addresses=AddressPolicy(policy.allowed_networks, policy.denied_networks),
        executor=executor,
        schemes=frozenset(policy.allowed_protocols),
        typed=origins,
        denied_ports=frozenset(policy.denied_ports),
        allow_http=policy.allow_http,
        connect_timeout_s=transfer.connect_timeout_s,
        stall_timeout_s=transfer.stall_timeout_s,
        tls={} if tls in {None, TlsFiles()} else dict.fromkeys(origins, tls or TlsFiles()),
        credentials=credentials or Vault(),
        proxies={SourceUrl.parse(origin).origin: proxy for origin, proxy in transfer.proxies.items()},
        folders=policy.allowed_folders,
    )


@asynccontextmanager
async def open_sources(settings: Settings, environment: Environment) -> AsyncGenerator[Protocols]:
    """Give the sources of all protocols, and close them in the end."""
    plugins = await asyncio.to_thread(load_plugins, settings.policy.allowed_protocols)
    sources = Protocols(plugins, environment, settings.protocols)
    try:
        yield sources
    finally:
        await sources.close()


def limits_of(settings: Settings) -> Limits:
    """Give the limits of one session."""
    transfer = settings.transfer
    return Limits(
        connections=transfer.connections,
        connections_per_source=transfer.connections_per_source,
        stall_timeout_s=transfer.stall_timeout_s,
        max_size=settings.policy.max_size,
        schemes=settings.policy.allowed_protocols,
        weak_checksums=settings.policy.weak_checksums,
        require_checksum=settings.policy.require_checksum,
        discovers_checksums=settings.policy.discover_checksums,
        images=images_of(settings.policy),
        decompress=settings.policy.decompress,
        max_ratio=settings.policy.max_compression_ratio,
    )


def images_of(policy: PolicySettings) -> ImagePolicy:
    """Give what the host accepts of images."""
    return ImagePolicy(
        allow_encrypted=policy.allow_encrypted,
        allow_dirty=policy.allow_dirty,
        allow_snapshots=policy.allow_snapshots,
        max_virtual_size=policy.max_virtual_size,
    )


def keyring_of(policy: PolicySettings, executor: Executor) -> GpgKeyring | None:
    """Give the keys that may sign checksum files; None where the settings name none."""
    return GpgKeyring(policy.keyring, executor) if policy.keyring is not None else None


def inspector_of(settings: InspectorSettings) -> QemuInspector:
    """Give what looks at whole images."""
    return QemuInspector(
        settings.socket, timeout_s=settings.timeout_s, memory=settings.memory, is_required=settings.required
    )


def converter_of(settings: InspectorSettings) -> QemuConverter:
    """Give what makes raw images of others."""
    return QemuConverter(settings.socket, timeout_s=settings.timeout_s, memory=settings.memory)


def policy_of(policy: PolicySettings) -> Policy:
    """Give the rules that need no look at the source."""
    return Policy(
        require_checksum=policy.require_checksum,
        can_discover=policy.discover_checksums and policy.keyring is not None,
        weak_checksums=policy.weak_checksums,
        protocols=policy.allowed_protocols,
    )


def disk_threads(settings: Settings) -> ThreadPoolExecutor:
    """Give the threads that files are written, synced and hashed on: sessions wait for a disk, not for each other."""
    workers = min(32, settings.transfer.sessions * 2 + (os.cpu_count() or 1) + 2)
    return ThreadPoolExecutor(max_workers=workers, thread_name_prefix="kvmd-disk")
