"""The composition root: the only place that constructs edges and ties them to the engine."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import ssl
import uuid
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from kvmd.bus import BrokerSettings, MqttBus
from kvmd.clock import SystemClock
from kvmd.config import MqttSettings, PolicySettings, Settings
from kvmd.core.addresses import AddressPolicy
from kvmd.core.admission import Policy, check_policy
from kvmd.core.desired import HostRecord
from kvmd.core.session import Started, State, Terms
from kvmd.daemon.announcer import Announcer, Identity, offline
from kvmd.daemon.host import Daemon
from kvmd.daemon.inbox import Inbox
from kvmd.daemon.prober import Prober
from kvmd.daemon.reconciler import Reconciler
from kvmd.daemon.rules import Rules
from kvmd.engine.job import Job, Limits
from kvmd.engine.probing import Finding, Wish, probe_all
from kvmd.engine.runner import Edges, Listener, Session
from kvmd.engine.shaping import Shaper
from kvmd.errors import ConfigError, InternalError, KvmdError, leaves
from kvmd.fetch.protocols import Protocols, load_plugins
from kvmd.journal import SqliteJournal
from kvmd.log import get_logger
from kvmd.notify import Notifier
from kvmd.plugin import Environment, TlsFiles
from kvmd.ports import Sources
from kvmd.store.directory import DirectoryStore
from kvmwire.digest import Digest
from kvmwire.events import ImageFormat
from kvmwire.source import SourceUrl
from kvmwire.topics import Topics

log = get_logger(__name__)


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
        environment = environment_of(settings, executor, typed=request.urls, tls=request.tls)
        async with open_sources(settings, environment) as sources:
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
    with disk_threads(settings) as executor:
        async with open_sources(settings, environment_of(settings, executor, typed=urls, tls=tls)) as sources:
            return await probe_all([sources.open(url, headers) for url in urls], wish, SystemClock())


async def run(settings: Settings, environ: Mapping[str, str]) -> int:
    """Run the daemon until SIGTERM or SIGINT, and give its exit code. Raises KvmdError where it cannot start."""
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    with _only_one(settings.state_dir), disk_threads(settings) as executor:
        journal = await SqliteJournal.open(settings.state_dir)
        try:
            async with open_sources(settings, environment_of(settings, executor)) as sources:
                daemon = build_daemon(
                    settings, await journal.load(), journal, sources, executor, Notifier.from_environ(environ)
                )
                await daemon.run(stopped)
        except BaseExceptionGroup as group:
            raise _ended_by(group) from group
        finally:
            await journal.close()
    return 0


def _ended_by(group: BaseExceptionGroup[BaseException]) -> KvmdError:
    """Give the error that ended the daemon, to be told in a line; one that nobody foresaw goes to the log with all it has."""
    errors = leaves(group)
    for error in errors:
        if isinstance(error, KvmdError):
            return error
    log.unexpected("the daemon ends", errors[0])
    return InternalError(f"the daemon ended by {type(errors[0]).__name__}: {errors[0]}; what is downloaded is kept.")


def build_daemon(
    settings: Settings,
    record: HostRecord,
    journal: SqliteJournal,
    sources: Sources,
    executor: ThreadPoolExecutor,
    notifier: Notifier,
) -> Daemon:
    """Tie one host's parts together; what several hosts in one process may share is given."""
    clock, topics = SystemClock(), Topics(settings.mqtt.prefix)
    stores = {
        name: DirectoryStore(name, pool.path, executor=executor, is_sparse=pool.sparse)
        for name, pool in settings.pools.items()
    }
    identity = Identity(settings.host, settings.labels, settings.policy.allowed_protocols, started=clock.now())
    bus = MqttBus(broker_settings(settings, identity, topics), clock)
    announcer = Announcer(identity, record, bus=bus, journal=journal, stores=stores)
    rules = Rules(settings.transfer.sessions, limits_of(settings), policy_of(settings.policy))
    reconciler = Reconciler(
        record,
        rules,
        sources=sources,
        stores=stores,
        journal=journal,
        announcer=announcer,
        clock=clock,
        shaper=Shaper(settings.transfer.rate_limit, clock),
    )
    prober = Prober(
        settings.host, record, sources=sources, rules=rules, journal=journal, announcer=announcer, clock=clock
    )

    def on_change() -> None:
        reconciler.wake()
        prober.wake()

    inbox = Inbox(
        identity, record, topics=topics, journal=journal, announcer=announcer, clock=clock, on_change=on_change
    )
    return Daemon(record, bus, inbox, announcer, prober, reconciler, notifier)


def broker_settings(settings: Settings, identity: Identity, topics: Topics) -> BrokerSettings:
    """Give how the broker is reached. Raises ConfigError where a file that is named cannot be used."""
    mqtt = settings.mqtt
    return BrokerSettings(
        host=mqtt.address.host,
        port=mqtt.address.port,
        identifier=f"kvmd-{settings.host}",
        topics=topics,
        filters=topics.event_filters(settings.host),
        will=offline(identity),
        tls=_broker_tls(mqtt) if mqtt.address.tls else None,
        username=mqtt.username,
        password=mqtt.read_password(),
        version=mqtt.version,
    )


def _broker_tls(mqtt: MqttSettings) -> ssl.SSLContext:
    try:
        return TlsFiles(str(mqtt.ca or ""), str(mqtt.cert or ""), str(mqtt.key or "")).context()
    except OSError as exc:
        raise ConfigError(
            f"mqtt.ca, mqtt.cert or mqtt.key cannot be used: {exc.strerror or exc}.",
            hint="`kvmd config --check` tells which file and why.",
        ) from exc


@contextmanager
def _only_one(folder: Path) -> Generator[None]:
    """Hold the state folder: two daemons on one journal would undo each other's work. Raises ConfigError."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        raise ConfigError(
            f"state_dir {folder} cannot be used: {exc.strerror}.", hint="Create it, or give the daemon the right to."
        ) from exc
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise ConfigError(
                f"state_dir {folder} is in use by another kvmd.",
                hint="Stop it, or give this one a state_dir of its own.",
            ) from exc
        yield
    finally:
        os.close(fd)


def environment_of(
    settings: Settings,
    executor: Executor,
    *,
    typed: Sequence[SourceUrl] = (),
    tls: TlsFiles | None = None,
) -> Environment:
    """Give what protocols work with under these settings: any address is dialled for the origins of URLs a person typed."""
    policy, transfer = settings.policy, settings.transfer
    origins = frozenset(url.origin for url in typed)
    return Environment(
        addresses=AddressPolicy(policy.allowed_networks, policy.denied_networks),
        executor=executor,
        typed=origins,
        allow_http=policy.allow_http,
        connect_timeout_s=transfer.connect_timeout_s,
        stall_timeout_s=transfer.stall_timeout_s,
        tls={} if tls is None else dict.fromkeys(origins, tls),
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
