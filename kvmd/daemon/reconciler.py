"""Makes the desired state true: starts, stops and repeats sessions until nothing is left to do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta

from kvmd.core.admission import check_policy
from kvmd.core.agenda import agenda, names_of, outlives_its_template
from kvmd.core.desired import Desired, HostRecord, Replica, ReplicaKey
from kvmd.core.retry import ATTEMPT_CAP_S, backoff_s
from kvmd.core.session import Started, State, Waiting
from kvmd.daemon.announcer import Announcer
from kvmd.daemon.jobs import Assignment, assignment, put_off, queued, replica_of
from kvmd.daemon.replicas import Replicas
from kvmd.daemon.rules import JOURNAL_PAUSE_S, Rules, check_credentials
from kvmd.daemon.turns import TURN_S, waiting_turn
from kvmd.daemon.users import Users
from kvmd.engine.runner import Edges, Listener, Session
from kvmd.errors import (
    CredentialMissingError,
    InternalError,
    InUseError,
    KvmdError,
    PoolMissingError,
    StoreError,
    TemplateUnknownError,
)
from kvmd.log import get_logger
from kvmd.ports import Clock, PoolStore, Sharing, Sources
from kvmwire.codes import FailureCode
from kvmwire.source import SourceUrl
from kvmwire.status import Progress, ReplicaState

log = get_logger(__name__)

_UNTIL_IT_COMES = timedelta(seconds=ATTEMPT_CAP_S)


@dataclass(slots=True)
class _Running:
    """A session under way."""

    aim: str
    task: asyncio.Task[None]
    progress: Progress | None = field(default=None)


class Reconciler:
    """One loop that compares what is wished with what is there. ``beat`` is called after every finished pass."""

    def __init__(
        self,
        record: HostRecord,
        rules: Rules,
        *,
        sources: Sources,
        stores: Mapping[str, PoolStore],
        users: Users,
        replicas: Replicas,
        announcer: Announcer,
        clock: Clock,
    ) -> None:
        self._record = record
        self._rules = rules
        self._sources = sources
        self._stores = stores
        self._users = users
        self._replicas = replicas
        self._announcer = announcer
        self._clock = clock
        self._running: dict[ReplicaKey, _Running] = {}
        self._due: dict[ReplicaKey, float] = {}
        self._wake = asyncio.Event()
        self._has_new_wishes = True
        self._resting_until: float | None = None
        replicas.on_release = self._wake.set

    def wake(self) -> None:
        """Look again what is to be done, because what is wished has changed, or the credentials that are there."""
        self._has_new_wishes = True
        self._wake.set()

    async def run(self, *, beat: Callable[[], None], at_least_every_s: float) -> None:
        """Reconcile for ever; cancelling it stops every session and keeps what is downloaded."""
        self._remember_times()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._hold_what_is_ready())
            while True:
                self._wake.clear()
                try:
                    wake_at = self._resting_until or await self._pass(group)
                except KvmdError as exc:
                    wake_at = self._rest(exc)
                beat()
                await self._wait(wake_at, at_least_every_s)
                if self._resting_until is not None and self._clock.monotonic() >= self._resting_until:
                    self._resting_until = None

    def _rest(self, error: KvmdError) -> float:
        """Do nothing for a while, because the journal failed as a rule; it and memory still say the same, so nothing is lost."""
        log.error("work rests, and is begun anew", exc=error, pause_s=JOURNAL_PAUSE_S)
        self._has_new_wishes = True
        self._resting_until = self._clock.monotonic() + JOURNAL_PAUSE_S
        return self._resting_until

    def _remember_times(self) -> None:
        """Turn the journaled wall-clock times of waiting replicas into times of the clock that never jumps."""
        now, monotonic = self._clock.now(), self._clock.monotonic()
        for key, replica in self._record.replicas.items():
            until = replica.status.next_attempt
            if replica.status.state is ReplicaState.WAITING and until is not None:
                left_s = (until - now).total_seconds()
                self._due[key] = monotonic + max(0.0, min(left_s, ATTEMPT_CAP_S))

    async def _pass(self, group: asyncio.TaskGroup) -> float | None:
        """Do once what is to be done, and give the time at which there will be something to do by itself."""
        if self._has_new_wishes:
            self._end_waits_for_credentials()
        running = {key: one.aim for key, one in self._running.items()}
        todo = agenda(
            self._record,
            running=running,
            due=self._due,
            now=self._clock.monotonic(),
            slots=self._rules.slots,
            held=self._replicas.held,
        )
        for key in todo.stop:
            if not self._running[key].task.cancelling():  # a second time would disturb its tidying up
                self._running[key].task.cancel()
        if self._has_new_wishes:
            self._has_new_wishes = bool(todo.stop)  # a wish whose session has yet to end is queued after that
            await self._queue_new_wishes()
        for key in todo.start:
            await self._start(group, key)
        return todo.wake_at

    def _end_waits_for_credentials(self) -> None:
        """Let those go on at once whose credentials have come."""
        for key, replica in self._record.replicas.items():
            wish = self._record.desired.get(key)
            template = wish.template(self._record.templates) if wish is not None else None
            if replica.status.code is not FailureCode.CREDENTIAL_INVALID or template is None:
                continue
            with suppress(CredentialMissingError):
                check_credentials(template, self._rules.credentials)
                self._due.pop(key, None)

    async def _wait(self, wake_at: float | None, at_most_s: float) -> None:
        left_s = at_most_s if wake_at is None else min(at_most_s, max(0.0, wake_at - self._clock.monotonic()))
        with suppress(TimeoutError):
            async with asyncio.timeout(left_s):
                await self._wake.wait()

    async def _queue_new_wishes(self) -> None:
        """Announce that wishes were taken on, before the first of them is worked on."""
        for key, wish in tuple(self._record.desired.items()):
            replica, fingerprint = self._record.replicas.get(key), wish.fingerprint(self._record.templates)
            if key in self._running or not wish.is_present or wish.is_cancelled:
                continue
            if replica is not None and (replica.made_for == fingerprint or outlives_its_template(self._record, key)):
                continue
            await self._replicas.keep(queued(wish, fingerprint, replica, now=self._clock.now()))

    async def _start(self, group: asyncio.TaskGroup, key: ReplicaKey) -> None:
        """Begin a session, or say why there can be none; later, where somebody has come to hold the volume."""
        wish, before = self._record.desired[key], self._record.replicas.get(key)
        fingerprint = wish.fingerprint(self._record.templates)
        self._due.pop(key, None)
        if before is not None and wish.is_cancelled and before.status.state is ReplicaState.READY:
            await self._replicas.keep(replace(before, made_for=fingerprint))  # the cancellation came too late
            return
        if names_of(self._record, key) & self._replicas.held:
            return
        try:
            task = self._assign(key)
        except KvmdError as exc:
            await self._put_off(key, exc)
            return
        self._replicas.working.add(key)
        self._running[key] = _Running(
            wish.aim(self._record.templates), group.create_task(self._work(task, self._stores[key.pool]))
        )

    def _assign(self, key: ReplicaKey) -> Assignment:
        """Build the assignment. Raises KvmdError where there can be no session: unknown pool or template, policy."""
        wish = self._record.desired[key]
        if key.pool not in self._stores:
            known = ", ".join(self._stores)
            raise PoolMissingError(f"pool {key.pool} is not configured on this host; it has {known}.")
        self._check_unused(wish)
        template = wish.template(self._record.templates)
        if wish.is_present and not wish.is_cancelled:
            if template is None:
                raise TemplateUnknownError(
                    f"template {key.template}: no register event for it has been seen; it goes on as soon as one arrives."
                )
            check_policy(
                self._rules.policy, digest=template.digest, urls=[SourceUrl.parse(url) for url in template.urls]
            )
            check_credentials(template, self._rules.credentials)
        is_raw = key.pool in self._rules.raw_pools
        return assignment(self._record, key, template, images=self._rules.limits.images, is_raw=is_raw)

    def _check_unused(self, wish: Desired) -> None:
        """Raise InUseError where a replica is to go, and a machine's disk stands on it."""
        replica = self._record.replicas.get(wish.key)
        if wish.is_present or replica is None or replica.placement is None:
            return
        machines = self._record.machines_on(replica.placement.path)
        if machines:
            raise InUseError(
                f"{replica.placement.path} is needed by the disks of machines: {', '.join(machines)}; it was left as it is.",
                hint="Remove them first (kvmctl machine remove NAME); then it goes by itself.",
            )

    async def _put_off(self, key: ReplicaKey, error: KvmdError) -> None:
        wish, before, now = self._record.desired[key], self._record.replicas.get(key), self._clock.now()
        pause: timedelta | None = None
        if isinstance(error, TemplateUnknownError | CredentialMissingError):
            pause = _UNTIL_IT_COMES
        elif isinstance(error, PoolMissingError | InUseError):
            pause = timedelta(seconds=backoff_s(10, jitter=self._clock.jitter()))
        if pause is not None:
            self._due[key] = self._clock.monotonic() + pause.total_seconds()
        until = now + pause if pause else None
        fingerprint = wish.fingerprint(self._record.templates)
        await self._replicas.keep(put_off(wish, fingerprint, before, failure=error.failure, now=now, until=until))

    async def _work(self, task: Assignment, store: PoolStore) -> None:
        """Run one session to its end; it raises nothing but what the journal does."""
        key = task.key
        rules, sharing = self._rules, self._rules.shared.get(key.pool)
        edges = Edges(
            self._sources,
            store,
            self._clock,
            rules.limits,
            rules.shaper,
            rules.inspector,
            rules.converter,
            keyring=rules.keyring,
            users=self._users.of,
            sharing=sharing,
        )

        async def on_state(state: State) -> None:
            if isinstance(state, Waiting):
                is_in_use = state.failure.code is FailureCode.IN_USE
                if is_in_use and await self._waits_for_another(task, sharing, on_progress):
                    return
                left_s = (state.until - self._clock.now()).total_seconds()
                self._due[key] = self._clock.monotonic() + max(0.0, left_s)
            progress = self._running[key].progress
            current = replace(task, before=self._record.replicas.get(key))
            replica = replica_of(current, state, progress=progress, now=self._clock.now())
            if not _says_the_same(replica, self._record.replicas.get(key)):
                await self._replicas.keep(replica)

        def on_progress(progress: Progress) -> None:
            self._running[key].progress = progress
            self._announcer.progress(key, progress)

        try:
            if not await self._waits_for_another(task, sharing, on_progress):
                await Session(task.job, edges, Listener(on_state, on_progress)).run(task.opening)
        except KvmdError as exc:
            self._rest(exc)
        except Exception as exc:  # noqa: BLE001 - a session ends here, and must not take the others with it
            log.unexpected("session ended by a defect: it is begun anew", exc, session=task.job.session)
            self._rest(InternalError(f"{type(exc).__name__}: {exc}"))
        finally:
            self._running.pop(key, None)
            self._replicas.working.discard(key)
            self._wake.set()

    async def _hold_what_is_ready(self) -> None:
        """Note in shared pools what this host needs: it may have been ready before the pool was one."""
        for key in tuple(self._record.replicas):
            replica, sharing = self._record.replicas[key], self._rules.shared.get(key.pool)
            is_at_rest = replica.status.state is ReplicaState.READY and key not in self._running
            if sharing is None or replica.placement is None or not is_at_rest:
                continue
            try:
                await sharing.hold(replica.placement, is_ours=replica.is_ours)
            except KvmdError as exc:
                log.warning("volume of a shared pool is not where it was", volume=replica.placement.path, exc=exc)

    async def _waits_for_another(
        self, task: Assignment, sharing: Sharing | None, on_progress: Callable[[Progress], None]
    ) -> bool:
        """Tell whether another host makes the volume; then this one says so and looks again later, without a session."""
        if sharing is None or not isinstance(task.opening, Started):
            return False
        try:
            holder = await sharing.holder(task.job.terms.volume)
        except StoreError:
            return False  # the session will meet it, too, and say what it means
        if holder is None:
            return False
        self._due[task.key] = self._clock.monotonic() + TURN_S
        before = self._record.replicas.get(task.key)
        replica = waiting_turn(replace(task, before=before), holder, now=self._clock.now())
        if not _says_the_same(replica, before):
            await self._replicas.keep(replica)
        if replica.status.progress is not None:
            on_progress(replica.status.progress)
        return True


def _says_the_same(replica: Replica, before: Replica | None) -> bool:
    """Whether nothing but the times and figures has changed, as between looking for the volume and asking the sources."""
    if before is None:
        return False
    then = before.status
    status = replica.status.model_copy(update={"since": then.since, "progress": then.progress})
    return replace(replica, status=status) == before
