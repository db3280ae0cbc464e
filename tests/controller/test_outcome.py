"""How far a host is, and the exit code that follows."""

from __future__ import annotations

import pytest

from controller.outcome import Phase, Standing, Wish, exit_of, probe_standing, replica_standing
from kvmwire.codec import encode_status
from kvmwire.codes import CODES, Exit, FailureCode
from kvmwire.events import Ensure
from kvmwire.status import HostState, Outcome, ProbeStatus, Receipt, ReplicaState, ReplicaStatus, Verdict
from kvmwire.topics import HostTopic, ProbeTopic, ReplicaTopic, Topic
from tests.controller.test_fleet import NOW, fleet_of, host_status, replica_status

ONLINE: tuple[Topic, bytes] = (HostTopic("kvm01"), host_status("kvm01"))
REPLICA = ReplicaTopic("kvm01", "default", "deb12")


def wish(ensure: Ensure = Ensure.PRESENT) -> Wish:
    return Wish("kvm01", "default", "deb12", 5, "e1", ensure)


def receipt(outcome: Outcome, code: FailureCode | None = None) -> dict[str, Receipt]:
    return {"kvm01": Receipt(event="e1", host="kvm01", outcome=outcome, topic="t", code=code, time=NOW)}


def standing(state: ReplicaState, generation: int = 5, ensure: Ensure = Ensure.PRESENT) -> Standing:
    return replica_standing(wish(ensure), fleet_of(ONLINE, (REPLICA, replica_status(generation, state))), {})


@pytest.mark.parametrize("state", [state for state in ReplicaState if not state.is_settled])
def test_a_running_replica_is_pending(state: ReplicaState) -> None:
    assert standing(state).phase is Phase.PENDING


@pytest.mark.parametrize(
    ("state", "ensure", "phase"),
    [
        (ReplicaState.READY, Ensure.PRESENT, Phase.DONE),
        (ReplicaState.ABSENT, Ensure.ABSENT, Phase.DONE),
        (ReplicaState.FAILED, Ensure.PRESENT, Phase.FAILED),
        (ReplicaState.FAILED, Ensure.ABSENT, Phase.FAILED),
        (ReplicaState.CANCELLED, Ensure.PRESENT, Phase.FAILED),
    ],
)
def test_a_settled_replica_is_done_only_as_asked_for(state: ReplicaState, ensure: Ensure, phase: Phase) -> None:
    assert standing(state, ensure=ensure).phase is phase


def test_an_older_status_says_nothing() -> None:
    assert standing(ReplicaState.READY, generation=4).phase is Phase.PENDING


def test_a_newer_wish_of_somebody_else_settles_it() -> None:
    assert standing(ReplicaState.READY, generation=6).phase is Phase.DONE
    other = standing(ReplicaState.ABSENT, generation=6)
    assert (other.phase, other.code) == (Phase.FAILED, FailureCode.EVENT_STALE)


def test_a_refusal_settles_it_without_any_status() -> None:
    refused = replica_standing(wish(), fleet_of(ONLINE), receipt(Outcome.REFUSED, FailureCode.UNSUPPORTED))
    assert (refused.phase, refused.code) == (Phase.FAILED, FailureCode.UNSUPPORTED)
    assert replica_standing(wish(), fleet_of(ONLINE), receipt(Outcome.ACCEPTED)).phase is Phase.PENDING


def test_a_host_that_does_not_listen_is_missing() -> None:
    gone = (HostTopic("kvm01"), host_status("kvm01", HostState.OFFLINE))
    offline = replica_standing(wish(), fleet_of(gone), {})
    assert (offline.state, offline.message) == ("offline", "it gets the event when it comes.")
    assert replica_standing(wish(), fleet_of(), {}).state == "unknown"
    running = fleet_of(gone, (REPLICA, replica_status(5, ReplicaState.DOWNLOADING)))
    assert replica_standing(wish(), running, {}).phase is Phase.MISSING


def test_a_waiting_replica_tells_code_and_next_attempt() -> None:
    status = ReplicaStatus(
        template="deb12",
        generation=5,
        pool="default",
        state=ReplicaState.WAITING,
        code=FailureCode.NO_SPACE,
        since=NOW,
        next_attempt=NOW,
    )
    shown = replica_standing(wish(), fleet_of(ONLINE, (REPLICA, encode_status(status))), {})
    assert (shown.phase, shown.code, shown.next_attempt) == (Phase.PENDING, FailureCode.NO_SPACE, NOW)


@pytest.mark.parametrize(
    ("verdict", "phase"),
    [
        (Verdict.GOOD, Phase.DONE),
        (Verdict.DEGRADED, Phase.DONE),
        (Verdict.UNCHECKED, Phase.DONE),
        (Verdict.BAD, Phase.FAILED),
    ],
)
def test_only_a_bad_verdict_fails(verdict: Verdict, phase: Phase) -> None:
    status = ProbeStatus(template="deb12", generation=5, verdict=verdict, checked=NOW)
    fleet = fleet_of(ONLINE, (ProbeTopic("kvm01", "deb12"), encode_status(status)))
    assert probe_standing("kvm01", "deb12", 5, fleet, {}).phase is phase
    assert probe_standing("kvm01", "deb12", 6, fleet, {}).phase is Phase.PENDING


@pytest.mark.parametrize("code", list(FailureCode))
def test_the_exit_follows_from_the_code(code: FailureCode) -> None:
    done = Standing("a", Phase.DONE, "ready")
    assert exit_of([done, Standing("b", Phase.FAILED, "failed", code=code)]) is CODES[code].exit


def test_the_worst_decides() -> None:
    failed = Standing("a", Phase.FAILED, "failed", code=FailureCode.NO_SPACE)
    wrong = Standing("b", Phase.FAILED, "failed", code=FailureCode.CHECKSUM_MISMATCH)
    assert exit_of([failed, wrong]) is Exit.VERIFICATION
    assert exit_of([failed, Standing("c", Phase.PENDING, "sent")]) is Exit.UNREACHABLE
    assert exit_of([Standing("c", Phase.DONE, "ready")]) is Exit.DONE
    assert exit_of([]) is Exit.DONE


def test_a_stale_event_that_no_status_explains_settles_it() -> None:
    stale = replica_standing(wish(), fleet_of(ONLINE), receipt(Outcome.STALE, FailureCode.EVENT_STALE))
    assert (stale.phase, stale.code) == (Phase.FAILED, FailureCode.EVENT_STALE)
