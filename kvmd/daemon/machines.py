"""Makes the wished machines true: makes, changes, watches and removes them, one after the other."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta

from kvmd.core.desired import HostRecord, MachineRecord, MachineWish
from kvmd.core.domain import Domain, Power, Switch
from kvmd.core.machine import (
    Step,
    cdroms,
    check_same_template,
    files_of,
    next_steps,
    observed,
    planned,
    ready_replica,
    spec_of,
    status_of,
    with_failure,
)
from kvmd.core.retry import backoff_s
from kvmd.daemon.announcer import Announcer
from kvmd.errors import ExistsError, InternalError, KvmdError, TemplateUnknownError
from kvmd.log import get_logger
from kvmd.ports import Clock, Hypervisor, MachineJournal
from kvmwire.codes import CODES
from kvmwire.status import MachineState

log = get_logger(__name__)

POLL_S = 2.0
"""So soon it is noticed that a guest has switched itself off."""
CONSOLE_EVERY_S = 10.0
"""A machine's console is announced at most so often while nothing else of it changes."""
_RETRY_STEP = 3
"""Pauses between attempts begin as if so many had failed already: a pool that is full is not emptied in a second."""


@dataclass(frozen=True, slots=True)
class MachineRules:
    """The host's choices for machines."""

    network: str
    stop_timeout_s: float


@dataclass(slots=True)
class _Course:
    """What is known of a machine between two passes, and need not outlive the daemon. Times are monotonic."""

    aim: str
    attempts: int = 0
    due: float = 0.0
    pull_plug_at: float | None = None
    console_at: float = float("-inf")


