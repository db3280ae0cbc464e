"""What happened on a host since its daemon started: the counts that nothing else remembers."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate

from kvmd.core.desired import ReplicaKey
from kvmwire.codes import FailureCode
from kvmwire.status import Outcome, Progress, ReplicaState, ReplicaStatus

MAX_ORIGINS = 64
"""So many origins are told apart, whatever is published; the bytes of all further ones are counted together."""
OTHER_ORIGINS = "other"
DURATION_BOUNDS_S = (1, 5, 15, 60, 180, 600, 1800, 3600, 7200, 14400)
"""Seconds: from a small image in a lab to a large one over a thin line."""

_NOTHING = Progress(done=0, bytes_per_second=0)
_BETWEEN = {ReplicaState.VERIFYING, ReplicaState.COMMITTING}


@dataclass(frozen=True, slots=True)
class Gain:
    """What a download has cost between two looks: bytes by origin, bytes it went on from, bytes that came twice, failed requests."""

    received: Mapping[str, int]
    resumed_from: int
    refetched: int
    retries: int


def gained(before: Progress | None, after: Progress) -> Gain:
    """Give what ``after`` adds to ``before``; after figures that fell the transfer began anew, and its own count from nothing."""
    start = before if before is not None and _goes_on(before, after) else _NOTHING
    earlier, received = _bytes_by_url(start), Counter[str]()
    for url, count in _bytes_by_url(after).items():
        received[_origin(url)] += count - earlier[url]
    return Gain(
        received=+received,
        resumed_from=after.resumed_from - start.resumed_from,
        refetched=after.refetched - start.refetched,
        retries=after.retries - start.retries,
    )


def _goes_on(before: Progress, after: Progress) -> bool:
    return (
        before.resumed_from == after.resumed_from
        and before.refetched <= after.refetched
        and before.retries <= after.retries
        and _bytes_by_url(before) <= _bytes_by_url(after)
    )


def _bytes_by_url(progress: Progress) -> Counter[str]:
    counts = Counter[str]()
    for source in progress.sources:
        counts[source.url] += source.bytes
    return counts


def _origin(url: str) -> str:
    """Cut the path off a redacted URL: it may tell more than a monitoring system should keep."""
    return "/".join(url.split("/", 3)[:3])


@dataclass(slots=True)
class Durations:
    """A histogram of seconds; ``cumulative`` has one count more than there are bounds: all of them."""

    sum_s: float = 0.0
    _counts: list[int] = field(default_factory=lambda: [0] * (len(DURATION_BOUNDS_S) + 1))

    def add(self, seconds: float) -> None:
        """Count one."""
        self.sum_s += seconds
        self._counts[bisect_left(DURATION_BOUNDS_S, seconds)] += 1

    @property
    def cumulative(self) -> tuple[int, ...]:
        """How many were not longer than each bound, and how many there were."""
        return tuple(accumulate(self._counts))


@dataclass(slots=True)
class Tally:
    """Counts since the start. It is told of everything once, and stays small whatever that is; times are monotonic seconds."""

    received: Counter[str] = field(default_factory=Counter[str])
    resumed: int = 0
    refetched: int = 0
    retries: int = 0
    downloads: Durations = field(default_factory=Durations)
    ended: Counter[tuple[ReplicaState, FailureCode | None]] = field(
        default_factory=Counter[tuple[ReplicaState, FailureCode | None]]
    )
    answers: Counter[Outcome] = field(default_factory=Counter[Outcome])
    refusals: Counter[str] = field(default_factory=Counter[str])
    _states: dict[ReplicaKey, ReplicaState] = field(default_factory=dict[ReplicaKey, ReplicaState])
    _began: dict[ReplicaKey, float] = field(default_factory=dict[ReplicaKey, float])
    _told: dict[ReplicaKey, Progress] = field(default_factory=dict[ReplicaKey, Progress])

    @property
    def connections(self) -> int:
        """The most connections that each running download had at once, added up."""
        return sum(progress.connections for progress in self._told.values())

    def progressed(self, key: ReplicaKey, progress: Progress) -> None:
        """Note where a running download stands."""
        gain = gained(self._told.get(key), progress)
        self._told[key] = progress
        for origin, count in gain.received.items():
            is_known = origin in self.received or len(self.received) < MAX_ORIGINS
            self.received[origin if is_known else OTHER_ORIGINS] += count
        self.resumed += gain.resumed_from
        self.refetched += gain.refetched
        self.retries += gain.retries

    def reached(self, status: ReplicaStatus, *, now: float) -> None:
        """Note where a replica stands. A session ends where it rests; one that is broken off to go on later does not end."""
        key, state = ReplicaKey(status.pool, status.template), status.state
        self._told.pop(key, None)
        if state is ReplicaState.DOWNLOADING:
            self._began.setdefault(key, now)
        elif state not in _BETWEEN:
            began = self._began.pop(key, None)
            if state is ReplicaState.READY and began is not None:
                self.downloads.add(now - began)
        is_rest = state.is_settled or state is ReplicaState.WAITING
        if is_rest and self._states.get(key) is not state:
            self.ended[state, status.code] += 1
        self._states[key] = state

    def answered(self, outcome: Outcome) -> None:
        """Note an answer to an event."""
        self.answers[outcome] += 1

    def refused(self, reason: str) -> None:
        """Note that the broker did not take what was published."""
        self.refusals[reason] += 1
