"""What is sent again, and when."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from controller.backoff import RESEND_CAP_S, reconnect_delay_s, resend_delay_s
from controller.delivery import GRACE_S, Deliveries
from controller.fleet import Fleet
from controller.publish import make_event
from controller.registry import Stored
from kvmwire.events import Event
from kvmwire.status import HostState
from kvmwire.topics import HostTopic, RegisterTopic
from tests.controller.test_fleet import NOW, RECORD, event_of, fleet_of, host_status

chances = st.floats(0, 1, exclude_max=True)


def an_event(*, expires: float | None = None) -> tuple[Stored, Event]:
    event = make_event(RegisterTopic("deb12"), RECORD, generation=1, now=NOW)
    stored = Stored(event.id, "t", b"", generation=1, is_retained=True, is_ours=True, created=0.0, expires=expires)
    return stored, event


def two_hosts(second: HostState = HostState.ONLINE) -> Fleet:
    return fleet_of((HostTopic("kvm01"), host_status("kvm01")), (HostTopic("kvm02"), host_status("kvm02", second)))


def following(stored: Stored, event: Event) -> Deliveries:
    deliveries = Deliveries(lambda: 0.0)
    deliveries.add(stored, event, now=0.0)
    return deliveries


@given(st.integers(0, 1000), chances)
def test_resending_slows_down_to_a_minute_and_never_hurries(attempt: int, chance: float) -> None:
    delay = resend_delay_s(attempt, chance)
    assert 0.5 <= delay <= RESEND_CAP_S
    assert resend_delay_s(attempt + 1, chance) >= delay


@given(st.integers(0, 1000), chances)
def test_reconnecting_has_full_jitter_and_a_cap(attempt: int, chance: float) -> None:
    assert 0 <= reconnect_delay_s(attempt, chance) <= 30


def test_nothing_is_sent_again_before_its_time() -> None:
    stored, event = an_event()
    deliveries = following(stored, event)
    assert deliveries.due(two_hosts(), 0.4) == []
    assert deliveries.due(two_hosts(), 0.5) == [stored]
    assert deliveries.due(two_hosts(), 0.6) == [], "the next time is later"


def test_an_event_that_all_hosts_answered_rests() -> None:
    stored, event = an_event()
    deliveries = following(stored, event)
    assert deliveries.answer(stored.id, "kvm01")
    assert deliveries.silent(stored.id, two_hosts()) == {"kvm02"}
    assert deliveries.answer(stored.id, "kvm02")
    assert not deliveries.answer(stored.id, "kvm02"), "a duplicate tells nothing new"
    assert deliveries.due(two_hosts(), 1000) == []
    assert deliveries.open_count == 0


def test_an_offline_host_is_not_chased_until_it_comes() -> None:
    stored, event = an_event()
    deliveries = following(stored, event)
    deliveries.answer(stored.id, "kvm01")
    assert deliveries.due(two_hosts(HostState.OFFLINE), 100) == []
    deliveries.host_came("kvm02", 200)
    assert deliveries.due(two_hosts(), 200) == []
    assert deliveries.due(two_hosts(), 200 + GRACE_S) == [stored]


def test_a_host_that_answered_before_is_left_alone_when_it_comes_back() -> None:
    stored, event = an_event()
    deliveries = following(stored, event)
    deliveries.answer(stored.id, "kvm01")
    deliveries.answer(stored.id, "kvm02")
    deliveries.due(two_hosts(), 100)
    deliveries.host_came("kvm02", 200)
    assert deliveries.due(two_hosts(), 1000) == []


def test_what_is_superseded_or_expired_is_forgotten() -> None:
    (old, event), (command, order) = an_event(), an_event(expires=50.0)
    deliveries = following(old, event)
    deliveries.add(command, order, now=0.0)
    deliveries.expire(49.0)
    assert len(deliveries.due(two_hosts(), 10)) == 2
    deliveries.expire(50.0)
    assert deliveries.due(two_hosts(), 100) == [old]
    deliveries.keep_only(set())
    assert deliveries.due(two_hosts(), 1000) == []


def test_an_event_that_another_controller_superseded_is_not_sent_again() -> None:
    stored, event = an_event()
    newer = (RegisterTopic("deb12"), event_of(RegisterTopic("deb12"), RECORD, 2))
    fleet = fleet_of((HostTopic("kvm01"), host_status("kvm01")), newer)
    assert following(stored, event).due(fleet, 5.0) == [], "it would overwrite the newer one at the broker"


def test_an_event_that_was_signed_anew_is_sent_with_the_new_bytes() -> None:
    stored, event = an_event()
    deliveries = following(stored, event)

    deliveries.add(replace(stored, payload=b"signed anew"), event, now=5.0)

    assert [one.payload for one in deliveries.due(two_hosts(), 3600.0)] == [b"signed anew"]
