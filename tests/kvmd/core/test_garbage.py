"""What goes and what stays, whatever lies there: never what is in use, never what kvmd did not make, never what is wished."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmd.core.desired import Desired, Former, HostRecord, MachineWish, Replica, ReplicaKey, Stamp, TemplateRecord
from kvmd.core.garbage import (
    FRESH,
    GcPolicy,
    Item,
    PoolContents,
    Remnant,
    Verdict,
    given_up,
    in_question,
    survey,
    without,
)
from kvmd.core.placement import Placement
from kvmwire.events import DeployData, Ensure, Machine, RegisterData
from kvmwire.status import GcKind, ReplicaState, ReplicaStatus
from tests.kvmd.core.strategies import NOW, digest

DAY = timedelta(days=1)
GIB = 1 << 30
CAUTIOUS = GcPolicy(staging_ttl=30 * DAY)
STRICT = GcPolicy(staging_ttl=30 * DAY, unused=90 * DAY)


def placement(name: str, *, inode: int = 1) -> Placement:
    return Placement(f"/pool/{name}", 1, inode, GIB, 3, digest())


def wish(template: str = "deb12", *, name: str | None = None, ensure: Ensure = Ensure.PRESENT, at: int = 1) -> Desired:
    record = RegisterData(template=template, url="https://example.org/image", checksum=str(digest()))
    data = DeployData(deployment="d", template=record, name=name, ensure=ensure)
    return Desired(Stamp(at, "c" * 16, "e"), data, 0)


def replica(
    template: str = "deb12",
    *,
    state: ReplicaState = ReplicaState.READY,
    used: timedelta = DAY,
    name: str | None = None,
    formers: Sequence[str] = (),
    wished: Desired | None = None,
    is_ours: bool = True,
) -> Replica:
    wished = wished or wish(template)
    status = ReplicaStatus(
        template=template, generation=1, pool="default", state=state, since=NOW - 365 * DAY, last_used=NOW - used
    )
    return Replica(
        status,
        wished.fingerprint({}),
        placement=placement(name or template),
        is_ours=is_ours,
        formers=tuple(Former(placement(one), NOW - DAY) for one in formers),
    )


def record_of(*replicas: Replica, wishes: Sequence[Desired] | None = None) -> HostRecord:
    wished = [wish(one.key.template) for one in replicas] if wishes is None else wishes
    return HostRecord(replicas={one.key: one for one in replicas}, desired={one.key: one for one in wished})


def judged(
    record: HostRecord,
    policy: GcPolicy = CAUTIOUS,
    *,
    users: Mapping[str, Sequence[str]] | None = None,
    remnants: Sequence[Remnant] = (),
    available: int | None = None,
) -> Mapping[str, Item]:
    pools = {"default": PoolContents(tuple(remnants), available)}
    asked = dict.fromkeys(in_question(record, pools, policy=policy, now=NOW), ()) if users is None else users
    return {one.path: one for one in survey(record, pools, policy=policy, users=asked, now=NOW)}


def goes(items: Mapping[str, Item]) -> set[str]:
    return {path.rpartition("/")[2] for path, one in items.items() if one.verdict is Verdict.DELETE}


def test_what_is_deployed_stays_for_ever_unless_the_host_has_a_policy() -> None:
    record = record_of(replica(used=3000 * DAY))
    assert goes(judged(record)) == set()
    assert judged(record)["/pool/deb12"].why == "it is deployed"
    found = judged(record, STRICT)["/pool/deb12"]
    assert (found.verdict, "longer than unused_d" in found.why) == (Verdict.DELETE, True)


def test_a_replica_of_a_machine_that_is_wished_stays() -> None:
    record = record_of(replica(used=100 * DAY), replica("iso", used=100 * DAY))
    data = DeployData(deployment="vm1", template="deb12", machine=Machine(name="vm1", cdrom=("iso",)))
    assert data.machine is not None
    record.wished_machines["vm1"] = MachineWish(Stamp(1, "c", "e"), data, data.machine)
    assert {one.why for one in judged(record, STRICT).values()} == {"it is to be used by machine vm1"}


def test_a_volume_of_another_name_goes_when_the_new_one_is_ready() -> None:
    renamed = wish(name="new")
    after = replica(name="new", formers=["old"], wished=renamed)
    assert goes(judged(record_of(after, wishes=[renamed]))) == {"old"}
    waiting = replica(name="new", formers=["old"], wished=renamed, state=ReplicaState.WAITING)
    assert goes(judged(record_of(waiting, wishes=[renamed]))) == set()


def test_so_many_former_volumes_as_the_policy_says_are_kept_the_latest_ones() -> None:
    renamed = wish(name="new")
    record = record_of(replica(name="new", formers=["one", "two", "three"], wished=renamed), wishes=[renamed])
    assert goes(judged(record, replace(CAUTIOUS, keep_generations=2))) == {"one"}


def test_the_volume_of_a_former_name_stays_where_it_is_wished_again() -> None:
    back = wish(name="old", at=2)
    record = record_of(replica(name="new", formers=["old"], wished=wish(name="new")), wishes=[back])
    assert judged(record)["/pool/old"].why == "it is wished again"


def test_a_former_volume_that_another_template_has_stays() -> None:
    renamed = wish(name="new")
    other = replace(replica("twin", name="old"), is_ours=False)
    record = record_of(replica(name="new", formers=["old"], wished=renamed), other, wishes=[renamed, wish("twin")])
    found = [one for one in survey_all(record) if one.kind is GcKind.FORMER]
    assert [one.why for one in found] == ["template twin needs it"]


def survey_all(record: HostRecord) -> Sequence[Item]:
    return survey(record, {"default": PoolContents()}, policy=CAUTIOUS, users={}, now=NOW)


def test_where_space_is_short_the_longest_unused_go_until_there_is_enough() -> None:
    policy = replace(CAUTIOUS, low_space=10 * GIB)
    record = record_of(replica("a", used=5 * DAY), replica("b", used=9 * DAY), replica("c", used=7 * DAY))
    assert goes(judged(record, policy, available=8 * GIB)) == {"b", "c"}
    assert goes(judged(record, policy, available=10 * GIB)) == set()
    assert goes(judged(record, policy)) == set()


def test_want_of_space_takes_nothing_that_was_used_just_now() -> None:
    policy = replace(CAUTIOUS, low_space=10 * GIB)
    assert goes(judged(record_of(replica(used=FRESH / 2)), policy, available=0)) == set()


def test_want_of_space_takes_former_volumes_first_those_that_are_kept_too() -> None:
    policy = replace(CAUTIOUS, low_space=10 * GIB, keep_generations=5)
    renamed = wish(name="new")
    record = record_of(replica(name="new", formers=["old"], wished=renamed, used=9 * DAY), wishes=[renamed])
    assert goes(judged(record, policy, available=9 * GIB)) == {"old"}


def remnant(volume: str, *, age: timedelta, is_active: bool = False) -> Remnant:
    return Remnant(volume, "k" * 16, NOW - age, 5, f"/pool/.kvmd/{volume}", is_active=is_active)


def test_partial_data_goes_when_it_is_old_and_nobody_goes_on_with_it() -> None:
    waiting = replica(state=ReplicaState.WAITING)
    found = judged(
        record_of(waiting, replica("failed", state=ReplicaState.FAILED)),
        remnants=[
            remnant("young", age=29 * DAY),
            remnant("old", age=31 * DAY),
            remnant("active", age=31 * DAY, is_active=True),
            remnant("deb12", age=31 * DAY),
            remnant("failed", age=31 * DAY),
        ],
    )
    assert goes(found) == {"old", "failed"}
    assert found["/pool/.kvmd/deb12"].why == "template deb12 goes on from it"


def test_a_replica_whose_template_is_gone_stays_because_it_could_not_be_fetched_again() -> None:
    data = DeployData(deployment="d", template="deb12")
    by_name = Desired(Stamp(1, "c" * 16, "e"), data, 0)
    record = record_of(replica(used=100 * DAY, wished=by_name), wishes=[by_name])
    tombstone = RegisterData(template="deb12", ensure=Ensure.ABSENT)
    record.templates["deb12"] = TemplateRecord(Stamp(2, "d" * 16, "f"), tombstone)
    assert "not registered any more" in judged(record, STRICT)["/pool/deb12"].why


def test_a_replica_that_was_given_up_is_settled_and_its_volume_is_still_known() -> None:
    before = replica(used=100 * DAY)
    after = given_up(before, "not used", now=NOW)
    assert (after.status.state, after.made_for, after.placement) == (ReplicaState.ABSENT, before.made_for, None)
    assert "not used" in after.status.message
    assert goes(judged(record_of(after))) == {"deb12"}  # a crash before it was deleted
    assert without(after, placement("deb12")).formers == ()


# --- laws ---

names = st.sampled_from(["a", "b", "c"])
spans = st.integers(0, 400).map(lambda days: days * DAY)
policies = st.builds(
    GcPolicy,
    staging_ttl=st.integers(1, 60).map(lambda days: days * DAY),
    keep_generations=st.integers(0, 3),
    unused=st.none() | spans,
    low_space=st.sampled_from([0, GIB, 100 * GIB]),
)


@st.composite
def records(draw: st.DrawFn) -> HostRecord:
    record = HostRecord()
    for template in draw(st.sets(names, min_size=1)):
        wished = wish(template, name=draw(st.none() | names), ensure=draw(st.sampled_from(Ensure)))
        if draw(st.booleans()):
            record.desired[wished.key] = wished
        made = replica(
            template,
            state=draw(st.sampled_from(ReplicaState)),
            used=draw(spans),
            name=wished.data.volume,
            formers=draw(st.lists(st.sampled_from(["f1", "f2", "f3", "a", "b"]), unique=True)),
            wished=draw(st.sampled_from([wished, wish(template, at=9)])),
            is_ours=draw(st.booleans()),
        )
        record.replicas[made.key] = made if draw(st.booleans()) else replace(made, placement=None)
    return record


contents = st.builds(
    PoolContents,
    remnants=st.lists(
        st.builds(remnant, st.sampled_from(["a", "b", "x", "y"]), age=spans, is_active=st.booleans()),
        max_size=4,
    ).map(tuple),
    available=st.none() | st.integers(0, 200 * GIB),
)
everybody = st.dictionaries(
    st.sampled_from([f"/pool/{one}" for one in ("a", "b", "c", "f1", "f2", "f3")]),
    st.sampled_from([(), ("the domain vm1",)]),
)


@given(records(), contents, policies, everybody)
def test_nothing_goes_that_is_in_use_or_that_nobody_could_be_asked_about(
    record: HostRecord, pool: PoolContents, policy: GcPolicy, users: Mapping[str, Sequence[str]]
) -> None:
    for one in survey(record, {"default": pool}, policy=policy, users=users, now=NOW):
        if one.verdict is Verdict.DELETE and one.kind is not GcKind.STAGING:
            assert users.get(one.path) == ()


@given(records(), contents, policies, everybody)
def test_nothing_goes_that_kvmd_did_not_make(
    record: HostRecord, pool: PoolContents, policy: GcPolicy, users: Mapping[str, Sequence[str]]
) -> None:
    ours = {one.placement for one in record.replicas.values() if one.is_ours}
    ours |= {former.placement for one in record.replicas.values() for former in one.formers}
    for one in survey(record, {"default": pool}, policy=policy, users=users, now=NOW):
        if one.verdict is Verdict.DELETE:
            assert one.placement in ours or one.remnant in pool.remnants


@given(records(), contents, policies, everybody)
def test_no_replica_goes_that_is_wished_without_a_policy_for_it(
    record: HostRecord, pool: PoolContents, policy: GcPolicy, users: Mapping[str, Sequence[str]]
) -> None:
    without_policy = replace(policy, unused=None, low_space=0)
    for one in survey(record, {"default": pool}, policy=without_policy, users=users, now=NOW):
        if one.verdict is Verdict.DELETE and one.kind is GcKind.REPLICA:
            assert one.key not in record.desired
        others = {r.placement.path for k, r in record.replicas.items() if r.placement and k != one.key}
        if one.verdict is Verdict.DELETE:
            assert one.path not in others


@given(records(), contents, policies, everybody)
def test_no_partial_data_goes_that_is_young_active_or_waited_for(
    record: HostRecord, pool: PoolContents, policy: GcPolicy, users: Mapping[str, Sequence[str]]
) -> None:
    for one in survey(record, {"default": pool}, policy=policy, users=users, now=NOW):
        if one.remnant is not None and one.verdict is Verdict.DELETE:
            assert not one.remnant.is_active
            assert NOW - one.remnant.modified > policy.staging_ttl


@given(records(), contents, policies)
def test_what_is_asked_about_is_all_that_can_go(record: HostRecord, pool: PoolContents, policy: GcPolicy) -> None:
    pools = {"default": pool}
    asked = set(in_question(record, pools, policy=policy, now=NOW))
    everything = dict.fromkeys([f"/pool/{one}" for one in ("a", "b", "c", "f1", "f2", "f3")], ())
    for one in survey(record, pools, policy=policy, users=everything, now=NOW):
        assert one.verdict is not Verdict.SPARE
        assert one.why
        if one.verdict is Verdict.DELETE and one.remnant is None:
            assert one.path in asked


@given(records(), contents, policies, st.integers(0, 200))
def test_with_more_space_nothing_more_goes(record: HostRecord, pool: PoolContents, policy: GcPolicy, more: int) -> None:
    def gone(available: int) -> set[str]:
        return goes(judged(record, policy, remnants=pool.remnants, available=available))

    assert gone((pool.available or 0) + more * GIB) <= gone(pool.available or 0)


@pytest.mark.parametrize("moment", [NOW, NOW + 1000 * DAY])
def test_pools_that_cannot_be_looked_into_lose_nothing(moment: datetime) -> None:
    assert survey(record_of(replica(used=100 * DAY)), {}, policy=STRICT, users={}, now=moment) == ()


def test_the_key_of_an_item_names_its_replica() -> None:
    assert judged(record_of(replica()))["/pool/deb12"].key == ReplicaKey("default", "deb12")
