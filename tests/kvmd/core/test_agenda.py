"""What to do next: bounded, in order, one session for one volume or content, and each in its time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmd.core.agenda import Agenda, agenda
from kvmd.core.desired import Desired, HostRecord, Replica, ReplicaKey, Stamp, TemplateRecord
from kvmwire.codec import content_of
from kvmwire.events import DeployData, RegisterData
from kvmwire.status import ReplicaState, ReplicaStatus
from tests.kvmd.core.strategies import NOW, digest


def _wish(
    template: str,
    *,
    order: int = 0,
    pool: str = "default",
    name: str | None = None,
    priority: int = 0,
    letter: str = "",
) -> Desired:
    record = RegisterData(template=template, url="https://origin/x", checksum=str(digest(letter)) if letter else None)
    data = DeployData(deployment="d", template=record, pool=pool, name=name, priority=priority)
    return Desired(Stamp(1, content_of(data), "e"), data, order)


def _record(wishes: Iterable[Desired]) -> HostRecord:
    return HostRecord(desired={one.key: one for one in wishes})


def _stand(record: HostRecord, key: ReplicaKey, state: ReplicaState, *, made_for: str | None = None) -> None:
    fingerprint = made_for if made_for is not None else record.desired[key].fingerprint(record.templates)
    status = ReplicaStatus(template=key.template, generation=1, pool=key.pool, state=state, since=NOW)
    record.replicas[key] = Replica(status, fingerprint)


def _agenda(
    record: HostRecord,
    *,
    running: Iterable[ReplicaKey] = (),
    due: dict[ReplicaKey, float] | None = None,
    now: float = 100.0,
    slots: int = 4,
) -> Agenda:
    under_way = {key: record.desired[key].aim(record.templates) for key in running}
    return agenda(record, running=under_way, due=due or {}, now=now, slots=slots)


wishes = st.lists(
    st.builds(
        _wish,
        st.sampled_from([f"t{number}" for number in range(8)]),
        order=st.integers(0, 100),
        pool=st.sampled_from(["default", "fast"]),
        name=st.none() | st.sampled_from(["v0", "v1", "v2"]),
        priority=st.integers(-2, 2),
        letter=st.sampled_from(["", "a", "b"]),
    ),
    max_size=16,
)
replica_states = st.just(ReplicaState.WAITING) | st.sampled_from(ReplicaState)


@dataclass(frozen=True, slots=True)
class Situation:
    """What is wished, what is there, and what runs: for the wish, or for an older or a forgotten one."""

    record: HostRecord
    running: dict[ReplicaKey, str]
    due: dict[ReplicaKey, float]
    slots: int

    @property
    def todo(self) -> Agenda:
        """What is to be done at 100."""
        return agenda(self.record, running=self.running, due=self.due, now=100.0, slots=self.slots)

    def waits(self, key: ReplicaKey) -> bool:
        """Whether it waits for the wish that holds, and its time has not come."""
        replica = self.record.replicas.get(key)
        if replica is None or replica.made_for == "older" or key in self.running:
            return False
        return replica.status.state is ReplicaState.WAITING and self.due.get(key, 0.0) > 100.0


@st.composite
def situations(draw: st.DrawFn) -> Situation:
    record = _record(draw(wishes))
    due: dict[ReplicaKey, float] = {}
    for key in record.desired:
        state = draw(st.none() | replica_states)
        if state is not None:
            _stand(record, key, state, made_for=draw(st.sampled_from([None, "older"])))
        if draw(st.booleans()):
            due[key] = draw(st.floats(0, 200))
    running = {
        key: draw(st.sampled_from([wish.aim({}), "older"]))
        for key, wish in record.desired.items()
        if draw(st.integers(0, 3)) == 0
    }
    if draw(st.booleans()):
        running[ReplicaKey("default", "forgotten")] = "older"
    return Situation(record, running, due, draw(st.integers(0, 8)))


def _clash(one: Desired, other: Desired) -> bool:
    """Whether both want the same name or the same content in one pool."""
    if one.data.pool != other.data.pool:
        return False
    first, second = one.template({}), other.template({})
    checksums = {None if template is None else template.checksum for template in (first, second)}
    return one.data.volume == other.data.volume or (len(checksums) == 1 and None not in checksums)


@given(situations())
def test_there_are_never_more_sessions_than_slots(case: Situation) -> None:
    start = case.todo.start
    assert len(start) <= max(0, case.slots - len(case.running))
    assert not set(start) & case.running.keys()
    assert len(set(start)) == len(start)


@given(situations())
def test_no_two_sessions_work_on_one_volume_or_one_content_of_a_pool(case: Situation) -> None:
    busy = [case.record.desired[key] for key in case.running if key in case.record.desired]
    for key in case.todo.start:
        mine = case.record.desired[key]
        assert not any(_clash(mine, other) for other in busy)
        busy.append(mine)


@given(situations())
def test_sessions_stop_exactly_when_what_they_work_for_is_not_wished_any_more(case: Situation) -> None:
    wanted = {key: wish.aim({}) for key, wish in case.record.desired.items()}
    assert set(case.todo.stop) == {key for key, aim in case.running.items() if wanted.get(key) != aim}


@given(situations())
def test_what_starts_needs_work_and_is_due(case: Situation) -> None:
    for key in case.todo.start:
        replica = case.record.replicas.get(key)
        is_settled = replica is not None and replica.made_for != "older" and replica.status.state.is_settled
        assert not is_settled
        assert not case.waits(key)


@given(situations())
def test_the_wake_up_is_the_first_time_at_which_a_waiting_one_becomes_due(case: Situation) -> None:
    assert case.todo.wake_at == min((case.due[key] for key in case.record.desired if case.waits(key)), default=None)


@given(situations())
def test_no_slot_stays_free_while_something_could_start(case: Situation) -> None:
    start = case.todo.start
    busy = [case.record.desired[key] for key in {*case.running, *start} if key in case.record.desired]
    for key, mine in case.record.desired.items():
        replica = case.record.replicas.get(key)
        is_settled = replica is not None and replica.made_for != "older" and replica.status.state.is_settled
        could = not is_settled and not case.waits(key) and not any(_clash(mine, other) for other in busy)
        assert not could or len(start) == max(0, case.slots - len(case.running))


def test_the_higher_priority_goes_first_and_then_who_came_first() -> None:
    record = _record(
        [
            _wish("late", order=9),
            _wish("early", order=1),
            _wish("urgent", order=20, priority=5),
            _wish("idle", order=0, priority=-5),
        ]
    )
    assert [key.template for key in _agenda(record).start] == ["urgent", "early", "late", "idle"]


def test_a_wish_that_is_made_true_is_left_alone_until_something_new_is_wished() -> None:
    record = _record([_wish("a")])
    key = ReplicaKey("default", "a")
    for state in ReplicaState:
        _stand(record, key, state)
        assert _agenda(record).start == (() if state.is_settled else (key,))
        _stand(record, key, state, made_for="older")
        assert _agenda(record).start == (key,)


def test_a_waiting_replica_starts_in_its_time_and_not_before() -> None:
    record = _record([_wish("a", order=1), _wish("b", order=2), _wish("c", order=3)])
    one, two, three = record.desired
    for key in record.desired:
        _stand(record, key, ReplicaState.WAITING)
    due = {one: 130.0, two: 120.0, three: 140.0}
    assert _agenda(record, due=due) == Agenda((), (), 120.0)
    assert _agenda(record, due=due, now=120.0) == Agenda((two,), (), 130.0)
    assert _agenda(record, due=due, now=130.0) == Agenda((one, two), (), 140.0)
    assert _agenda(record, due=due, now=140.0) == Agenda((one, two, three), (), None)


def test_a_waiting_replica_without_a_time_is_due_now() -> None:
    record = _record([_wish("a")])
    _stand(record, ReplicaKey("default", "a"), ReplicaState.WAITING)
    assert _agenda(record).start == (ReplicaKey("default", "a"),)


def test_a_new_wish_does_not_wait_for_the_time_of_the_old_one() -> None:
    record = _record([_wish("a")])
    key = ReplicaKey("default", "a")
    _stand(record, key, ReplicaState.WAITING, made_for="older")
    assert _agenda(record, due={key: 900.0}).start == (key,)


def test_a_registered_template_wakes_the_wish_that_waited_for_it() -> None:
    data = DeployData(deployment="d", template="deb12")
    record = _record([Desired(Stamp(1, content_of(data), "e"), data, 0)])
    key = ReplicaKey("default", "deb12")
    _stand(record, key, ReplicaState.WAITING)
    assert _agenda(record, due={key: 900.0}) == Agenda((), (), 900.0)
    registered = RegisterData(template="deb12", url="https://origin/x")
    record.templates["deb12"] = TemplateRecord(Stamp(1, content_of(registered), "e"), registered)
    assert _agenda(record, due={key: 900.0}) == Agenda((key,), (), None)


@pytest.mark.parametrize(
    ("one", "other", "together"),
    [
        (_wish("a", name="v"), _wish("b", name="v", order=1), False),
        (_wish("a", name="b"), _wish("b", order=1), False),
        (_wish("a", letter="a"), _wish("b", letter="a", order=1), False),
        (_wish("a", letter="a"), _wish("b", letter="b", order=1), True),
        (_wish("a"), _wish("b", order=1), True),
        (_wish("a", letter="a"), _wish("b", letter="a", pool="fast", order=1), True),
        (_wish("a"), _wish("a", pool="fast", order=1), True),
    ],
)
def test_single_flight_by_volume_and_by_content_in_one_pool(one: Desired, other: Desired, *, together: bool) -> None:
    record = _record([one, other])
    assert _agenda(record).start == ((one.key, other.key) if together else (one.key,))
    assert _agenda(record, running=[one.key]).start == ((other.key,) if together else ())


def test_a_wish_that_must_wait_for_another_does_not_hold_up_the_next() -> None:
    record = _record([_wish("a", letter="a"), _wish("b", letter="a", order=1), _wish("c", order=2)])
    assert [key.template for key in _agenda(record, slots=2).start] == ["a", "c"]


def test_a_session_whose_wish_changed_stops_and_starts_anew_only_when_it_is_gone() -> None:
    record = _record([_wish("a")])
    key = ReplicaKey("default", "a")
    assert agenda(record, running={key: "older"}, due={}, now=0.0, slots=4) == Agenda((), (key,), None)
    assert agenda(record, running={}, due={}, now=0.0, slots=4) == Agenda((key,), (), None)


def test_a_thousand_wishes_end_one_after_another_in_order() -> None:
    record = _record(_wish(f"t{number}", order=number, priority=number % 3) for number in range(1000))
    ended: list[ReplicaKey] = []
    while (todo := _agenda(record, slots=250)).start:
        for key in todo.start:
            _stand(record, key, ReplicaState.READY)
        ended.extend(todo.start)
    expected = sorted(record.desired.values(), key=lambda wish: (-wish.data.priority, wish.order))
    assert ended == [wish.key for wish in expected]


def test_a_cancelled_wish_is_new_work() -> None:
    record = _record([_wish("a")])
    key = ReplicaKey("default", "a")
    _stand(record, key, ReplicaState.READY)
    record.desired[key] = replace(record.desired[key], is_cancelled=True, reason="maintenance")
    assert _agenda(record).start == (key,)
