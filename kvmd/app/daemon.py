"""The daemon of a host, tied together."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import ssl
from collections.abc import Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path

from kvmd.app.domains import open_domains
from kvmd.app.machines import open_hypervisor
from kvmd.app.parts import (
    converter_of,
    disk_threads,
    environment_of,
    inspector_of,
    keyring_of,
    limits_of,
    open_sources,
    policy_of,
)
from kvmd.app.pools import open_stores, shared_of
from kvmd.bus import BrokerSettings, MqttBus
from kvmd.clock import SystemClock
from kvmd.config import MaintenanceSettings, MqttSettings, Settings
from kvmd.config.trusting import read_sealing_key, read_trust_list
from kvmd.core.desired import HostRecord
from kvmd.core.garbage import GcPolicy
from kvmd.core.tally import Tally
from kvmd.daemon.announcer import Announcer, Identity, offline
from kvmd.daemon.caretaker import Caretaker, GcRules
from kvmd.daemon.collector import Collector
from kvmd.daemon.credentials import Credentials, Identification
from kvmd.daemon.host import Daemon
from kvmd.daemon.inbox import Inbox, Reactions
from kvmd.daemon.machines import MachineRules, Machines
from kvmd.daemon.prober import Prober
from kvmd.daemon.reconciler import Reconciler
from kvmd.daemon.replicas import Replicas
from kvmd.daemon.rules import Rules
from kvmd.daemon.scrubber import Scrubber, ScrubRules
from kvmd.daemon.surveyor import Surveyor
from kvmd.daemon.users import Users
from kvmd.engine.shaping import Shaper
from kvmd.errors import ConfigError, InternalError, KvmdError, leaves
from kvmd.journal import SqliteJournal
from kvmd.log import get_logger
from kvmd.notify import Notifier
from kvmd.plugin import TlsFiles
from kvmd.ports import Clock, Domains, Hypervisor, PoolStore, Sources
from kvmd.vault import Vault
from kvmwire.topics import HostTopic, Topics
from kvmwire.trust import TrustList, keyid_of

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Outside:
    """Edges that are opened before the daemon and closed after it."""

    sources: Sources
    stores: Mapping[str, PoolStore]
    hypervisor: Hypervisor | None
    domains: Domains


async def run(settings: Settings, environ: Mapping[str, str]) -> int:
    """Run the daemon until SIGTERM or SIGINT, and give its exit code. Raises KvmdError where it cannot start."""
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    with only_one(settings.state_dir), disk_threads(settings) as executor:
        journal, vault = await SqliteJournal.open(settings.state_dir), Vault()
        try:
            async with (
                open_sources(settings, environment_of(settings, executor, credentials=vault)) as sources,
                open_stores(settings, executor) as stores,
                open_hypervisor(settings.machines, executor) as hypervisor,
                open_domains(settings, executor) as domains,
            ):
                daemon = build_daemon(
                    settings,
                    await journal.load(),
                    journal,
                    Outside(sources, stores, hypervisor, domains),
                    vault,
                    executor,
                    Notifier.from_environ(environ),
                )
                async with _metrics_of(daemon, settings):
                    await daemon.run(stopped)
        except BaseExceptionGroup as group:
            raise _ended_by(group) from group
        finally:
            await journal.close()
    return 0


def _metrics_of(daemon: Daemon, settings: Settings) -> AbstractAsyncContextManager[None]:
    """Serve the daemon's metrics where the settings say so."""
    address = settings.metrics.address
    if address is None:
        return nullcontext()
    from kvmd.metrics import serving  # noqa: PLC0415 - loads prometheus_client and aiohttp.web, which most hosts do not need

    return serving(address, daemon.record, tally=daemon.tally, bus=daemon.bus)


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
    outside: Outside,
    vault: Vault,
    executor: ThreadPoolExecutor,
    notifier: Notifier,
) -> Daemon:
    """Tie one host's parts together; what several hosts in one process may share is given."""
    clock, topics = SystemClock(), Topics(settings.mqtt.prefix)
    identification = identification_of(settings)
    identity = identity_of(settings, identification, outside, clock)
    tally = Tally()
    bus = MqttBus(broker_settings(settings, identity, topics), clock, on_refused=tally.refused)
    credentials = Credentials(settings.host, record, identification=identification, vault=vault, on_trust=bus.replay)
    credentials.restore(clock.now())
    announcer = Announcer(identity, record, bus=bus, journal=journal, stores=outside.stores, tally=tally, clock=clock)
    rules = rules_of(settings, vault, executor, clock, outside.stores)
    users = Users(record, outside.stores, outside.domains)
    replicas = Replicas(record, journal, say=announcer.replica)
    reconciler = Reconciler(
        record,
        rules,
        sources=outside.sources,
        stores=outside.stores,
        users=users,
        replicas=replicas,
        announcer=announcer,
        clock=clock,
    )
    scrub_rules = scrub_rules_of(settings.maintenance)
    scrubber = Scrubber(record, scrub_rules, keepers=outside.stores, replicas=replicas, clock=clock)
    maintenance = settings.maintenance
    surveyor = Surveyor(record, gc_policy_of(maintenance), stores=outside.stores, users=users, clock=clock)
    collector = Collector(record, surveyor, stores=outside.stores, users=users, replicas=replicas, clock=clock)
    caretaker = Caretaker(
        settings.host,
        surveyor,
        collector,
        gc_rules_of(maintenance),
        pools=lambda: announcer.pools,
        say=announcer.gc,
        clock=clock,
    )
    prober = Prober(
        settings.host, record, sources=outside.sources, rules=rules, journal=journal, announcer=announcer, clock=clock
    )
    machines: Machines | None = None
    if outside.hypervisor is not None:
        choices = MachineRules(settings.machines.network, settings.machines.stop_timeout_s)
        machines = Machines(
            record,
            outside.hypervisor,
            rules=choices,
            journal=journal,
            announcer=announcer,
            clock=clock,
            on_use=partial(replicas.used, clock=clock),
        )
    followers = (scrubber, caretaker, *((machines,) if machines is not None else ()))
    replicas.listeners.extend(one.wake for one in followers)

    def on_change() -> None:
        for part in (reconciler, prober, *followers):
            part.wake()

    inbox = Inbox(
        identity,
        record,
        topics=topics,
        journal=journal,
        announcer=announcer,
        clock=clock,
        credentials=credentials,
        reactions=Reactions(on_change, on_gc=caretaker.ask),
    )
    return Daemon(
        record,
        tally,
        bus,
        inbox,
        credentials,
        announcer,
        prober,
        reconciler,
        scrubber,
        caretaker,
        notifier,
        clock,
        on_change,
        machines,
    )


