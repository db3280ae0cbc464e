from __future__ import annotations

import itertools
from typing import get_args

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kvmwire.codes import FailureCode, WireError
from kvmwire.topics import (
    CommandTopic,
    CredentialStatusTopic,
    CredentialTopic,
    DeployTopic,
    EventTopic,
    GcTopic,
    HostTopic,
    MachineTopic,
    ProbeTopic,
    ProgressTopic,
    ReceiptTopic,
    RegisterTopic,
    ReplicaTopic,
    StatusTopic,
    Topic,
    Topics,
    Verb,
)
from tests.wire.strategies import names, status_topics, topics

PINNED: list[tuple[Topic, str]] = [
    (RegisterTopic("deb12"), "kvmd/v1/register/deb12"),
    (DeployTopic("web"), "kvmd/v1/deploy/all/web"),
    (DeployTopic("web", "kvm01"), "kvmd/v1/deploy/host/kvm01/web"),
    (CredentialTopic("ca"), "kvmd/v1/credential/all/ca"),
    (CredentialTopic("token", "kvm01"), "kvmd/v1/credential/host/kvm01/token"),
    (CommandTopic(Verb.CANCEL), "kvmd/v1/command/all/cancel"),
    (CommandTopic(Verb.RECHECK, "kvm01"), "kvmd/v1/command/host/kvm01/recheck"),
    (HostTopic("kvm01"), "kvmd/v1/status/kvm01/host"),
    (ProbeTopic("kvm01", "deb12"), "kvmd/v1/status/kvm01/probe/deb12"),
    (ReplicaTopic("kvm01", "fast", "deb12"), "kvmd/v1/status/kvm01/replica/fast/deb12"),
    (GcTopic("kvm01"), "kvmd/v1/status/kvm01/gc"),
    (MachineTopic("kvm01", "vm1"), "kvmd/v1/status/kvm01/machine/vm1"),
    (CredentialStatusTopic("kvm01", "ca"), "kvmd/v1/status/kvm01/credential/ca"),
    (ReceiptTopic("kvm01", "a" * 128), "kvmd/v1/status/kvm01/receipt/" + "a" * 128),
    (ProgressTopic("kvm01", "fast", "deb12"), "kvmd/v1/status/kvm01/progress/fast/deb12"),
]
BAD_LEVELS = ["", "+", "#", "a+", "a#", "a\0b", "a b", "a" * 64, ".x", "\u00e4", "$SYS"]


@pytest.mark.parametrize(("topic", "text"), PINNED)
def test_topics_are_spelled_as_the_contract_says(topic: Topic, text: str) -> None:
    assert Topics().build(topic) == text
    assert Topics().parse(text) == topic


def test_the_pinned_list_names_every_kind_of_topic() -> None:
    assert {type(topic) for topic, _ in PINNED} == {*get_args(EventTopic), *get_args(StatusTopic)}


@given(topics, st.lists(names, min_size=1, max_size=3).map("/".join))
def test_what_is_built_is_parsed_again(topic: Topic, prefix: str) -> None:
    under = Topics(prefix)
    assert under.parse(under.build(topic)) == topic


@given(topics, topics)
def test_different_topics_have_different_texts(one: Topic, other: Topic) -> None:
    assert (Topics().build(one) == Topics().build(other)) == (one == other)


@given(st.text() | st.lists(st.text(max_size=5)).map(lambda levels: "kvmd/v1/" + "/".join(levels)))
@example("kvmd/v1")
@example("kvmd/v1/")
@example("kvmd/v1/status/kvm01")
def test_parse_never_raises_and_reads_only_what_it_would_build(text: str) -> None:
    topic = Topics().parse(text)
    assert topic is None or Topics().build(topic) == text


@pytest.mark.parametrize(("topic", "text"), PINNED)
@pytest.mark.parametrize("bad", BAD_LEVELS)
def test_a_level_that_is_no_name_makes_the_topic_none_of_ours(topic: Topic, text: str, bad: str) -> None:
    levels = text.split("/")
    for index in range(2, len(levels)):
        changed = "/".join([*levels[:index], bad, *levels[index + 1 :]])
        if not (isinstance(topic, ReceiptTopic) and index == len(levels) - 1 and bad == "a" * 64):
            assert Topics().parse(changed) is None, changed


