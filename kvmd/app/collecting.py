"""Garbage collection without the daemon: for a person at the host."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass

from kvmd.app.daemon import gc_policy_of, only_one
from kvmd.app.domains import open_domains
from kvmd.app.parts import disk_threads
from kvmd.app.pools import open_stores
from kvmd.clock import SystemClock
from kvmd.config import Settings
from kvmd.core.desired import HostRecord
from kvmd.daemon.collector import Collector
from kvmd.daemon.replicas import Replicas
from kvmd.daemon.surveyor import Surveyed, Surveyor
from kvmd.daemon.users import Users
from kvmd.errors import ConfigError
from kvmd.journal import SqliteJournal, read_record
from kvmd.ports import PoolStore


@dataclass(frozen=True, slots=True)
class _Looking:
    """What it takes to look at the pools."""

    stores: Mapping[str, PoolStore]
    users: Users
    surveyor: Surveyor


async def collect(settings: Settings, *, pools: Sequence[str] | None, is_dry_run: bool) -> Surveyed:
    """Look for garbage and delete it; nobody hears of it before the daemon starts. Raises ConfigError while the daemon runs.

    With ``is_dry_run`` nothing is written, so that the daemon may run.
    """
    if is_dry_run:
        record = await asyncio.to_thread(read_record, settings.state_dir)
        async with _looking(settings, record) as looking:
            return await looking.surveyor.survey(pools)
    with ExitStack() as alone:
        try:
            alone.enter_context(only_one(settings.state_dir))
        except ConfigError as exc:
            hint = f"{exc.hint} While the daemon runs ask it: kvmctl gc --host {settings.host}; or look with --dry-run."
            raise ConfigError(exc.message, hint=hint) from exc
        return await _collect(settings, pools)


async def _collect(settings: Settings, pools: Sequence[str] | None) -> Surveyed:
    journal = await SqliteJournal.open(settings.state_dir)
    try:
        record = await journal.load()
        async with _looking(settings, record) as looking:
            collector = Collector(
                record,
                looking.surveyor,
                stores=looking.stores,
                users=looking.users,
                replicas=Replicas(record, journal, say=lambda _: None),
                clock=SystemClock(),
            )
            return await collector.collect(pools)
    finally:
        await journal.close()


@asynccontextmanager
async def _looking(settings: Settings, record: HostRecord) -> AsyncGenerator[_Looking]:
    with disk_threads(settings) as executor:
        async with open_stores(settings, executor) as stores, open_domains(settings, executor) as domains:
            users, policy = Users(record, stores, domains), gc_policy_of(settings.maintenance)
            surveyor = Surveyor(record, policy, stores=stores, users=users, clock=SystemClock())
            yield _Looking(stores, users, surveyor)
