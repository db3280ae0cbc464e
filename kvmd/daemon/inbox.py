"""Takes events in: decoded, judged, journaled, answered. What is accepted here is carried out, whatever happens next."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from kvmd.core.commands import commanded
from kvmd.core.desired import (
    CredentialRecord,
    Desired,
    HostRecord,
    MachineWish,
    Recorded,
    ReplicaKey,
    Stamp,
    TemplateRecord,
)
from kvmd.core.judging import Arrival, Judgement, judge, judge_command
from kvmd.core.restraint import Restraint, pause_s
from kvmd.core.warrant import Warrant
from kvmd.daemon.announcer import Announcer, Identity
from kvmd.daemon.caretaker import GcRequest
from kvmd.daemon.credentials import Credentials
from kvmd.errors import KvmdError
from kvmd.journal import KEPT_RECEIPTS
from kvmd.log import get_logger
from kvmd.ports import Clock, Delivery, Journal
from kvmwire.codec import EventRefusedError, bare_id, decode_event
from kvmwire.codes import FailureCode, WireError
from kvmwire.events import CommandData, CredentialData, DeployData, Ensure, Event, RegisterData
from kvmwire.status import Failure, Outcome, Receipt
from kvmwire.topics import (
    CommandTopic,
    CredentialTopic,
    DeployTopic,
    EventTopic,
    HostTopic,
    RegisterTopic,
    Topics,
    Verb,
)

log = get_logger(__name__)

MAX_SUBJECTS = 20_000
"""Templates, replicas or credentials that are remembered at most, of each."""


@dataclass(frozen=True, slots=True)
class Reactions:
    """What is called when there may be something to do, and when somebody asks to look for garbage."""

    on_change: Callable[[], None]
    on_gc: Callable[[GcRequest], None]


class Inbox:
    """Receives deliveries one after the other."""

    def __init__(
        self,
        identity: Identity,
        record: HostRecord,
        *,
        topics: Topics,
        journal: Journal,
        announcer: Announcer,
        clock: Clock,
        credentials: Credentials,
        reactions: Reactions,
    ) -> None:
        self._identity = identity
        self._record = record
        self._topics = topics
        self._journal = journal
        self._announcer = announcer
        self._clock = clock
        self._credentials = credentials
        self._reactions = reactions
        self._restraint = Restraint()

    async def receive(self, delivery: Delivery) -> None:
        """Take one delivery; when this returns it may be acknowledged. Raises StoreIoError where it could not be journaled."""
        topic = delivery.topic
        if isinstance(topic, HostTopic):
            self._announcer.heard(delivery)
            return
        if not isinstance(topic, RegisterTopic | DeployTopic | CommandTopic | CredentialTopic) or not delivery.payload:
            return
        begun = self._clock.monotonic()
        try:
            event = decode_event(self._topics, topic, delivery.payload)
            await self._take(event, self._examine(event), delivery)
        except EventRefusedError as exc:
            await self._refuse(topic, exc, delivery, begun)
        except KvmdError:
            raise
        except Exception as exc:  # noqa: BLE001 - the broker would send it again for ever, and end the daemon each time
            text = self._topics.build(topic)
            log.unexpected("an event met a defect", exc, topic=text)
            await self._refuse(topic, _defective(exc, bare_id(text, delivery.payload)), delivery, begun)

    def _examine(self, event: Event) -> Warrant | None:
        """Give who vouches for the event. Raises EventRefusedError for one that is not to be considered at all."""
        try:
            self._check_audience(event)
            vouched = self._credentials.warrant(event, now=self._clock.now())
            self._check_supported(event)
            self._check_machine(event)
            self._check_room(event)
        except WireError as exc:
            raise EventRefusedError(exc, event.id) from exc
        return vouched

    def _check_audience(self, event: Event) -> None:
        """Raise WireError for another host's event, which only a hostile broker delivers."""
        match event.topic:
            case (
                DeployTopic(host=str() as host) | CredentialTopic(host=str() as host) | CommandTopic(host=str() as host)
            ):
                if host != self._identity.host:
                    raise WireError(
                        FailureCode.EVENT_SIGNATURE,
                        f"it is meant for host {host}, not for {self._identity.host}; refused.",
                    )
            case _:
                pass

    def _check_supported(self, event: Event) -> None:
        """Raise WireError for what the contract knows and this host, or this version, does not do."""
        if isinstance(event.data, DeployData) and event.data.machine is not None and not self._identity.has_machines:
            raise WireError(
                FailureCode.UNSUPPORTED,
                "`machine`: this host runs no virtual machines; the event was refused, its replica included.",
                hint='Set uri = "qemu:///system" in [machines] of the host\'s settings, with libvirt and kvmd[libvirt] installed.',
            )

    def _check_machine(self, event: Event) -> None:
        """Raise WireError where a machine of that name stands in another pool: a key for one pool takes nothing from another."""
        if not isinstance(event.data, DeployData) or event.data.machine is None:
            return
        known = self._record.wished_machines.get(event.data.machine.name)
        if known is not None and known.is_present and known.data.pool != event.data.pool:
            raise WireError(
                FailureCode.EXISTS,
                f"machine {event.data.machine.name} stands in pool {known.data.pool}, the event names pool {event.data.pool}; refused.",
                hint="Name the pool it stands in, remove it there first, or choose another name.",
            )

    def _check_room(self, event: Event) -> None:
        """Raise WireError for one subject too many: a publisher gone mad must fill neither memory nor disk."""
        record, is_new, known = self._record, False, 0
        match event.data:
            case RegisterData() as data:
                is_new, known = data.template not in record.templates, len(record.templates)
            case DeployData() as data:
                is_new, known = ReplicaKey(data.pool, data.template_name) not in record.desired, len(record.desired)
                if data.machine is not None and data.machine.name not in record.wished_machines:
                    is_new, known = True, max(known, len(record.wished_machines))
            case CredentialData() as data:
                is_new, known = data.credential not in record.credentials, len(record.credentials)
            case CommandData():
                pass
        if is_new and known >= MAX_SUBJECTS:
            raise WireError(
                FailureCode.POLICY,
                f"this host remembers {known} templates, replicas or credentials, and takes no further one; refused.",
                hint="Find out who publishes so many; stop the host and move its journal away to begin anew.",
            )

    async def _take(self, event: Event, vouched: Warrant | None, delivery: Delivery) -> None:
        arrival = self._arrival(event.id, delivery)
        keyid = vouched.keyid if vouched else ""
        match event.data:
            case RegisterData() as data:
                await self._register(event, data, arrival, delivery, keyid)
            case DeployData() as data if data.selects(self._identity.host, self._identity.labels):
                await self._deploy(event, data, arrival, delivery, keyid)
            case CommandData() as data:
                await self._command(event, data, arrival, delivery)
            case CredentialData() as data:
                await self._credential(event, data, vouched, arrival, delivery)
            case _:
                log.debug("event for other hosts", event_id=event.id)

    async def _credential(
        self, event: Event, data: CredentialData, vouched: Warrant | None, arrival: Arrival, delivery: Delivery
    ) -> None:
        decision = self._credentials.decide(event, data, arrival, vouched)
        changed: tuple[CredentialRecord, ...] = (decision.record,) if decision.record else ()
        retried = self._credentials.retried(decision)
        recorded = Recorded(self._receipt(event, decision.judgement), credentials=changed, desired=retried)
        await self._answer(
            event, decision.judgement, delivery, recorded, enact=partial(self._credentials.enact, decision)
        )
        for record in changed:
            self._announcer.credential(record)

    async def _register(
        self, event: Event, data: RegisterData, arrival: Arrival, delivery: Delivery, keyid: str
    ) -> None:
        known = self._record.templates.get(data.template)
        judgement = judge(event, known.stamp if known else None, arrival)
        changed = (TemplateRecord(_stamp(event, judgement, keyid), data),) if judgement.is_accepted else ()
        await self._answer(event, judgement, delivery, Recorded(self._receipt(event, judgement), templates=changed))
        if changed and not changed[0].is_present:
            self._announcer.probe_gone(data.template)

    async def _deploy(self, event: Event, data: DeployData, arrival: Arrival, delivery: Delivery, keyid: str) -> None:
        """Take a wish for a replica, for a machine, or for both: each is a subject of its own, and one may be news and one old."""
        judgements: list[Judgement] = []
        desired: tuple[Desired, ...] = ()
        machines: tuple[MachineWish, ...] = ()
        if data.machine is not None:
            wished = self._record.wished_machines.get(data.machine.name)
            judgements.append(judge(event, wished.stamp if wished else None, arrival))
            if judgements[0].is_accepted:
                machines = (MachineWish(_stamp(event, judgements[0], keyid), data, data.machine),)
        if data.machine is None or data.ensure is Ensure.PRESENT:
            known = self._record.desired.get(ReplicaKey(data.pool, data.template_name))
            judgements.append(judge(event, known.stamp if known else None, arrival))
            if judgements[-1].is_accepted:
                order = 1 + max((one.order for one in self._record.desired.values()), default=0)
                scrubs = known.scrubs if known is not None else 0  # one that was asked for is not lost
                desired = (Desired(_stamp(event, judgements[-1], keyid), data, order, scrubs=scrubs),)
        judgement = next((one for one in judgements if one.is_accepted), judgements[0])
        recorded = Recorded(self._receipt(event, judgement), desired=desired, machines=machines)
        await self._answer(event, judgement, delivery, recorded)

    async def _command(self, event: Event, data: CommandData, arrival: Arrival, delivery: Delivery) -> None:
        judgement = judge_command(event, arrival)
        recorded = Recorded(self._receipt(event, judgement))
        verb = event.topic.verb if isinstance(event.topic, CommandTopic) else None
        if judgement.is_accepted:
            recorded = commanded(self._record, verb, data, recorded.receipt)
        enact: Callable[[], None] | None = None
        if judgement.is_accepted and verb is Verb.GC:
            enact = partial(self._reactions.on_gc, GcRequest(event.id, data.pool, is_dry_run=data.dry_run))
        await self._answer(event, judgement, delivery, recorded, enact=enact)
        if judgement.is_accepted and verb is Verb.ANNOUNCE:
            await self._announcer.announce()

    async def _refuse(self, topic: EventTopic, error: EventRefusedError, delivery: Delivery, begun: float) -> None:
        """Answer a refused event. In a flood of them most are only counted, and cost no more than their share of the time."""
        self._restraint, is_answered = self._restraint.refused(self._clock.monotonic())
        if not is_answered:
            await self._pass_over(error, begun)
            return
        receipt = Receipt(
            event=error.event_id,
            host=self._identity.host,
            outcome=Outcome.REFUSED,
            topic=self._topics.build(topic),
            code=error.code,
            message=error.message,
            hint=error.hint,
            time=self._clock.now(),
        )
        log.warning(
            "event refused", topic=receipt.topic, event_id=error.event_id, code=error.code, message=error.message
        )
        await self._keep_and_send(Recorded(receipt), delivery)

    async def _pass_over(self, error: EventRefusedError, begun: float) -> None:
        now = self._clock.monotonic()
        self._announcer.passed_over()
        self._restraint, silent = self._restraint.report(now)
        if silent:
            log.error(
                "a flood of events that are refused: most are not answered",
                unanswered=silent,
                code=error.code,
                message=error.message,
            )
        await asyncio.sleep(pause_s(now - begun))

    async def _answer(
        self,
        event: Event,
        judgement: Judgement,
        delivery: Delivery,
        recorded: Recorded,
        *,
        enact: Callable[[], None] | None = None,
    ) -> None:
        def put_in_force() -> None:
            if enact is not None:
                enact()
            if judgement.is_accepted:
                self._reactions.on_change()

        log.info(
            "event received",
            type=event.type,
            event_id=event.id,
            outcome=judgement.outcome,
            generation=judgement.generation,
            code=judgement.failure.code if judgement.failure else None,
        )
        await self._keep_and_send(recorded, delivery, put_in_force)

    async def _keep_and_send(
        self, recorded: Recorded, delivery: Delivery, put_in_force: Callable[[], None] = lambda: None
    ) -> None:
        """Journal the first answer to an event and send it. A retained event seen again after a reconnect needs no second one."""
        receipt = recorded.receipt
        earlier = self._earlier(receipt.event, receipt.topic)
        if earlier is not None and receipt.outcome is not Outcome.ACCEPTED:
            if delivery.is_retained:
                return
        elif not self._would_hide(receipt):
            await asyncio.shield(self._keep(recorded, put_in_force))
        self._announcer.receipt(receipt)

    def _would_hide(self, receipt: Receipt) -> bool:
        """Whether a refusal would take the place of what was answered to another event of this id, which could then be repeated."""
        other = self._record.receipts.get(receipt.event)
        return other is not None and receipt.outcome is Outcome.REFUSED and other.outcome is not Outcome.REFUSED

    async def _keep(self, recorded: Recorded, put_in_force: Callable[[], None]) -> None:
        """Journal, remember, put in force; all or nothing: a connection that is lost in between must not part them."""
        await self._journal.record(recorded)
        self._record.apply(recorded, kept=KEPT_RECEIPTS)
        put_in_force()

    def _earlier(self, event_id: str, topic: str) -> Receipt | None:
        """Give the answer to the same event. An id is the publisher's: on another topic it names another event."""
        earlier = self._record.receipts.get(event_id)
        return earlier if earlier is not None and earlier.topic == topic else None

    def _arrival(self, event_id: str, delivery: Delivery) -> Arrival:
        return Arrival(
            now=self._clock.now(),
            is_live=not delivery.is_retained and not delivery.is_redelivery,
            earlier=self._earlier(event_id, self._topics.build(delivery.topic)),
        )

    def _receipt(self, event: Event, judgement: Judgement) -> Receipt:
        failure: Failure | None = judgement.failure
        return Receipt(
            event=event.id,
            host=self._identity.host,
            outcome=judgement.outcome,
            topic=self._topics.build(event.topic),
            generation=judgement.generation,
            code=failure.code if failure else None,
            message=failure.message if failure else "",
            hint=failure.hint if failure else "",
            time=self._clock.now(),
        )


def _defective(error: Exception, event_id: str) -> EventRefusedError:
    said = WireError(FailureCode.INTERNAL, f"the event met a defect of kvmd, {type(error).__name__}; not carried out.")
    return EventRefusedError(said, event_id)


def _stamp(event: Event, judgement: Judgement, keyid: str) -> Stamp:
    return Stamp(judgement.generation, event.content, event.id, keyid)
