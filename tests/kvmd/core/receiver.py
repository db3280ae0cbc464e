"""A host that only judges: takes register events in as the daemon does, and remembers what the journal would."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from kvmd.core.desired import HostRecord, Recorded, Stamp, TemplateRecord
from kvmd.core.judging import Arrival, Judgement, judge
from kvmwire.codec import bare_id, content_of
from kvmwire.events import Event, RegisterData
from kvmwire.status import Outcome, Receipt
from kvmwire.topics import RegisterTopic
from tests.kvmd.core.strategies import NOW

TOPIC = RegisterTopic("deb12")


def wish(letter: str) -> RegisterData:
    return RegisterData(template="deb12", url=f"https://origin/{letter}")


def bare(letter: str) -> Event:
    """Give what a person types: the same text always has the same id."""
    data = wish(letter)
    return Event(bare_id("kvmd/v1/register/deb12", letter.encode()), TOPIC, data, content_of(data), "", is_bare=True)


def enveloped(
    letter: str, generation: int | None, *, event_id: str | None = None, expires: datetime | None = None
) -> Event:
    """Give what a program publishes: an id for every generation and content, unless told."""
    data = wish(letter)
    name = event_id if event_id is not None else f"{letter}-{generation}"
    return Event(name, TOPIC, data, content_of(data), "kvmctl", is_bare=False, generation=generation, expires=expires)


@dataclass(slots=True)
class Receiver:
    """Judges events about one template, one after another."""

    record: HostRecord = field(default_factory=HostRecord)
    outcomes: list[tuple[str, Outcome]] = field(default_factory=list[tuple[str, Outcome]])

    @property
    def current(self) -> Stamp | None:
        """The event that holds."""
        known = self.record.templates.get("deb12")
        return known.stamp if known else None

    @property
    def holds(self) -> tuple[int, str] | None:
        """Generation and content of the event that holds."""
        return None if self.current is None else (self.current.generation, self.current.content)

    def receive(self, event: Event, *, is_live: bool = True, now: datetime = NOW) -> Judgement:
        """Judge, and remember the first answer and whatever was accepted."""
        earlier = self.record.receipts.get(event.id)
        judgement = judge(event, self.current, Arrival(now=now, is_live=is_live, earlier=earlier))
        self.outcomes.append((event.id, judgement.outcome))
        if earlier is None or judgement.is_accepted:
            self._keep(event, judgement, now)
        return judgement

    def _keep(self, event: Event, judgement: Judgement, now: datetime) -> None:
        failure = judgement.failure
        receipt = Receipt(
            event=event.id,
            host="kvm01",
            outcome=judgement.outcome,
            topic="kvmd/v1/register/deb12",
            generation=judgement.generation,
            code=failure.code if failure else None,
            message=failure.message if failure else "",
            hint=failure.hint if failure else "",
            time=now,
        )
        stamp = Stamp(judgement.generation, event.content, event.id)
        assert isinstance(event.data, RegisterData)
        changed = (TemplateRecord(stamp, event.data),) if judgement.is_accepted else ()
        self.record.apply(Recorded(receipt, templates=changed), kept=1000)