@pytest.mark.parametrize(
    "text",
    [
        "kvmd/v2/register/deb12",
        "Kvmd/v1/register/deb12",
        "/kvmd/v1/register/deb12",
        "kvmd/v1/register/deb12/",
        "kvmd/v1/register/deb12/more",
        "kvmd/v1/register",
        "kvmd/v1/deploy/deb12",
        "kvmd/v1/deploy/host/kvm01",
        "kvmd/v1/deploy/some/kvm01/web",
        "kvmd/v1/command/all/destroy",
        "kvmd/v1/command/all/CANCEL",
        "kvmd/v1/status/kvm01/replica/deb12",
        "kvmd/v1/status/kvm01/unknown/x",
        "$SYS/broker/uptime",
    ],
)
def test_near_misses_are_none_of_ours(text: str) -> None:
    assert Topics().parse(text) is None


@pytest.mark.parametrize("prefix", ["", "/", "a/", "/a", "a//b", "a/+", "#", "a b", "$SYS/x", "a\0", "\u00e4"])
def test_a_prefix_is_a_plain_path_of_names(prefix: str) -> None:
    with pytest.raises(WireError, match="topic prefix") as caught:
        Topics(prefix)
    assert caught.value.code is FailureCode.EVENT_SCHEMA
    assert "mqtt.prefix" in caught.value.hint


def matches(topic_filter: str, topic: str) -> bool:
    """Match as a broker does, a filter that has no ``#``."""
    pairs = list(itertools.zip_longest(topic_filter.split("/"), topic.split("/")))
    return all(wanted in {"+", level} and level is not None for wanted, level in pairs)


def overlap(one: str, other: str) -> bool:
    pairs = list(itertools.zip_longest(one.split("/"), other.split("/")))
    return all(a is not None and b is not None and (a == b or "+" in {a, b}) for a, b in pairs)


@given(names | st.sampled_from(["all", "host", "register", "deploy"]))
def test_no_two_filters_of_a_host_overlap(host: str) -> None:
    filters = Topics().event_filters(host)
    assert not [pair for pair in itertools.combinations(filters, 2) if overlap(*pair)]


@given(names | st.just("+"))
def test_no_two_filters_of_a_controller_overlap(template: str) -> None:
    topics = Topics()
    filters = (
        *topics.host_filters(),
        *topics.wanted_filters(template),
        *topics.outcome_filters(template),
        *topics.progress_filters(template),
        *topics.receipt_filters(),
        *topics.credential_filters(),
    )
    assert not [pair for pair in itertools.combinations(filters, 2) if overlap(*pair)]
    assert set(topics.retained_filters()) <= {*filters, *topics.wanted_filters(), *topics.outcome_filters()}


@given(status_topics)
def test_a_controller_hears_each_status_it_reads_once(topic: StatusTopic) -> None:
    own = (*Topics().progress_filters(), *Topics().receipt_filters(), *Topics().credential_filters())
    heard = [one for one in (*Topics().retained_filters(), *own) if matches(one, Topics().build(topic))]
    assert len(heard) == (0 if isinstance(topic, MachineTopic | GcTopic) else 1)


@given(topics, names, st.booleans())
def test_a_host_hears_exactly_the_events_that_can_be_meant_for_it(topic: Topic, host: str, mine: bool) -> None:  # noqa: FBT001 - drawn by hypothesis
    if mine and isinstance(topic, DeployTopic):
        topic = DeployTopic(topic.deployment, host)
    heard = [f for f in Topics().event_filters(host) if matches(f, Topics().build(topic))]
    match topic:
        case RegisterTopic() | DeployTopic(host=None) | CommandTopic(host=None) | CredentialTopic(host=None):
            assert len(heard) == 1
        case DeployTopic(host=addressed) | CommandTopic(host=addressed) | CredentialTopic(host=addressed):
            assert len(heard) == (addressed == host)
        case _:
            assert not heard
