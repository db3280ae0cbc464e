"""Which source gets the next request: ranking, pauses, connection limits and bans. Values in, values out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from kvmd.core.entity import Entity
from kvmd.core.retry import is_retryable, server_pause_s
from kvmwire.codes import FailureCode
from kvmwire.status import Failure

MAX_FAILURES = 5
"""So many failures in a row without a byte, and the source is not asked again in this attempt."""
_WORTH_A_CONNECTION = 1 / 16
"""An idle source with this share of the best rate gets a connection before the best gets one more."""
_STREAK = 16
"""So many streams in a row without a throttle, and one more connection is tried."""
_RATE_WEIGHT = 0.3
"""Share of the newest measurement in a source's rate."""


@dataclass(frozen=True, slots=True)
class Mirror:
    """One source during one attempt. Times are monotonic seconds, the rate is bytes a second of one connection.

    ``entity`` is what it said it serves, None until it was asked; ``limit`` is how many connections it may have at once.
    ``most`` is what the limit may grow back to after a throttle, ``streak`` counts the streams since the last one.
    ``round_trip_s`` is the shortest time from a request to its answer, 0 until one came.
    """

    order: int
    limit: int
    entity: Entity | None = None
    active: int = 0
    failures: int = 0
    not_before: float = 0.0
    bytes: int = 0
    rate_bps: float = 0.0
    round_trip_s: float = 0.0
    last_failure: Failure | None = None
    is_banned: bool = False
    has_lied: bool = False
    most: int = 0
    streak: int = 0

    def can_start(self, now: float) -> bool:
        """Whether it may get one more request now."""
        return not self.is_banned and self.active < self.limit and self.not_before <= now

    def started(self) -> Mirror:
        """Note a request to it."""
        return replace(self, active=self.active + 1)

    def ended(self) -> Mirror:
        """Note that one of its requests is over, however it went."""
        return replace(self, active=self.active - 1)

    def gave(self, length: int) -> Mirror:
        """Note bytes from it."""
        return replace(self, bytes=self.bytes + length)

    def received(self, length: int) -> Mirror:
        """Note bytes from it: whatever went wrong before is forgiven."""
        return replace(self, bytes=self.bytes + length, failures=0)

    def lied(self, failure: Failure, *, is_last: bool) -> Mirror:
        """Note that it gave wrong bytes: it is banned, unless it is the last one and did so for the first time."""
        if is_last and not self.has_lied:
            return replace(self, has_lied=True, last_failure=failure)
        return self.banned(failure)

    def measured(self, rate_bps: float) -> Mirror:
        """Note the rate of a finished segment; after enough of them a server that was throttled is tried with one connection more."""
        rate = rate_bps if not self.rate_bps else self.rate_bps + _RATE_WEIGHT * (rate_bps - self.rate_bps)
        is_due = self.limit < self.most and self.streak + 1 >= _STREAK
        return replace(
            self,
            rate_bps=rate,
            limit=self.limit + is_due,
            streak=0 if is_due else self.streak + 1,
        )

    def answered(self, seconds: float) -> Mirror:
        """Note how long a request waited for its answer."""
        return replace(self, round_trip_s=min(seconds, self.round_trip_s or seconds))

    def banned(self, failure: Failure) -> Mirror:
        """Never ask it again in this attempt."""
        return replace(self, is_banned=True, last_failure=failure)

    def failed(self, failure: Failure, *, now: float, jitter: float, retry_after_s: float, is_throttle: bool) -> Mirror:
        """Note that a request failed; called after ``ended``.

        A server that wants fewer requests gets fewer connections, and only where it has just one left does it count as a failure.
        """
        pause = server_pause_s(retry_after_s, failures=self.failures, jitter=jitter)
        if is_throttle and self.active > 0:
            return replace(self, limit=self.active, streak=0, not_before=now + pause, last_failure=failure)
        after = replace(
            self,
            failures=self.failures + 1,
            not_before=now + pause,
            limit=1 if is_throttle else self.limit,
            streak=0,
        )
        if not is_retryable(failure.code) or after.failures >= MAX_FAILURES:
            return after.banned(failure)
        return replace(after, last_failure=failure)


def pick(mirrors: Sequence[Mirror], now: float) -> int | None:
    """Give the index of the source for the next request, None where none may get one now.

    Idle sources that were never measured come first, so that they get measured; then idle ones whose rate is worth a connection,
    because what limits a source is often its own link, and not the number of connections to it; then the fastest. Those that
    are being measured share what there is, so that one slow source does not get all of a small file. Then the order of the
    event decides.
    """
    best = max((mirror.rate_bps for mirror in mirrors if not mirror.is_banned), default=0.0)
    free = [(*_rank(mirror, best), index) for index, mirror in enumerate(mirrors) if mirror.can_start(now)]
    return min(free)[-1] if free else None


def _rank(mirror: Mirror, best_bps: float) -> tuple[int, bool, bool, float, int, int]:
    is_known = mirror.rate_bps > 0
    is_worth_one = not mirror.active and mirror.rate_bps >= best_bps * _WORTH_A_CONNECTION
    return (
        mirror.failures,
        is_known or mirror.active > 0,
        not is_worth_one,
        -mirror.rate_bps,
        0 if is_known else mirror.active,
        mirror.order,
    )


def next_start(mirrors: Sequence[Mirror]) -> float | None:
    """Give the earliest time at which a source may start again by itself; None where that depends on a running one."""
    times = [m.not_before for m in mirrors if not m.is_banned and m.active < m.limit]
    return min(times, default=None)


def is_exhausted(mirrors: Sequence[Mirror]) -> bool:
    """Whether no source is left."""
    return all(m.is_banned for m in mirrors)


def verdict(mirrors: Sequence[Mirror]) -> Failure:
    """Give the failure that stands for all where none is left: one that may pass by itself before a final one."""
    failures = [
        (_weight(m.last_failure, was_used=m.entity is not None), m.last_failure) for m in mirrors if m.last_failure
    ]
    return min(failures, key=lambda one: one[0])[1]


def _weight(failure: Failure, *, was_used: bool) -> tuple[bool, int]:
    """Order failures. A source that serves another file from the start says nothing about the file that was fetched."""
    match failure.code:
        case FailureCode.SOURCE_EXPIRED:
            rank = 0
        case FailureCode.ENTITY_CHANGED:
            rank = 0 if was_used else 2
        case _:
            rank = 1
    return (not is_retryable(failure.code), rank)


def choose_entity(entities: Sequence[Entity | None], *, size: int | None) -> Entity | None:
    """Give the entity to fetch: of the promised size, else of the size that most sources name, the first of these.

    None where no source has an entity of the promised size. A source with ranges is preferred.
    """
    known = [entity for entity in entities if entity is not None]
    if size is not None:
        known = [entity for entity in known if entity.size in {None, size}]
    if not known:
        return None
    votes = Counter(entity.size for entity in known if entity.size is not None)
    agreed = votes.most_common(1)[0][0] if votes else None
    fitting = [entity for entity in known if entity.size == agreed] or known
    return next((entity for entity in fitting if entity.has_ranges), fitting[0])


def serves_same(entity: Entity, chosen: Entity, *, has_checksum: bool) -> bool:
    """Whether bytes of ``entity`` may be mixed with those of ``chosen``.

    Mirrors have validators of their own, so where a digest proves the whole, the size must do. Without one only the same strong
    validator shows that both serve the same bytes.
    """
    if has_checksum:
        return entity.size == chosen.size
    return entity.is_surely_same(chosen)