def identity_of(settings: Settings, identification: Identification, outside: Outside, clock: Clock) -> Identity:
    """Give who this host is."""
    sealing_key = identification.sealing_key
    return Identity(
        settings.host,
        settings.labels,
        settings.policy.allowed_protocols,
        started=clock.now(),
        sealing_key=keyid_of(sealing_key.public_key().public_bytes_raw()) if sealing_key else None,
        has_machines=outside.hypervisor is not None,
    )


def rules_of(
    settings: Settings, vault: Vault, executor: ThreadPoolExecutor, clock: Clock, stores: Mapping[str, PoolStore]
) -> Rules:
    """Give what sessions and probes keep to."""
    return Rules(
        settings.transfer.sessions,
        limits_of(settings),
        policy_of(settings.policy),
        inspector_of(settings.inspector),
        converter_of(settings.inspector),
        vault,
        Shaper(settings.transfer.rate_limit, clock),
        keyring=keyring_of(settings.policy, executor),
        shared=shared_of(settings, stores),
        raw_pools=frozenset(name for name, pool in settings.pools.items() if pool.format == "raw"),
    )


def scrub_rules_of(maintenance: MaintenanceSettings) -> ScrubRules:
    """Give how volumes at rest are read again."""
    days = maintenance.scrub_every_d
    return ScrubRules(maintenance.scrub_rate, timedelta(days=days) if days else None)


def gc_policy_of(maintenance: MaintenanceSettings) -> GcPolicy:
    """Give what is garbage."""
    return GcPolicy(
        staging_ttl=timedelta(days=maintenance.staging_ttl_d),
        keep_generations=maintenance.keep_generations,
        unused=timedelta(days=maintenance.unused_d) if maintenance.unused_d else None,
        low_space=maintenance.low_space,
    )


def gc_rules_of(maintenance: MaintenanceSettings) -> GcRules:
    """Give when garbage is looked for."""
    days = maintenance.gc_every_d
    return GcRules(timedelta(days=days) if days else None, maintenance.low_space)


def identification_of(settings: Settings) -> Identification:
    """Read what the host was enrolled with. Raises ConfigError."""
    trust = settings.trust
    return Identification(
        requires_signature=settings.policy.require_signature,
        trust=read_trust_list(trust.keys) if trust.keys is not None else TrustList(),
        sealing_key=read_sealing_key(trust.sealing_key) if trust.sealing_key is not None else None,
    )


def broker_settings(settings: Settings, identity: Identity, topics: Topics) -> BrokerSettings:
    """Give how the broker is reached. Raises ConfigError where a file that is named cannot be used."""
    mqtt = settings.mqtt
    return BrokerSettings(
        host=mqtt.address.host,
        port=mqtt.address.port,
        identifier=f"kvmd-{settings.host.replace('.', ':')}",  # nats-server refuses ids with dots; names have no colons
        topics=topics,
        filters=topics.event_filters(settings.host),
        own_status=topics.build(HostTopic(settings.host)),
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
def only_one(folder: Path) -> Generator[None]:
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
