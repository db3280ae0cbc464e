"""What becomes of an event: judged from the one that holds for its subject, and from what was answered before."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeGuard

from kvmd.core.desired import Stamp
from kvmwire.codes import CODES, FailureCode
from kvmwire.events import Event
from kvmwire.status import Failure, Outcome, Receipt

CLOCK_SKEW = timedelta(minutes=5)
"""How far the clocks of publisher and host may be apart before an event counts as expired."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What becomes of an event; ``generation`` is the one that holds for its subject from now on."""

    outcome: Outcome
    generation: int
    failure: Failure | None = None

    @property
    def is_accepted(self) -> bool:
        """Whether the event is to be carried out."""
        return self.outcome is Outcome.ACCEPTED


@dataclass(frozen=True, slots=True)
class Arrival:
    """How an event arrived: ``earlier`` is the receipt of an event with the same id, ``is_live`` tells a fresh publication."""

    now: datetime
    is_live: bool
    earlier: Receipt | None


def judge(event: Event, current: Stamp | None, arrival: Arrival) -> Judgement:
    """Decide about an event from the one that holds for its subject.

    A bare event has no id of its own: the same text published anew is a new wish, and counts if something else was wished in
    between. Delivered again by the broker (retained or redelivered) it is the old wish.
    """
    generation = current.generation if current else 0
    is_new_wish = event.is_bare and arrival.is_live and (current is None or current.content != event.content)
    if _is_settled(arrival.earlier) and not is_new_wish:
        return _repeated(arrival.earlier, generation)
    if event.expires is not None and event.expires < arrival.now - CLOCK_SKEW:
        failure = _failure(FailureCode.EVENT_EXPIRED, f"the event expired at {event.expires.isoformat()}; refused.")
        return Judgement(Outcome.REFUSED, generation, failure)
    if current is None:
        return Judgement(Outcome.ACCEPTED, event.generation if event.generation is not None else 1)
    if event.content == current.content and event.generation in {None, current.generation}:
        return Judgement(Outcome.DUPLICATE, generation)
    if event.generation is None:
        return Judgement(Outcome.ACCEPTED, generation + 1)
    if (event.generation, event.content) > (current.generation, current.content):
        return Judgement(Outcome.ACCEPTED, event.generation)
    failure = _failure(
        FailureCode.EVENT_STALE,
        f"generation {event.generation} is not above {current.generation}, which holds; ignored.",
    )
    return Judgement(Outcome.STALE, generation, failure)


def judge_command(event: Event, arrival: Arrival) -> Judgement:
    """Decide about a command: carried out once an id, or once a publication where it has no id of its own."""
    if _is_settled(arrival.earlier) and not (event.is_bare and arrival.is_live):
        return _repeated(arrival.earlier, 0)
    if event.expires is not None and event.expires < arrival.now - CLOCK_SKEW:
        failure = _failure(FailureCode.EVENT_EXPIRED, f"the command expired at {event.expires.isoformat()}; refused.")
        return Judgement(Outcome.REFUSED, 0, failure)
    return Judgement(Outcome.ACCEPTED, 0)


def _is_settled(earlier: Receipt | None) -> TypeGuard[Receipt]:
    """Whether the answer stands. A refusal does not: another version, another clock may accept the same event."""
    return earlier is not None and earlier.outcome is not Outcome.REFUSED


def _repeated(earlier: Receipt, generation: int) -> Judgement:
    """Answer as the first time, except that what was accepted is now a duplicate."""
    if earlier.outcome in {Outcome.ACCEPTED, Outcome.DUPLICATE} or earlier.code is None:
        return Judgement(Outcome.DUPLICATE, generation)
    return Judgement(
        earlier.outcome, generation, Failure(code=earlier.code, message=earlier.message, hint=earlier.hint)
    )


def _failure(code: FailureCode, message: str) -> Failure:
    return Failure(code=code, message=message, hint=CODES[code].hint)
