"""The session's state machine: every state with every input, and the ways that lead through it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmd.core.image import HEAD_SIZE, ImagePolicy, inspect_head
from kvmd.core.placement import Stored
from kvmd.core.retry import ATTEMPT_CAP_S
from kvmd.core.session import (
    Absent,
    Admitting,
    Broken,
    Cancelled,
    CancelRequested,
    CheckUnused,
    Commit,
    Committed,
    Committing,
    Convert,
    Converted,
    Converting,
    Discard,
    Downloading,
    Effect,
    Failed,
    Fetch,
    Fetched,
    Input,
    Inspect,
    LookedUp,
    LookUp,
    Probe,
    Probed,
    Probing,
    Queued,
    Ready,
    RemovalStarted,
    Remove,
    Removed,
    Removing,
    Seal,
    Sealed,
    Started,
    State,
    Step,
    Terms,
    Verifying,
    Waiting,
)
from kvmd.core.transitions import IllegalTransitionError, step
from kvmwire.codes import FailureCode
from kvmwire.images import ImageFormat
from kvmwire.status import Failure
from tests.kvmd.core.session_values import (
    IMAGE,
    INPUTS,
    STATES,
    TERMS,
    broken,
    inputs,
    placement,
    states,
    stored,
    terms,
)
from tests.kvmd.core.strategies import FINAL, NOW, RETRYABLE, digest, failure
from tests.support import images

RESTING = (Queued, Waiting, Ready, Failed, Cancelled, Absent)
RUNNING = (Admitting, Probing, Downloading, Verifying, Converting, Committing, Removing)
LEGAL: dict[type[Input], tuple[type[State], ...]] = {
    Started: RESTING,
    RemovalStarted: RESTING,
    LookedUp: (Admitting,),
    Probed: (Probing,),
    Fetched: (Downloading,),
    Sealed: (Verifying,),
    Converted: (Converting,),
    Committed: (Committing,),
    Removed: (Removing,),
    Broken: RUNNING,
    CancelRequested: (Queued, Admitting, Probing, Downloading, Verifying, Converting, Waiting, Failed, Cancelled),
}


@pytest.mark.parametrize("happened", INPUTS, ids=lambda one: type(one).__name__)
@pytest.mark.parametrize("state", STATES, ids=lambda one: type(one).__name__)
def test_every_state_takes_the_inputs_that_can_happen_in_it_and_no_others(state: State, happened: Input) -> None:
    if isinstance(state, LEGAL[type(happened)]):
        after, effects = step(state, happened, TERMS)
        assert isinstance(after, State)
        assert all(isinstance(effect, Effect) for effect in effects)
        return
    with pytest.raises(IllegalTransitionError, match=f"{type(happened).__name__} in {type(state).__name__}"):
        step(state, happened, TERMS)


@given(states, inputs, terms)
def test_whatever_they_hold_a_step_is_legal_or_a_defect_of_the_engine(
    state: State, happened: Input, wanted: Terms
) -> None:
    try:
        after, effects = step(state, happened, wanted)
    except IllegalTransitionError:
        is_other_file = isinstance(happened, Committed) and isinstance(state, Committing)
        assert is_other_file or not isinstance(state, LEGAL[type(happened)])
        return
    assert isinstance(state, LEGAL[type(happened)])
    assert bool(effects) or not isinstance(after, RUNNING)


@given(states, inputs, terms)
def test_a_running_state_ends_its_effects_with_the_one_that_tells_what_happens_next(
    state: State, happened: Input, wanted: Terms
) -> None:
    try:
        after, effects = step(state, happened, wanted)
    except IllegalTransitionError:
        return
    last: dict[type[State], type[Effect]] = {
        Admitting: LookUp,
        Probing: Probe,
        Downloading: Fetch,
        Verifying: Seal,
        Converting: Convert,
        Committing: Commit,
        Removing: Remove,
    }
    for effect in effects[:-1]:
        assert isinstance(effect, Discard | Inspect)
    if effects:
        assert isinstance(effects[-1], last.get(type(after), Discard))


def _walk(happened: Sequence[Input], *, terms: Terms = TERMS, state: State | None = None) -> list[Step]:
    now: State = state if state is not None else Queued()
    steps: list[Step] = []
    for one in happened:
        now, effects = step(now, one, terms)
        steps.append((now, effects))
    return steps


def _end(happened: Sequence[Input], *, terms: Terms = TERMS, state: State | None = None) -> Step:
    return _walk(happened, terms=terms, state=state)[-1]


FRESH: tuple[Input, ...] = (Started(), LookedUp(None), Probed(4096))
GOOD = stored("a")
WRONG = stored("b")


def test_the_straight_way_from_queued_to_ready() -> None:
    committed = placement("a")
    assert _walk([*FRESH, Fetched(), Sealed(GOOD), Committed(committed)]) == [
        (Admitting(), (LookUp(),)),
        (Probing(), (Probe(),)),
        (Downloading(0, 0, is_alone=False, size=4096), (Fetch(is_alone=False),)),
        (Verifying(0, 0, is_alone=False), (Seal(),)),
        (Committing(0, GOOD, IMAGE), (Inspect(IMAGE), Commit())),
        (Ready(committed, IMAGE, is_adopted=False), ()),
    ]


def test_without_a_promised_checksum_what_was_sealed_becomes_ready() -> None:
    state, _ = _end([*FRESH, Fetched(), Sealed(WRONG), Committed(placement("b"))], terms=replace(TERMS, expected=None))
    assert state == Ready(placement("b"), IMAGE, is_adopted=False)


def test_a_file_with_the_promised_checksum_is_adopted() -> None:
    assert _end([Started(), LookedUp(GOOD)]) == (Ready(GOOD.placement, IMAGE, is_adopted=True), ())


def test_kvmds_own_file_is_found_again_and_not_adopted() -> None:
    state, _ = _end([Started(), LookedUp(GOOD, is_ours=True)])
    assert state == Ready(GOOD.placement, IMAGE, is_adopted=False)


def test_without_a_checksum_the_recorded_one_finds_the_file_again() -> None:
    state, _ = _end(
        [Started(), LookedUp(GOOD, is_ours=True, recorded=digest("a"))], terms=replace(TERMS, expected=None)
    )
    assert state == Ready(GOOD.placement, IMAGE, is_adopted=False)


@pytest.mark.parametrize(
    ("found", "expected", "code"),
    [
        (LookedUp(WRONG), digest("a"), FailureCode.EXISTS),
        (LookedUp(WRONG, is_ours=True, kept_for="template deb13"), digest("a"), FailureCode.EXISTS),
        (LookedUp(WRONG, recorded=digest("b")), digest("a"), FailureCode.EXISTS),
        (LookedUp(GOOD), None, FailureCode.EXISTS),
        (LookedUp(WRONG, is_ours=True, recorded=digest("a")), digest("a"), FailureCode.CHECKSUM_MISMATCH),
        (LookedUp(WRONG, is_ours=True, recorded=digest("a")), None, FailureCode.CHECKSUM_MISMATCH),
    ],
)
def test_a_file_with_other_content_is_left_alone(found: LookedUp, expected: object, code: FailureCode) -> None:
    wanted = TERMS if expected is not None else replace(TERMS, expected=None)
    state, effects = _end([Started(), found], terms=wanted)
    assert isinstance(state, Failed)
    assert state.failure.code is code
    assert "left as it is" in state.failure.message
    assert effects == ()


def test_an_adopted_file_is_inspected_like_a_downloaded_one() -> None:
    state, effects = _end([Started(), LookedUp(GOOD)], terms=replace(TERMS, format=ImageFormat.QCOW2))
    assert isinstance(state, Failed)
    assert state.failure.code is FailureCode.FORMAT_MISMATCH
    assert effects == ()


def test_a_wrong_checksum_of_the_only_source_is_final_and_keeps_nothing() -> None:
    state, effects = _end([*FRESH, Fetched(), Sealed(WRONG)])
    assert isinstance(state, Failed)
    assert state.failure.code is FailureCode.CHECKSUM_MISMATCH
    assert str(digest("a")) in state.failure.message
    assert str(digest("b")) in state.failure.message
    assert effects == (Discard(),)


@pytest.mark.parametrize(("sources", "rounds"), [(2, 2), (3, 3), (10, 3)])
def test_a_wrong_checksum_of_a_mix_gets_a_few_more_rounds_with_one_source_alone(sources: int, rounds: int) -> None:
    several = replace(TERMS, sources=sources)
    happened: list[Input] = [*FRESH, Fetched(), Sealed(WRONG)]
    for restarts in range(1, rounds + 1):
        assert _end(happened, terms=several) == (Probing(0, restarts, is_alone=True), (Discard(), Probe()))
        _, effects = _end([*happened, Probed(4096)], terms=several)
        assert effects == (Fetch(is_alone=True),)
        good, _ = _end([*happened, Probed(4096), Fetched(), Sealed(GOOD), Committed(placement("a"))], terms=several)
        assert isinstance(good, Ready)
        happened += [Probed(4096), Fetched(), Sealed(WRONG)]
    state, effects = _end(happened, terms=several)
    assert isinstance(state, Failed)
    assert state.failure.code is FailureCode.CHECKSUM_MISMATCH
    assert effects == (Discard(),)


@pytest.mark.parametrize(("asked_s", "least_s", "most_s"), [(0.0, 0.2, 2), (120.0, 120, 132), (1e9, 600, 660)])
def test_the_pause_that_a_source_asks_for_is_honoured_up_to_its_cap(
    asked_s: float, least_s: float, most_s: float
) -> None:
    for jitter in (0.0, 0.5, 1.0):
        state, _ = step(Probing(0), replace(broken(jitter=jitter), retry_after_s=asked_s), TERMS)
        assert isinstance(state, Waiting)
        assert least_s <= (state.until - NOW).total_seconds() <= most_s


@pytest.mark.parametrize(
    ("head", "wanted", "code"),
    [
        (images.iso(2 << 20), replace(TERMS, format=ImageFormat.QCOW2), FailureCode.FORMAT_MISMATCH),
        (b"<html>log in</html>", TERMS, FailureCode.FORMAT_MISMATCH),
        (images.qcow2(1 << 30), replace(TERMS, images=ImagePolicy(max_virtual_size=1 << 20)), FailureCode.VIRTUAL_SIZE),
        (b"QFI\xfb" + bytes(100), TERMS, FailureCode.IMAGE_UNSAFE),
    ],
)
def test_verified_bytes_that_are_no_acceptable_image_are_discarded(
    head: bytes, wanted: Terms, code: FailureCode
) -> None:
    seen = Stored(GOOD.placement, inspect_head(head[:HEAD_SIZE], size=len(head)))
    state, effects = _end([*FRESH, Fetched(), Sealed(seen)], terms=wanted)
    assert isinstance(state, Failed)
    assert state.failure.code is code
    assert effects == (Discard(),)


def test_another_file_than_the_sealed_one_cannot_be_committed() -> None:
    with pytest.raises(IllegalTransitionError, match="Committed in Committing"):
        step(Committing(0, GOOD, IMAGE), Committed(placement("b")), TERMS)


def test_an_entity_that_changed_once_is_fetched_anew_from_nothing() -> None:
    changed = broken(FailureCode.ENTITY_CHANGED, has_progressed=True)
    assert _end([*FRESH, changed]) == (Probing(0, 1), (Discard(), Probe()))
    state, _ = _end([*FRESH, changed, Probed(4096), Fetched(), Sealed(GOOD), Committed(placement("a"))])
    assert isinstance(state, Ready)


def test_an_entity_that_changed_twice_is_given_up() -> None:
    changed = broken(FailureCode.ENTITY_CHANGED)
    state, effects = _end([*FRESH, changed, Probed(4096), changed])
    assert state == Failed(changed.failure)
    assert effects == (Discard(),)


def test_a_change_in_the_round_of_one_source_alone_is_given_up_too() -> None:
    changed = broken(FailureCode.ENTITY_CHANGED)
    several = replace(TERMS, sources=2)
    state, _ = _end([*FRESH, Fetched(), Sealed(WRONG), Probed(4096), changed], terms=several)
    assert state == Failed(changed.failure)


@pytest.mark.parametrize("code", RETRYABLE)
@pytest.mark.parametrize("state", [s for s in STATES if isinstance(s, RUNNING)], ids=lambda one: type(one).__name__)
def test_what_may_pass_is_waited_for(state: State, code: FailureCode) -> None:
    happened = broken(code)
    after, effects = step(state, happened, TERMS)
    assert isinstance(after, Waiting)
    assert after.failure == happened.failure
    assert NOW < after.until <= NOW + timedelta(seconds=ATTEMPT_CAP_S)
    assert effects == ((Discard(),) if code is FailureCode.IO else ())


@pytest.mark.parametrize("code", [code for code in FINAL if code is not FailureCode.ENTITY_CHANGED])
@pytest.mark.parametrize("state", [s for s in STATES if isinstance(s, RUNNING)], ids=lambda one: type(one).__name__)
def test_what_does_not_pass_is_final(state: State, code: FailureCode) -> None:
    happened = broken(code)
    after, effects = step(state, happened, TERMS)
    assert after == Failed(happened.failure)
    assert effects in {(), (Discard(),)}


@pytest.mark.parametrize(
    ("code", "effects"),
    [
        (FailureCode.SOURCE_EXPIRED, ()),
        (FailureCode.SOURCE_UNREACHABLE, ()),
        (FailureCode.NO_SPACE, ()),
        (FailureCode.IO, (Discard(),)),
        (FailureCode.EXISTS, (Discard(),)),
        (FailureCode.CHECKSUM_MISMATCH, (Discard(),)),
    ],
)
def test_partial_bytes_are_kept_unless_they_cannot_be_trusted_or_used(
    code: FailureCode, effects: tuple[Effect, ...]
) -> None:
    _, ordered = step(Downloading(0, 0, is_alone=False, size=1), broken(code), TERMS)
    assert ordered == effects


@pytest.mark.parametrize("opening", [Started(), RemovalStarted()])
def test_pauses_grow_with_every_failure_in_a_row(opening: Input) -> None:
    state: State = Queued()
    pauses: list[float] = []
    for failed in range(1, 13):
        state, _ = step(state, opening, TERMS)
        state, _ = step(state, broken(FailureCode.IN_USE, jitter=1.0), TERMS)
        assert isinstance(state, Waiting)
        assert state.failures == failed
        pauses.append((state.until - NOW).total_seconds())
    assert pauses == sorted(pauses)
    assert pauses[:3] == [2, 4, 8]
    assert pauses[-1] == ATTEMPT_CAP_S


def test_bytes_that_were_gained_and_kept_make_it_the_first_failure_again() -> None:
    state, _ = step(Downloading(7, 0, is_alone=False, size=1), broken(has_progressed=True), TERMS)
    assert isinstance(state, Waiting)
    assert state.failures == 1


def test_bytes_that_were_gained_and_thrown_away_are_no_progress() -> None:
    lost = broken(FailureCode.IO, has_progressed=True)
    state, effects = step(Verifying(7, 0, is_alone=False), lost, TERMS)
    assert isinstance(state, Waiting)
    assert (state.failures, effects) == (8, (Discard(),))


def test_the_failures_before_are_carried_from_state_to_state() -> None:
    way = _walk([*FRESH, Fetched(), Sealed(GOOD)], state=Queued(3))
    assert [getattr(state, "failures", None) for state, _ in way] == [3, 3, 3, 3, 3]


@pytest.mark.parametrize("state", [Ready(placement("a"), IMAGE, is_adopted=False), Failed(failure(FailureCode.EMPTY))])
def test_a_session_begun_anew_has_no_failures_before(state: State) -> None:
    assert step(state, Started(), TERMS) == (Admitting(0), (LookUp(),))


@pytest.mark.parametrize("left_s", [0, 1])
def test_no_attempt_is_waited_for_beyond_the_deadline(left_s: int) -> None:
    late = replace(TERMS, deadline=NOW + timedelta(seconds=left_s))
    happened = broken(jitter=1.0)
    state, effects = step(Probing(0), happened, late)
    assert isinstance(state, Failed)
    assert state.failure.code is FailureCode.DEADLINE
    assert happened.failure.message in state.failure.message
    assert effects == (Discard(),)


def test_an_attempt_before_the_deadline_is_waited_for() -> None:
    state, _ = step(Probing(0), broken(jitter=1.0), replace(TERMS, deadline=NOW + timedelta(seconds=2)))
    assert isinstance(state, Waiting)
    assert state.until == NOW + timedelta(seconds=2)


@pytest.mark.parametrize(
    "state", [s for s in STATES if isinstance(s, LEGAL[CancelRequested])], ids=lambda one: type(one).__name__
)
def test_a_cancelled_session_says_who_wanted_it_and_keeps_no_partial_data(state: State) -> None:
    after, effects = step(state, CancelRequested("maintenance"), TERMS)
    assert isinstance(after, Cancelled)
    assert after.failure.code is FailureCode.CANCELLED
    assert "maintenance" in after.failure.message
    assert effects == (Discard(),)


@pytest.mark.parametrize("state", [s for s in STATES if isinstance(s, RESTING)], ids=lambda one: type(one).__name__)
def test_a_removal_takes_partial_and_finished_data_away(state: State) -> None:
    (removing, effects), (after, done) = _walk([RemovalStarted(), Removed("left in place")], state=state)
    assert isinstance(removing, Removing)
    assert effects == (Discard(), Remove())
    assert (after, done) == (Absent("left in place"), ())


def test_an_absent_replica_can_be_wished_for_again() -> None:
    state, _ = _end([RemovalStarted(), Removed(), *FRESH, Fetched(), Sealed(GOOD), Committed(placement("a"))])
    assert isinstance(state, Ready)


@given(st.binary(max_size=HEAD_SIZE), st.integers(0, 1 << 40), st.sampled_from(ImageFormat))
def test_whatever_was_downloaded_is_judged(head: bytes, size: int, wanted: ImageFormat) -> None:
    seen = Stored(replace(GOOD.placement, size=size), inspect_head(head, size=size))
    state, effects = step(Verifying(0, 0, is_alone=False), Sealed(seen), replace(TERMS, format=wanted))
    assert isinstance(state, Committing | Failed)
    if isinstance(state, Committing):
        assert state.image == inspect_head(head, size=size)
    else:
        assert isinstance(state.failure, Failure)
        assert effects == (Discard(),)


def test_a_damaged_volume_that_is_to_be_replaced_is_fetched_anew_unless_something_uses_it() -> None:
    damaged = placement("b")
    state, effects = step(Admitting(), LookedUp(None, damaged=damaged), TERMS)
    assert state == Probing(0, replaces=damaged)
    assert effects == (CheckUnused(damaged), Probe())