class Machines:
    """One loop. It begins nothing for a machine before the journal knows that it will.

    ``on_use`` is told the volumes that a machine was just made on, or was on until now.
    """

    def __init__(
        self,
        record: HostRecord,
        hypervisor: Hypervisor,
        *,
        rules: MachineRules,
        journal: MachineJournal,
        announcer: Announcer,
        clock: Clock,
        on_use: Callable[[Collection[str]], Awaitable[None]],
    ) -> None:
        self._record = record
        self._hypervisor = hypervisor
        self._rules = rules
        self._journal = journal
        self._announcer = announcer
        self._clock = clock
        self._on_use = on_use
        self._courses: dict[str, _Course] = {}
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """Look again, because a wish or a replica has changed."""
        self._wake.set()

    async def run(self) -> None:
        """Reconcile for ever; cancelled, every machine goes on as it is."""
        await self._get_ready()
        while True:
            self._wake.clear()
            try:
                await self._pass()
            except KvmdError as exc:
                log.error("machines rest, and are looked at again", exc=exc)
            has_any = self._record.machines or any(one.is_present for one in self._record.wished_machines.values())
            with suppress(TimeoutError):
                async with asyncio.timeout(POLL_S if has_any else None):
                    await self._wake.wait()

    async def _get_ready(self) -> None:
        try:
            await self._hypervisor.look(())
        except KvmdError as exc:
            log.warning("machines cannot be made as long as libvirt is not reached", exc=exc)

    async def _pass(self) -> None:
        todo = next_steps(self._record)
        if not todo:
            return
        try:
            domains = await self._hypervisor.look({wish.machine.name for wish, _ in todo})
        except KvmdError as exc:
            for wish, step in todo:
                if step is not Step.WATCH:
                    await self._put_off(wish, exc)
            return
        for wish, step in todo:
            await self._take(wish, step, domains.get(wish.machine.name))

    async def _take(self, wish: MachineWish, step: Step, domain: Domain | None) -> None:
        """Do one step for one machine; what goes wrong is its own affair, but for the journal's errors."""
        name = wish.machine.name
        if step is not Step.WATCH and self._course(wish).due > self._clock.monotonic():
            return
        record = self._record.machines.get(name)
        try:
            match step, record:
                case Step.MAKE, _:
                    await self._make(wish, record, domain)
                case Step.CHANGE, MachineRecord():
                    await self._change(wish, record, domain)
                case Step.REMOVE, MachineRecord():
                    await self._remove(record, wish)
                case Step.WATCH, MachineRecord():
                    await self._watch(wish, record, domain)
                case _:
                    pass
        except KvmdError as exc:
            await self._put_off(wish, exc)
        except Exception as exc:  # noqa: BLE001 - one machine's defect must not stop the others
            log.unexpected("a machine met a defect", exc, machine=name)
            await self._put_off(wish, InternalError(f"machine {name}: {type(exc).__name__}: {exc}"))

    async def _make(self, wish: MachineWish, before: MachineRecord | None, domain: Domain | None) -> None:
        """Make and start it; a failed attempt is undone, and one that was killed is gone on with."""
        replica = ready_replica(self._record, wish)
        if replica is None:
            return
        is_known = domain is not None and domain.provenance is not None  # by a journal that is lost
        is_new = (before is None or not before.folder) and not is_known
        identifier = domain.uuid if domain is not None and is_known else before.uuid if before else str(uuid.uuid4())
        record = planned(wish, self._record, replica, uuid=identifier, now=self._clock.now())
        await self._keep(record)
        try:
            await self._hypervisor.make(
                spec_of(wish, record, network=self._rules.network), files_of(wish, record), is_new=is_new
            )
            self._say(record)
            if wish.machine.start:
                record = await self._start(record)
        except KvmdError as exc:
            await self._undo(wish, record, exc, is_new=is_new)
            return
        await self._settled(wish, record)
        await self._on_use(record.uses)

    async def _start(self, record: MachineRecord) -> MachineRecord:
        """Start it; what is announced and not journaled would be found out again."""
        self._say(self._with_state(record, MachineState.STARTING))
        remark = await self._hypervisor.switch(record.uuid, Switch.ON)
        return _telling(self._with_state(record, MachineState.RUNNING), message=remark)

    async def _undo(self, wish: MachineWish, record: MachineRecord, error: KvmdError, *, is_new: bool) -> None:
        """Leave nothing of a first attempt that failed, but for what was there before it."""
        console = await self._hypervisor.console(files_of(wish, record).console)
        record = _telling(record, console=console)
        if not (is_new and isinstance(error, ExistsError)):
            await self._hypervisor.remove(record.uuid, files_of(wish, record))
        bare = replace(record, folder="", root=None, iso="", cdroms=())
        self._record.machines[record.name] = bare
        await self._put_off(wish, error)

    async def _change(self, wish: MachineWish, record: MachineRecord, domain: Domain | None) -> None:
        """Define it as is wished now, and switch it; its disk stays what it is."""
        check_same_template(wish, record)
        course, is_on = self._course(wish), domain is not None and domain.power is Power.ON
        if course.pull_plug_at is None:
            record = replace(record, cdroms=cdroms(wish, self._record))
            record = replace(
                record, status=status_of(wish, record.status.state, uuid=record.uuid, now=self._clock.now())
            )
            await self._keep(record)
            files = replace(files_of(wish, record), root=None, seed=None)
            await self._hypervisor.make(spec_of(wish, record, network=self._rules.network), files, is_new=False)
        if wish.machine.start and not is_on:
            record = await self._start(record)
        elif not wish.machine.start and is_on:
            await self._stop(record, course)
            return
        elif domain is not None and is_on:
            record = _telling(self._with_state(record, MachineState.RUNNING), message=domain.remark)
        else:
            record = self._with_state(record, MachineState.STOPPED)
        await self._settled(wish, record)

    async def _stop(self, record: MachineRecord, course: _Course) -> None:
        """Ask the guest to shut down, and after a while do not ask any more; a later pass finds it off."""
        now = self._clock.monotonic()
        if course.pull_plug_at is None:
            course.pull_plug_at = now + self._rules.stop_timeout_s
        await self._hypervisor.switch(record.uuid, Switch.OFF if now >= course.pull_plug_at else Switch.SHUTDOWN)
        if now >= course.pull_plug_at or self._rules.stop_timeout_s == 0:
            self.wake()

    async def _remove(self, record: MachineRecord, wish: MachineWish) -> None:
        """Take it away with its own files. The replicas it used stay."""
        if record.folder:
            await self._hypervisor.remove(record.uuid, files_of(wish, record))
        await self._journal.forget_machine(record.name)
        await self._on_use(record.uses)
        del self._record.machines[record.name]
        self._courses.pop(record.name, None)
        self._announcer.machine_gone(record.name)
        log.info("machine removed", machine=record.name)

    async def _watch(self, wish: MachineWish, record: MachineRecord, domain: Domain | None) -> None:
        now, course = self._clock.monotonic(), self._course(wish)
        seen = observed(record, domain, now=self._clock.now())
        if seen is None and not (domain is not None and domain.power is Power.ON):
            return
        console = await self._hypervisor.console(files_of(wish, record).console)
        is_news = console != record.status.console and now - course.console_at >= CONSOLE_EVERY_S
        if seen is None and not is_news:
            return
        course.console_at = now
        after = _telling(seen or record, console=console)
        if seen is None:
            self._say(after)
        else:
            await self._announce(after)

    async def _settled(self, wish: MachineWish, record: MachineRecord) -> None:
        self._courses.pop(record.name, None)
        await self._announce(replace(record, is_made=True, made_for=wish.fingerprint))

    async def _put_off(self, wish: MachineWish, error: KvmdError) -> None:
        """Say why it is not as wished. What can be tried again is, later; else it is given up until somebody wishes something new."""
        name, now = wish.machine.name, self._clock.now()
        course, until = self._course(wish), None
        course.pull_plug_at = None
        if CODES[error.code].retryable and not isinstance(error, TemplateUnknownError):
            pause_s = backoff_s(_RETRY_STEP + course.attempts, jitter=self._clock.jitter())
            course.attempts += 1
            course.due, until = self._clock.monotonic() + pause_s, now + timedelta(seconds=pause_s)
        record = self._record.machines.get(name)
        if record is None:
            record = MachineRecord(status_of(wish, MachineState.FAILED, uuid=None, now=now), str(uuid.uuid4()))
        keeps_running = record.is_made and record.status.state is MachineState.RUNNING
        state = record.status.state if keeps_running else MachineState.FAILED
        status = status_of(wish, state, uuid=record.uuid, now=now).model_copy(update={"console": record.status.console})
        if record.is_made:  # it is still what it was made from
            status = status.model_copy(update={"template": record.status.template, "pool": record.status.pool})
        is_final = not CODES[error.code].retryable
        after = replace(
            record,
            status=with_failure(status, error, now=now, until=until),
            made_for=wish.fingerprint if is_final else record.made_for,
        )
        if not is_final and (record.status.message, record.status.state) == (error.message, state):
            after = _telling(after, since=record.status.since)
            if until is None:
                return
        await self._announce(after)

    def _course(self, wish: MachineWish) -> _Course:
        """Give what is known; of another wish nothing counts any more."""
        known = self._courses.get(wish.machine.name)
        if known is None or known.aim != wish.fingerprint:
            known = self._courses[wish.machine.name] = _Course(wish.fingerprint)
        return known

    def _with_state(self, record: MachineRecord, state: MachineState) -> MachineRecord:
        return _telling(record, state=state, since=self._clock.now())

    async def _announce(self, record: MachineRecord) -> None:
        """Journal, remember, announce: in this order, so that nothing announced is ever forgotten."""
        await self._keep(record)
        self._say(record)
        status = record.status
        log.info("machine", machine=record.name, state=status.state, code=status.code, message=status.message or None)

    async def _keep(self, record: MachineRecord) -> None:
        await self._journal.save_machine(record)
        self._record.machines[record.name] = record

    def _say(self, record: MachineRecord) -> None:
        self._record.machines[record.name] = record
        self._announcer.machine(record.status)


def _telling(record: MachineRecord, **update: object) -> MachineRecord:
    return replace(record, status=record.status.model_copy(update=update))
