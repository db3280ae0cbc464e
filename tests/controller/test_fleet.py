"""The view: whatever comes on different topics may come in any order."""

from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from controller.fleet import EventChange, Fleet
from controller.publish import make_event
from kvmwire.codec import encode_event, encode_status
from kvmwire.events import CommandData, DeployData, Ensure, EventData, HostLabels, RegisterData
from kvmwire.status import (
    HostState,
    HostStatus,
    MachineState,
    MachineStatus,
    ProbeStatus,
    Progress,
    ReplicaState,
    ReplicaStatus,
    Verdict,
)
from kvmwire.topics import (
    CommandTopic,
    DeployTopic,
    EventTopic,
    HostTopic,
    MachineTopic,
    ProbeTopic,
    ProgressTopic,
    RegisterTopic,
    ReplicaTopic,
    Topic,
    Topics,
    Verb,
)

TOPICS = Topics()
NOW = datetime(2030, 1, 1, tzinfo=UTC)
RECORD = RegisterData(template="deb12", url="http://o.test/a")
HOSTS = ("kvm01", "kvm02")


def event_of(topic: EventTopic, data: EventData, generation: int | None) -> bytes:
    return encode_event(TOPICS, make_event(topic, data, generation=generation, now=NOW))


def host_status(host: str, state: HostState = HostState.ONLINE, **labels: str) -> bytes:
    return encode_status(HostStatus(host=host, state=state, labels=labels))


def replica_status(generation: int, state: ReplicaState = ReplicaState.READY) -> bytes:
    status = ReplicaStatus(template="deb12", generation=generation, pool="default", state=state, since=NOW)
    return encode_status(status)


def machine_status(
    name: str, state: MachineState = MachineState.RUNNING, *, template: str = "deb12", **more: object
) -> bytes:
    about = {"name": name, "template": template, "pool": "default", "deployment": f"{template}.{name}"}
    return encode_status(MachineStatus.model_validate({**about, "generation": 6, "state": state, "since": NOW, **more}))


def fleet_of(*messages: tuple[Topic, bytes]) -> Fleet:
    fleet = Fleet(TOPICS)
    for topic, payload in messages:
        fleet.take(TOPICS.build(topic), payload)
    return fleet


def contents(fleet: Fleet) -> tuple[object, ...]:
    events = {topic: seen.payload for topic, seen in fleet.events.items()}
    return events, fleet.hosts, fleet.probes, fleet.replicas, fleet.progress, fleet.machines


SUBJECTS: list[tuple[Topic, bytes]] = [
    (RegisterTopic("deb12"), event_of(RegisterTopic("deb12"), RECORD, 5)),
    (DeployTopic("d"), event_of(DeployTopic("d"), DeployData(deployment="d", template=RECORD), 6)),
    (DeployTopic("d", "kvm01"), event_of(DeployTopic("d", "kvm01"), DeployData(deployment="d", template="deb12"), 7)),
    *((HostTopic(host), host_status(host, zone="lab")) for host in HOSTS),
    *((ReplicaTopic(host, "default", "deb12"), replica_status(6, ReplicaState.DOWNLOADING)) for host in HOSTS),
    *(
        (
            ProbeTopic(host, "deb12"),
            encode_status(ProbeStatus(template="deb12", generation=5, verdict=Verdict.GOOD, checked=NOW)),
        )
        for host in HOSTS
    ),
    (ProgressTopic("kvm01", "default", "deb12"), encode_status(Progress(size=9, done=1, bytes_per_second=1))),
    *((MachineTopic(host, "vm1"), machine_status("vm1")) for host in HOSTS),
]


@given(st.permutations(SUBJECTS))
def test_the_order_of_different_subjects_does_not_matter(messages: list[tuple[Topic, bytes]]) -> None:
    assert contents(fleet_of(*messages)) == contents(fleet_of(*SUBJECTS))


@given(st.permutations(SUBJECTS), st.data())
def test_repetitions_do_not_matter(messages: list[tuple[Topic, bytes]], data: st.DataObject) -> None:
    again = data.draw(st.lists(st.sampled_from(SUBJECTS)))
    assert contents(fleet_of(*messages, *again)) == contents(fleet_of(*SUBJECTS))


@given(st.lists(st.integers(1, 50), min_size=1, unique=True))
def test_the_highest_generation_stays(generations: list[int]) -> None:
    topic = RegisterTopic("deb12")
    fleet = fleet_of(*((topic, event_of(topic, RECORD, generation)) for generation in generations))
    assert fleet.generation_of_template("deb12") == max(generations)


@given(st.text(), st.binary())
def test_rubbish_changes_nothing(topic: str, payload: bytes) -> None:
    fleet = fleet_of(*SUBJECTS)
    assert fleet.take(topic, payload) is None
    assert contents(fleet) == contents(fleet_of(*SUBJECTS))


