"""Looks at everything in the pools, and tells what goes and why the rest stays; changes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kvmd.core.desired import HostRecord
from kvmd.core.garbage import GcPolicy, Item, PoolContents, in_question, survey
from kvmd.daemon.users import Users
from kvmd.errors import KvmdError, PoolMissingError
from kvmd.log import get_logger
from kvmd.ports import Clock, PoolStore
from kvmwire.status import PoolState

log = get_logger(__name__)

_LOOK_S = 60.0
"""So long a pool gets to tell what lies in it."""


@dataclass(frozen=True, slots=True)
class Surveyed:
    """What becomes of everything; ``skipped`` are pools that could not be looked into, with why."""

    items: tuple[Item, ...]
    skipped: Mapping[str, str]


class Surveyor:
    """Asks the stores, and who uses what may go; ``core.garbage`` decides."""

    def __init__(
        self, record: HostRecord, policy: GcPolicy, *, stores: Mapping[str, PoolStore], users: Users, clock: Clock
    ) -> None:
        self._record = record
        self._policy = policy
        self._stores = stores
        self._users = users
        self._clock = clock

    async def survey(self, pools: Sequence[str] | None = None) -> Surveyed:
        """Look through these pools, or all."""
        contents, skipped = dict[str, PoolContents](), dict[str, str]()
        for name, store in self._stores.items():
            if pools is not None and name not in pools:
                continue
            try:
                contents[name] = await self._contents(name, store)
            except KvmdError as exc:
                skipped[name] = exc.message
        now = self._clock.now()
        users = await self._asked(in_question(self._record, contents, policy=self._policy, now=now))
        return Surveyed(survey(self._record, contents, policy=self._policy, users=users, now=now), skipped)

    async def _contents(self, name: str, store: PoolStore) -> PoolContents:
        limit = asyncio.timeout(_LOOK_S)
        try:
            async with limit:
                remnants = await store.remnants(unlocked_since=self._clock.now() - self._policy.staging_ttl)
                status = await store.status()
        except TimeoutError as exc:
            if not limit.expired():
                raise
            raise PoolMissingError(f"pool {name} did not answer within {_LOOK_S:g} s.") from exc
        if status.state is not PoolState.ACTIVE:
            raise PoolMissingError(f"pool {name} is {status.state.value}.")
        return PoolContents(tuple(remnants), status.available)

    async def _asked(self, paths: Sequence[str]) -> Mapping[str, Sequence[str]]:
        users = dict[str, Sequence[str]]()
        for path in paths:
            try:
                users[path] = await self._users.of(path)
            except KvmdError as exc:  # who cannot be asked about one volume cannot be asked about the others
                log.warning("nobody could be asked who uses volumes: they stay", volume=path, exc=exc)
                break
        return users
