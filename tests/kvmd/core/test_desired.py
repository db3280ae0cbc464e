"""Events become a desired state: whatever the broker repeats or reorders, the end is the same."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmd.core.desired import Desired, HostRecord, Recorded, Stamp, TemplateRecord, rechecked
from kvmd.core.judging import CLOCK_SKEW, Arrival, Judgement, judge_command
from kvmwire.codec import content_of
from kvmwire.codes import FailureCode
from kvmwire.events import CommandData, DeployData, Ensure, Event, RegisterData
from kvmwire.status import Outcome, Receipt
from kvmwire.topics import CommandTopic, Verb
from tests.kvmd.core.receiver import Receiver, bare, enveloped, wish
from tests.kvmd.core.strategies import NOW

ACCEPTED, DUPLICATE, STALE, REFUSED = Outcome.ACCEPTED, Outcome.DUPLICATE, Outcome.STALE, Outcome.REFUSED
letters = st.sampled_from("abcd")
events = st.builds(enveloped, letters, st.integers(0, 5))
deliveries = st.lists(st.tuples(events, st.booleans()), min_size=1, max_size=12)


def _outcomes(receiver: Receiver) -> list[Outcome]:
    return [outcome for _, outcome in receiver.outcomes]


# --- events with a generation ---


@given(deliveries, st.data())
def test_every_order_of_the_same_events_ends_the_same(delivered: list[tuple[Event, bool]], data: st.DataObject) -> None:
    again = data.draw(st.lists(st.sampled_from(delivered), max_size=8))
    one, other = Receiver(), Receiver()
    for event, is_live in delivered:
        one.receive(event, is_live=is_live)
    for event, is_live in data.draw(st.permutations(delivered + again)):
        other.receive(event, is_live=is_live)
    assert one.current == other.current
    assert one.holds == max((event.generation, event.content) for event, _ in delivered)


@given(deliveries)
def test_each_id_is_accepted_at_most_once_and_its_answer_stays(delivered: list[tuple[Event, bool]]) -> None:
    receiver = Receiver()
    for event, is_live in delivered * 2:
        receiver.receive(event, is_live=is_live)
    accepted = Counter(event_id for event_id, outcome in receiver.outcomes if outcome is ACCEPTED)
    assert all(times == 1 for times in accepted.values())
    assert receiver.current is not None
    assert accepted[receiver.current.event_id] == 1
    for event_id in {event_id for event_id, _ in receiver.outcomes}:
        first, *later = [outcome for name, outcome in receiver.outcomes if name == event_id]
        assert set(later) == {DUPLICATE if first is ACCEPTED else first}


@given(deliveries)
def test_what_holds_never_goes_back(delivered: list[tuple[Event, bool]]) -> None:
    receiver, before = Receiver(), (-1, "")
    for event, is_live in delivered:
        judgement = receiver.receive(event, is_live=is_live)
        assert receiver.holds is not None
        assert receiver.holds >= before
        assert judgement.generation == receiver.holds[0]
        assert judgement.is_accepted == (receiver.holds != before)
        before = receiver.holds


@given(letters, letters, st.integers(0, 5))
def test_two_contents_of_one_generation_are_decided_alike_in_both_orders(one: str, other: str, generation: int) -> None:
    forth, back = Receiver(), Receiver()
    pair = [enveloped(one, generation), enveloped(other, generation)]
    for event in pair:
        forth.receive(event)
    for event in reversed(pair):
        back.receive(event)
    assert forth.holds == back.holds


def test_an_older_generation_is_stale_and_told_what_holds() -> None:
    receiver = Receiver()
    receiver.receive(enveloped("a", 7))
    judgement = receiver.receive(enveloped("b", 6))
    assert (judgement.outcome, judgement.generation) == (STALE, 7)
    assert judgement.failure is not None
    assert judgement.failure.code is FailureCode.EVENT_STALE
    assert "6" in judgement.failure.message
    assert "7" in judgement.failure.message


def test_the_same_wish_under_another_id_is_a_duplicate() -> None:
    receiver = Receiver()
    receiver.receive(enveloped("a", 7, event_id="from-one-controller"))
    assert receiver.receive(enveloped("a", 7, event_id="from-another")).outcome is DUPLICATE


def test_the_same_content_with_a_higher_generation_is_accepted() -> None:
    receiver = Receiver()
    receiver.receive(enveloped("a", 7))
    assert receiver.receive(enveloped("a", 8)) == Judgement(ACCEPTED, 8)


def test_without_a_generation_a_different_content_is_newer_and_the_same_is_a_duplicate() -> None:
    receiver = Receiver()
    assert receiver.receive(enveloped("a", 7)).generation == 7
    assert receiver.receive(enveloped("a", None)) == Judgement(DUPLICATE, 7)
    assert receiver.receive(enveloped("b", None)) == Judgement(ACCEPTED, 8)


def test_the_first_event_without_a_generation_counts_as_the_first() -> None:
    assert Receiver().receive(enveloped("a", None)) == Judgement(ACCEPTED, 1)
    assert Receiver().receive(enveloped("a", 0)) == Judgement(ACCEPTED, 0)


# --- what a person types ---


def test_the_same_text_twice_is_one_wish() -> None:
    receiver = Receiver()
    for _ in range(3):
        receiver.receive(bare("a"))
    assert _outcomes(receiver) == [ACCEPTED, DUPLICATE, DUPLICATE]


def test_the_same_text_after_another_is_a_new_wish() -> None:
    receiver = Receiver()
    for letter in "aba":
        receiver.receive(bare(letter))
    assert _outcomes(receiver) == [ACCEPTED, ACCEPTED, ACCEPTED]
    assert receiver.holds == (3, bare("a").content)


def test_an_old_text_that_the_broker_delivers_again_is_the_old_wish() -> None:
    receiver = Receiver()
    receiver.receive(bare("a"))
    receiver.receive(bare("b"))
    assert receiver.receive(bare("a"), is_live=False).outcome is DUPLICATE
    assert receiver.holds == (2, bare("b").content)


@given(st.lists(letters, min_size=1, max_size=10), st.lists(letters, max_size=10))
def test_however_often_texts_are_delivered_again_the_last_one_typed_holds(typed: list[str], again: list[str]) -> None:
    receiver = Receiver()
    for letter in typed:
        receiver.receive(bare(letter))
    held = receiver.current
    for letter in again:
        if letter in typed:
            assert receiver.receive(bare(letter), is_live=False).outcome is DUPLICATE
    assert receiver.current == held
    assert receiver.holds is not None
    assert receiver.holds[1] == bare(typed[-1]).content


def test_a_retained_text_that_was_never_seen_is_a_wish() -> None:
    receiver = Receiver()
    assert receiver.receive(bare("a"), is_live=False).outcome is ACCEPTED


def test_a_text_is_newer_than_what_a_controller_published_before() -> None:
    receiver = Receiver()
    receiver.receive(enveloped("a", 1000))
    assert receiver.receive(bare("b")) == Judgement(ACCEPTED, 1001)


# --- expiry ---


@pytest.mark.parametrize(
    ("late", "outcome"),
    [
        (timedelta(0), ACCEPTED),
        (CLOCK_SKEW, ACCEPTED),
        (CLOCK_SKEW + timedelta(seconds=1), REFUSED),
        (timedelta(days=400), REFUSED),
        (-timedelta(days=400), ACCEPTED),
    ],
)
def test_an_event_expires_when_no_two_clocks_can_disagree_about_it(late: timedelta, outcome: Outcome) -> None:
    judgement = Receiver().receive(enveloped("a", 1, expires=NOW - late))
    assert judgement.outcome is outcome
    assert (judgement.failure.code if judgement.failure else None) == (
        FailureCode.EVENT_EXPIRED if outcome is REFUSED else None
    )


@pytest.mark.parametrize("hours", [0, 14, -12])
@pytest.mark.parametrize(
    ("text", "is_accepted"), [("9999-12-31T23:59:59.999999", True), ("0001-01-01T00:00:00", False)]
)
def test_the_ends_of_the_calendar_are_dates_like_others(text: str, hours: int, *, is_accepted: bool) -> None:
    expires = datetime.fromisoformat(text).replace(tzinfo=timezone(timedelta(hours=hours)))
    assert Receiver().receive(enveloped("a", 1, expires=expires)).is_accepted == is_accepted
    command = _command(is_bare=False, expires=expires)
    assert judge_command(command, Arrival(NOW, is_live=True, earlier=None)).is_accepted == is_accepted


def test_an_expired_event_changes_nothing() -> None:
    receiver = Receiver()
    receiver.receive(enveloped("a", 1))
    late = enveloped("b", 2, expires=NOW - timedelta(hours=1))
    first, second = receiver.receive(late), receiver.receive(late)
    assert (first.outcome, second.outcome) == (REFUSED, REFUSED)
    assert first.failure == second.failure
    assert receiver.holds == (1, enveloped("a", 1).content)


def test_a_refusal_by_a_wrong_clock_does_not_stand_once_the_clock_is_right() -> None:
    receiver, event = Receiver(), enveloped("b", 2, expires=NOW + timedelta(hours=1))
    assert receiver.receive(event, now=NOW + timedelta(days=400)).outcome is REFUSED
    assert receiver.receive(event, now=NOW).is_accepted
    assert receiver.holds == (2, event.content)


def test_an_accepted_event_that_comes_again_after_it_expired_is_a_duplicate() -> None:
    receiver = Receiver()
    event = enveloped("a", 1, expires=NOW + timedelta(hours=1))
    receiver.receive(event)
    assert receiver.receive(event, now=NOW + timedelta(days=2)).outcome is DUPLICATE


# --- commands ---


def _command(*, is_bare: bool, expires: datetime | None = None) -> Event:
    data = CommandData(template="deb12")
    topic = CommandTopic(Verb.RECHECK, "kvm01")
    return Event("one", topic, data, content_of(data), "", is_bare=is_bare, expires=expires)


def _receipt(judgement: Judgement) -> Receipt:
    failure = judgement.failure
    return Receipt(
        event="one",
        host="kvm01",
        outcome=judgement.outcome,
        topic="t",
        code=failure.code if failure else None,
        message=failure.message if failure else "",
        hint=failure.hint if failure else "",
        time=NOW,
    )


@pytest.mark.parametrize(
    ("is_bare", "is_live", "outcome"),
    [(False, True, DUPLICATE), (False, False, DUPLICATE), (True, True, ACCEPTED), (True, False, DUPLICATE)],
)
def test_a_command_is_carried_out_once_an_id_or_once_a_publication(
    *, is_bare: bool, is_live: bool, outcome: Outcome
) -> None:
    command = _command(is_bare=is_bare)
    first = judge_command(command, Arrival(NOW, is_live=True, earlier=None))
    assert first.outcome is ACCEPTED
    assert judge_command(command, Arrival(NOW, is_live=is_live, earlier=_receipt(first))).outcome is outcome


def test_an_expired_command_is_refused_now_and_when_it_comes_again() -> None:
    command = _command(is_bare=False, expires=NOW - timedelta(hours=1))
    first = judge_command(command, Arrival(NOW, is_live=True, earlier=None))
    again = judge_command(command, Arrival(NOW, is_live=True, earlier=_receipt(first)))
    assert first.outcome is REFUSED
    assert again == first


# --- the record ---


def _desired(*, template: RegisterData | str = "deb12", generation: int = 1) -> Desired:
    data = DeployData(deployment="d", template=template)
    return Desired(Stamp(generation, content_of(data), "e"), data, order=1)


def test_a_wish_with_a_whole_template_needs_no_registered_one() -> None:
    template = RegisterData(template="deb12", url="https://origin/x")
    assert _desired(template=template).template({}) == template


def test_a_wish_with_a_name_takes_the_newest_registered_template() -> None:
    record = TemplateRecord(Stamp(1, "c", "e"), wish("a"))
    assert _desired().template({}) is None
    assert _desired().template({"deb12": record}) == wish("a")
    gone = replace(record, data=RegisterData(template="deb12", ensure=Ensure.ABSENT))
    assert _desired().template({"deb12": gone}) is None


def test_the_fingerprint_changes_with_everything_that_makes_new_work() -> None:
    one = _desired()
    old, new = (TemplateRecord(Stamp(n, content_of(wish(x)), "e"), wish(x)) for n, x in enumerate("ab"))
    fingerprints = [
        one.fingerprint({}),
        one.fingerprint({"deb12": old}),
        one.fingerprint({"deb12": new}),
        _desired(generation=2).fingerprint({}),
        rechecked(one).fingerprint({}),
        replace(one, is_cancelled=True).fingerprint({}),
        _desired(template=wish("a")).fingerprint({}),
    ]
    assert len(set(fingerprints)) == len(fingerprints)


def test_the_fingerprint_does_not_change_with_what_makes_no_new_work() -> None:
    registered = TemplateRecord(Stamp(1, content_of(wish("a")), "e"), wish("a"))
    renewed = replace(registered, stamp=Stamp(2, content_of(wish("a")), "f"), round=3)
    one = _desired()
    assert one.fingerprint({"deb12": registered}) == one.fingerprint({"deb12": renewed})
    assert replace(one, order=9).fingerprint({}) == one.fingerprint({})
    whole = _desired(template=wish("a"))
    assert whole.fingerprint({"deb12": registered}) == whole.fingerprint({})


def test_a_recheck_takes_a_cancellation_back_and_begins_a_new_round() -> None:
    after = rechecked(replace(_desired(), is_cancelled=True, reason="maintenance"))
    assert (after.round, after.is_cancelled, after.reason) == (1, False, "")


@given(st.lists(st.tuples(st.integers(0, 30), st.booleans()), max_size=60), st.integers(0, 10))
def test_old_receipts_are_forgotten_but_none_that_was_not_sent(events: list[tuple[int, bool]], kept: int) -> None:
    record, order = HostRecord(), list[str]()
    for number, is_sent in events:
        receipt = Receipt(event=f"e{number}", host="kvm01", outcome=ACCEPTED, topic="t", time=NOW)
        record.apply(Recorded(receipt), kept=kept)
        order = [*(name for name in order if name != receipt.event), receipt.event]
        if is_sent:
            record.unsent.discard(receipt.event)
    assert record.unsent <= record.receipts.keys()
    assert list(record.receipts) == [name for name in order if name in record.receipts]
    assert set(order[len(order) - kept :]) <= record.receipts.keys()
