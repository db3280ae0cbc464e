"""What is counted of downloads, sessions and events: every byte once, and never more labels than are bounded."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from itertools import accumulate, pairwise

from hypothesis import given
from hypothesis import strategies as st

from kvmd.core.desired import ReplicaKey
from kvmd.core.tally import DURATION_BOUNDS_S, MAX_ORIGINS, OTHER_ORIGINS, Durations, Tally, gained
from kvmwire.codes import FailureCode
from kvmwire.status import Progress, ReplicaState, ReplicaStatus, SourceProgress, SourceState

KEY = ReplicaKey("default", "deb12")
URLS = ("https://a.example/one/disk", "https://a.example/two/disk", "https://b.example:8443/disk")


def progress(*sizes: int, urls: tuple[str, ...] = URLS, **figures: int) -> Progress:
    sources = tuple(
        SourceProgress(url=url, bytes=size, bytes_per_second=0, state=SourceState.ACTIVE)
        for url, size in zip(urls, sizes, strict=False)
    )
    return Progress(done=sum(sizes), bytes_per_second=0, sources=sources, **figures)


def status(state: ReplicaState, code: FailureCode | None = None) -> ReplicaStatus:
    since = datetime(2026, 1, 1, tzinfo=UTC)
    return ReplicaStatus(template="deb12", generation=1, pool="default", state=state, code=code, since=since)


def told(*states: ReplicaState) -> Tally:
    """Give a tally that was told these states, one a second."""
    tally = Tally()
    for second, state in enumerate(states):
        tally.reached(status(state), now=float(second))
    return tally


steps = st.lists(st.tuples(*[st.integers(0, 1000)] * 5), min_size=1, max_size=8)
"""What comes in each second of one transfer: bytes of each source, refetched bytes, retries."""


def transfer(comes: list[tuple[int, ...]], *, resumed_from: int) -> list[Progress]:
    totals = accumulate(comes, lambda before, new: tuple(a + b for a, b in zip(before, new, strict=True)))
    return [progress(*t[:3], refetched=t[3], retries=t[4], resumed_from=resumed_from) for t in totals]


@given(st.lists(st.tuples(steps, st.integers(0, 1000)), max_size=4))
def test_what_is_gained_adds_up_to_where_each_transfer_ended(
    transfers: list[tuple[list[tuple[int, ...]], int]],
) -> None:
    tally, ends = Tally(), list[Progress]()
    for comes, resumed_from in transfers:
        looks = transfer(comes, resumed_from=resumed_from)
        tally.reached(status(ReplicaState.DOWNLOADING), now=0.0)
        for look in looks:
            tally.progressed(KEY, look)
        ends.append(looks[-1])

    assert tally.received["https://a.example"] == sum(end.sources[0].bytes + end.sources[1].bytes for end in ends)
    assert tally.received["https://b.example:8443"] == sum(end.sources[2].bytes for end in ends)
    assert tally.refetched == sum(end.refetched for end in ends)
    assert tally.retries == sum(end.retries for end in ends)
    assert tally.resumed == sum(end.resumed_from for end in ends)


@given(steps, st.integers(0, 1000))
def test_a_gain_is_never_negative(comes: list[tuple[int, ...]], resumed_from: int) -> None:
    looks = transfer(comes, resumed_from=resumed_from)
    for before, after in [*pairwise(looks), (looks[-1], looks[0])]:
        gain = gained(before, after)
        assert min([*gain.received.values(), gain.refetched, gain.retries, gain.resumed_from]) >= 0


def test_a_transfer_that_began_anew_is_seen_by_figures_that_fell() -> None:
    gain = gained(progress(900, 50, resumed_from=10), progress(300, 60, resumed_from=10))

    assert gain.received == {"https://a.example": 360}
    assert gain.resumed_from == 10


def test_only_the_origin_of_a_source_is_a_label() -> None:
    urls = ("https://a.example/secret/path", "file:///srv/image", "nfs://[2001:db8::1]:2050/export/image")

    gain = gained(None, progress(1, 2, 3, urls=urls))

    assert gain.received == {"https://a.example": 1, "file://": 2, "nfs://[2001:db8::1]:2050": 3}


def test_a_source_that_gave_nothing_is_no_label() -> None:
    assert gained(None, progress(0, 0, 7)).received == {"https://b.example:8443": 7}


@given(st.integers(1, 200))
def test_origins_are_bounded_and_no_byte_is_lost(count: int) -> None:
    tally = Tally()
    for number in range(count):
        key = ReplicaKey("default", f"t{number}")
        tally.progressed(key, progress(10, urls=(f"https://host{number}.example/disk",)))

    assert len(tally.received) <= MAX_ORIGINS + 1
    assert tally.received.total() == 10 * count
    assert tally.received[OTHER_ORIGINS] == 10 * max(0, count - MAX_ORIGINS)


def test_a_session_ends_where_its_replica_rests() -> None:
    S = ReplicaState  # noqa: N806 - a table reads better so
    tally = told(S.QUEUED, S.PROBING, S.WAITING, S.PROBING, S.DOWNLOADING, S.VERIFYING, S.COMMITTING, S.READY)

    assert tally.ended == Counter({(S.WAITING, None): 1, (S.READY, None): 1})


def test_the_code_of_a_failure_is_counted() -> None:
    tally = Tally()
    tally.reached(status(ReplicaState.FAILED, FailureCode.SOURCE_STATUS), now=0.0)

    assert tally.ended == Counter({(ReplicaState.FAILED, FailureCode.SOURCE_STATUS): 1})


def test_a_rest_that_is_told_again_is_no_second_end() -> None:
    assert told(ReplicaState.PROBING, ReplicaState.READY, ReplicaState.READY).ended.total() == 1


def test_a_download_lasts_from_its_first_request_to_readiness() -> None:
    S = ReplicaState  # noqa: N806 - a table reads better so
    tally = told(S.PROBING, S.DOWNLOADING, S.VERIFYING, S.DOWNLOADING, S.VERIFYING, S.COMMITTING, S.READY)

    assert (tally.downloads.cumulative[-1], tally.downloads.sum_s) == (1, 5.0)


def test_what_was_not_downloaded_to_its_end_has_no_duration() -> None:
    S = ReplicaState  # noqa: N806 - a table reads better so

    assert told(S.PROBING, S.READY).downloads.cumulative[-1] == 0
    assert told(S.DOWNLOADING, S.FAILED).downloads.cumulative[-1] == 0
    assert told(S.DOWNLOADING, S.QUEUED, S.PROBING, S.READY).downloads.cumulative[-1] == 0


def test_connections_are_those_of_running_downloads() -> None:
    tally = Tally()
    tally.progressed(KEY, progress(1, connections=4))
    tally.progressed(ReplicaKey("fast", "deb12"), progress(1, connections=3))
    assert tally.connections == 7

    tally.reached(status(ReplicaState.VERIFYING), now=0.0)

    assert tally.connections == 3


@given(st.lists(st.floats(0, 1e6)))
def test_durations_count_each_once_and_bounds_are_included(seconds: list[float]) -> None:
    durations = Durations()
    for one in seconds:
        durations.add(one)

    at_most = [sum(one <= bound for one in seconds) for bound in DURATION_BOUNDS_S]
    assert durations.cumulative == (*at_most, len(seconds))
