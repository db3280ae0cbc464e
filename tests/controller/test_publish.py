"""Making events: generations only rise, and a removal is the opposite of what deploys."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.errors import ControlError
from controller.publish import (
    commands,
    default_deployment,
    deploy_events,
    known_template,
    next_generation,
    register_event,
    removals,
)
from kvmwire.codec import decode_event, encode_event
from kvmwire.codes import Exit, FailureCode
from kvmwire.events import CommandData, DeployData, Ensure, RegisterData
from kvmwire.status import ReplicaState
from kvmwire.topics import CommandTopic, DeployTopic, ProbeTopic, RegisterTopic, ReplicaTopic, Verb
from tests.controller.test_fleet import NOW, RECORD, TOPICS, event_of, fleet_of, replica_status

MILLISECONDS = int(NOW.timestamp() * 1000)


@given(st.lists(st.integers(0, 2**62)), st.datetimes(timezones=st.just(UTC), min_value=datetime(1970, 1, 2)))  # noqa: DTZ001 - hypothesis adds the zone
def test_a_generation_is_higher_than_all_that_are_known(known: list[int], now: datetime) -> None:
    generation = next_generation(now, *known)
    assert all(generation > one for one in known)
    assert generation >= int(now.timestamp() * 1000)


def test_a_register_is_newer_than_event_and_probe_of_a_clock_ahead() -> None:
    ahead = MILLISECONDS + 10**9
    topic = RegisterTopic("deb12")
    fleet = fleet_of((topic, event_of(topic, RECORD, ahead)))
    assert register_event(fleet, RECORD, known=0, now=NOW).generation == ahead + 1
    probe = f'{{"template":"deb12","generation":{ahead + 5},"verdict":"good","checked":"2030-01-01T00:00:00Z"}}'
    fleet.take(TOPICS.build(ProbeTopic("kvm01", "deb12")), probe.encode())
    assert register_event(fleet, RECORD, known=0, now=NOW).generation == ahead + 6
    assert register_event(fleet, RECORD, known=ahead + 8, now=NOW).generation == ahead + 9


def test_deploys_of_one_replica_get_different_generations_whatever_their_topic() -> None:
    data = DeployData(deployment="deb12", template=RECORD)
    fleet = fleet_of((ReplicaTopic("kvm01", "default", "deb12"), replica_status(MILLISECONDS + 10)))
    events = deploy_events(fleet, [(DeployTopic("a"), data), (DeployTopic("b", "kvm01"), data)], known=0, now=NOW)
    assert [event.generation for event in events] == [MILLISECONDS + 11, MILLISECONDS + 12]


def test_what_is_made_can_be_read_by_hosts() -> None:
    event = register_event(fleet_of(), RECORD, known=0, now=NOW)
    assert decode_event(TOPICS, event.topic, encode_event(TOPICS, event)) == event


def test_a_removal_turns_every_deploy_topic_of_the_template() -> None:
    everywhere = DeployData(deployment="a", template=RECORD, name="vol", priority=9)
    other = DeployData(deployment="c", template="other")
    in_fast = DeployData(deployment="b", template="deb12", pool="fast")
    fleet = fleet_of(
        (DeployTopic("a"), event_of(DeployTopic("a"), everywhere, 1)),
        (DeployTopic("b", "kvm01"), event_of(DeployTopic("b", "kvm01"), in_fast, 1)),
        (DeployTopic("c"), event_of(DeployTopic("c"), other, 1)),
    )
    wanted = dict(removals(fleet, "deb12", hosts=(), pool=None))
    assert set(wanted) == {DeployTopic("a"), DeployTopic("b", "kvm01")}
    assert wanted[DeployTopic("a")] == DeployData(deployment="a", template=RECORD, name="vol", ensure=Ensure.ABSENT)
    assert [topic for topic, _ in removals(fleet, "deb12", hosts=(), pool="fast")] == [DeployTopic("b", "kvm01")]


def test_a_removal_from_a_host_uses_its_own_topic_and_the_whole_record() -> None:
    fleet = fleet_of(
        (DeployTopic("a"), event_of(DeployTopic("a"), DeployData(deployment="a", template=RECORD, pool="fast"), 1)),
        (ReplicaTopic("kvm01", "fast", "deb12"), replica_status(1)),
    )
    assert removals(fleet, "deb12", hosts=["kvm01"], pool="fast") == [
        (
            DeployTopic("deb12.fast", "kvm01"),
            DeployData(deployment="deb12.fast", template=RECORD, pool="fast", ensure=Ensure.ABSENT),
        )
    ]
    assert removals(fleet, "nosuch", hosts=["kvm01"], pool=None) == []


def test_commands_expire_and_go_to_all_or_to_each_named_host() -> None:
    data = CommandData(template="deb12")
    assert [event.topic for event in commands(Verb.CANCEL, data, hosts=(), now=NOW)] == [CommandTopic(Verb.CANCEL)]
    named = commands(Verb.CANCEL, data, hosts=["a", "b"], now=NOW)
    assert [event.topic for event in named] == [CommandTopic(Verb.CANCEL, "a"), CommandTopic(Verb.CANCEL, "b")]
    assert {event.expires for event in named} == {NOW + timedelta(hours=1)}


def test_the_deployment_is_named_after_template_and_pool() -> None:
    assert (default_deployment("t", "default"), default_deployment("t", "fast")) == ("t", "t.fast")


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        (None, "no register event is retained"),
        (
            event_of(RegisterTopic("deb12"), RegisterData(template="deb12", ensure=Ensure.ABSENT), 3),
            "it was unregistered",
        ),
        (b"rubbish", "cannot be read"),
    ],
)
def test_an_unknown_template_is_refused_with_the_reason(payload: bytes | None, said: str) -> None:
    fleet = fleet_of(*([(RegisterTopic("deb12"), payload)] if payload else []))
    with pytest.raises(ControlError, match=said) as caught:
        known_template(fleet, "deb12")
    assert (caught.value.code, caught.value.exit) == (FailureCode.TEMPLATE_UNKNOWN, Exit.FAILED)


def test_a_replica_that_no_deploy_event_covers_is_removed_on_its_own_host() -> None:
    fleet = fleet_of((ReplicaTopic("kvm01", "default", "deb12"), replica_status(5)))
    [(topic, data)] = removals(fleet, "deb12", hosts=(), pool=None)
    assert (topic, data.ensure, data.pool) == (DeployTopic("deb12", "kvm01"), Ensure.ABSENT, "default")
    assert removals(fleet, "deb12", hosts=(), pool="fast") == []
    gone = fleet_of((ReplicaTopic("kvm01", "default", "deb12"), replica_status(5, ReplicaState.ABSENT)))
    assert removals(gone, "deb12", hosts=(), pool=None) == []


def test_no_generation_is_left_above_the_highest() -> None:
    with pytest.raises(ControlError, match="none above"):
        next_generation(NOW, 2**63 - 1)