@given(st.sampled_from([topic for topic, _ in SUBJECTS]), st.binary(min_size=1))
def test_rubbish_on_a_topic_of_ours_never_raises(topic: Topic, payload: bytes) -> None:
    fleet = fleet_of(*SUBJECTS)
    fleet.take(TOPICS.build(topic), payload)
    assert set(fleet.hosts) == set(HOSTS)


def test_an_event_without_generation_replaces_what_was_there() -> None:
    topic = RegisterTopic("deb12")
    fleet = fleet_of((topic, event_of(topic, RECORD, 9)), (topic, b'{"url":"http://o.test/new"}'))
    record = fleet.template("deb12")
    assert record is not None
    assert record.urls == ("http://o.test/new",)


def test_an_unreadable_event_is_remembered_with_its_reason() -> None:
    fleet = fleet_of((RegisterTopic("deb12"), b'{"url":"http://o.test/a","typo":1}'))
    assert "typo" in fleet.unreadable[RegisterTopic("deb12")].message
    assert fleet.template("deb12") is None


def test_an_empty_payload_takes_an_event_and_a_status_back() -> None:
    fleet = fleet_of(*SUBJECTS)
    change = fleet.take(TOPICS.build(RegisterTopic("deb12")), b"")
    assert change == EventChange(RegisterTopic("deb12"), None)
    fleet.take(TOPICS.build(ReplicaTopic("kvm01", "default", "deb12")), b"")
    assert [topic.host for topic in fleet.replicas] == ["kvm02"]
    assert fleet.template("deb12") is None


def test_a_tombstone_unregisters() -> None:
    topic = RegisterTopic("deb12")
    gone = event_of(topic, RegisterData(template="deb12", ensure=Ensure.ABSENT), 6)
    fleet = fleet_of(*SUBJECTS, (topic, gone))
    assert (fleet.template("deb12"), fleet.templates()) == (None, {})
    assert fleet.generation_of_template("deb12") == 6


def test_a_last_will_keeps_what_is_known_of_the_host() -> None:
    fleet = fleet_of(
        (HostTopic("kvm01"), host_status("kvm01", zone="lab")),
        (HostTopic("kvm01"), host_status("kvm01", HostState.OFFLINE)),
    )
    assert not fleet.is_online("kvm01")
    assert fleet.hosts["kvm01"].labels == {"zone": "lab"}


def test_progress_ends_with_the_download() -> None:
    topic = ReplicaTopic("kvm01", "default", "deb12")
    fleet = fleet_of(*SUBJECTS, (topic, replica_status(6, ReplicaState.READY)))
    assert fleet.progress == {}


def test_the_audience_of_each_kind_of_event() -> None:
    fleet = fleet_of(
        (HostTopic("kvm01"), host_status("kvm01", zone="east")),
        (HostTopic("kvm02"), host_status("kvm02", HostState.OFFLINE)),
    )

    def audience(topic: EventTopic, data: EventData) -> set[str]:
        return set(fleet.audience(make_event(topic, data, generation=1, now=NOW)))

    everybody = DeployTopic("d")
    assert audience(RegisterTopic("deb12"), RECORD) == {"kvm01", "kvm02"}
    assert audience(everybody, DeployData(deployment="d", template="t")) == {"kvm01", "kvm02"}
    assert audience(everybody, DeployData(deployment="d", template="t", hosts=("kvm09",))) == {"kvm09"}
    labels = HostLabels(labels={"zone": "east"})
    assert audience(everybody, DeployData(deployment="d", template="t", hosts=labels)) == {"kvm01"}
    assert audience(DeployTopic("d", "kvm09"), DeployData(deployment="d", template="t")) == {"kvm09"}
    assert audience(CommandTopic(Verb.CANCEL, "kvm02"), CommandData()) == {"kvm02"}
    assert audience(CommandTopic(Verb.CANCEL), CommandData()) == {"kvm01", "kvm02"}


def test_what_a_revoked_host_has_said_and_says_counts_no_more_until_it_is_let_in_again() -> None:
    fleet, silent = fleet_of(*SUBJECTS), fleet_of()
    fleet.leave_out(HOSTS)
    for topic, payload in SUBJECTS:
        fleet.take(TOPICS.build(topic), payload)
        if isinstance(topic, EventTopic):
            silent.take(TOPICS.build(topic), payload)
    assert contents(fleet) == contents(silent)
    assert fleet.audience(make_event(RegisterTopic("deb12"), RECORD, generation=9, now=NOW)) == frozenset()
    fleet.leave_out([])
    for topic, payload in SUBJECTS:
        fleet.take(TOPICS.build(topic), payload)
    assert contents(fleet) == contents(fleet_of(*SUBJECTS))
