"""What is read again at rest, in which order, and what follows."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from kvmd.core.desired import Desired, HostRecord, Replica, ReplicaKey, Stamp
from kvmd.core.placement import Placement
from kvmd.core.scrubbing import next_scrub, scrubbed
from kvmwire.events import DeployData
from kvmwire.status import ReplicaState, ReplicaStatus
from tests.kvmd.core.strategies import NOW, digest

DAY = timedelta(days=1)
PLACEMENT = Placement("/pool/deb12", 1, 2, 4096, 3, digest("a"))


def _replica(template: str = "deb12", *, age: timedelta = DAY, state: ReplicaState = ReplicaState.READY) -> Replica:
    status = ReplicaStatus(
        template=template, generation=1, pool="default", state=state, since=NOW - 9 * DAY, verified=NOW - age
    )
    return Replica(status, "1", placement=PLACEMENT, is_ours=True)


def _record(*replicas: Replica, asked: tuple[str, ...] = ()) -> HostRecord:
    record = HostRecord(replicas={one.key: one for one in replicas})
    for key in record.replicas:
        data = DeployData(deployment="d", template=key.template)
        record.desired[key] = Desired(Stamp(1, "c", "e"), data, 0, scrubs=int(key.template in asked))
    return record


def _next(record: HostRecord, every: timedelta | None = None) -> str | None:
    found = next_scrub(record, now=NOW, every=every, not_before={})
    return found.key.template if found else None


def test_nothing_is_read_unasked_unless_the_settings_say_so() -> None:
    record = _record(_replica(age=100 * DAY))
    assert _next(record) is None
    assert _next(record, every=30 * DAY) == "deb12"
    assert _next(record, every=200 * DAY) is None


def test_what_was_asked_for_comes_first_then_what_was_read_longest_ago() -> None:
    record = _record(_replica("a", age=3 * DAY), _replica("b", age=9 * DAY), _replica("c"), asked=("c",))
    assert _next(record, every=2 * DAY) == "c"
    record.replicas[ReplicaKey("default", "c")] = scrubbed(_replica("c"), PLACEMENT, PLACEMENT, scrubs=1, now=NOW)
    assert _next(record, every=2 * DAY) == "b"


@given(st.sampled_from(ReplicaState))
def test_only_what_is_ready_is_read(state: ReplicaState) -> None:
    assert (_next(_record(_replica(state=state), asked=("deb12",))) is not None) == (state is ReplicaState.READY)


def test_what_could_not_be_read_is_left_alone_for_a_while() -> None:
    record = _record(_replica(), asked=("deb12",))
    later = {ReplicaKey("default", "deb12"): NOW + DAY}
    assert next_scrub(record, now=NOW, every=None, not_before=later) is None
    assert next_scrub(record, now=NOW + DAY, every=None, not_before=later) is not None


def test_a_sound_volume_stays_ready_and_tells_when_it_was_read() -> None:
    after = scrubbed(_replica(), PLACEMENT, PLACEMENT, scrubs=2, now=NOW)
    assert (after.status.state, after.status.verified, after.scrubbed) == (ReplicaState.READY, NOW, 2)
    assert after.status.since == NOW - 9 * DAY


def test_a_changed_volume_fails_with_what_was_expected_and_found() -> None:
    rotten = replace(PLACEMENT, digest=digest("b"))
    after = scrubbed(_replica(), PLACEMENT, rotten, scrubs=1, now=NOW)
    assert (after.status.state, after.status.code) == (ReplicaState.FAILED, "CHECKSUM_MISMATCH")
    assert "changed at rest" in after.status.message
    assert str(digest("a")) in after.status.message
    assert str(digest("b")) in after.status.message
    assert "nobody is known to have written" in after.status.message
    written = scrubbed(_replica(), PLACEMENT, replace(rotten, mtime_ns=4), scrubs=1, now=NOW)
    assert "somebody wrote to it" in written.status.message
    assert after.placement == PLACEMENT


def test_a_missing_volume_fails_and_a_recheck_is_advised() -> None:
    after = scrubbed(_replica(), PLACEMENT, None, scrubs=1, now=NOW)
    assert (after.status.state, after.status.code) == (ReplicaState.FAILED, "CHECKSUM_MISMATCH")
    assert "recheck" in after.status.hint
