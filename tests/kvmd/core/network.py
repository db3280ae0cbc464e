"""A simulated network: drives a plan and its mirrors as connections would, with time as a number and no waiting.

Every rule that must hold at any moment is asserted while it runs.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

from kvmd.core.mirrors import Mirror, is_exhausted, next_start, pick
from kvmd.core.plan import Plan, Segment, segment_length
from kvmd.core.ranges import ByteRange, RangeSet
from kvmwire.codes import FailureCode
from tests.kvmd.core.strategies import failure

MIB = 1 << 20
MAX_STEPS = 20_000


@dataclass(frozen=True, slots=True)
class Server:
    """How one source behaves: it dies for good after so many bytes, lies at once, or wants few connections.

    ``breaks_every`` blocks its connection is cut, 0: never; the server lives on.
    """

    rate_bps: float
    dies_after: int | None = None
    lies: bool = False
    tolerates: int = 100
    breaks_every: int = 0


@dataclass(slots=True)
class Network:
    """One download from these servers, with at most so many connections at once."""

    servers: list[Server]
    plan: Plan
    connections: int
    limit: int = 4
    block: int = MIB
    now: float = 0.0
    steps: int = 0
    requests: list[tuple[int, ByteRange]] = field(default_factory=list[tuple[int, ByteRange]])
    takeovers: int = 0
    most_at_once: int = 0
    done_at: float | None = None
    mirrors: list[Mirror] = field(default_factory=list[Mirror])
    _served: dict[int, int] = field(default_factory=dict[int, int])
    _begun: dict[int, float] = field(default_factory=dict[int, float])
    _events: list[tuple[float, int]] = field(default_factory=list[tuple[float, int]])

    def run(self) -> None:
        """Simulate until the plan is done or every source is banned, and nothing is under way any more."""
        self.mirrors = [Mirror(order=order, limit=self.limit) for order in range(len(self.servers))]
        while True:
            self.steps += 1
            assert self.steps < MAX_STEPS, "the plan does not end"
            self._start_all()
            self._check()
            if self._events:
                self.now, segment_id = heapq.heappop(self._events)
                self._deliver(segment_id)
                continue
            if self.plan.is_done or is_exhausted(self.mirrors):
                return
            start = next_start(self.mirrors)
            assert start is not None, "nothing is under way and nobody may start"
            assert start > self.now, "a source may start and got nothing to do"
            self.now = start

    def _start_all(self) -> None:
        """Give every free connection its next segment, as the engine does."""
        while len(self.plan.segments) < self.connections and not self.plan.is_done:
            index = pick(self.mirrors, self.now)
            wanted = None if index is None else self._next_range(index)
            if index is None or wanted is None:
                return
            self.mirrors[index] = self.mirrors[index].started()
            self.plan, segment = self.plan.start(index, wanted)
            self.requests.append((index, wanted))
            self._begun[segment.id] = self.now
            self._schedule(segment)

    def _next_range(self, index: int) -> ByteRange | None:
        fresh = self.plan.next_range(segment_length(self.mirrors[index].rate_bps))
        if fresh is not None:
            wanted = RangeSet((fresh,))
            busy = RangeSet.of(s.rest for s in self.plan.segments if s.rest)
            assert wanted.length == fresh.length <= segment_length(self.mirrors[index].rate_bps)
            assert self.plan.stored.union(busy).length + fresh.length == self.plan.stored.union(busy).add(fresh).length
            return fresh
        taken = self.plan.takeover(index, {i: m.rate_bps for i, m in enumerate(self.mirrors)})
        if taken is not None:
            self.takeovers += 1
            self._check_takeover(index, taken)
        return taken

    def _check_takeover(self, index: int, taken: ByteRange) -> None:
        """Assert that it is the rest of one other source's request, without the stored bytes at its ends."""
        victims = [s for s in self.plan.segments if s.rest and s.rest.start <= taken.start and taken.end == s.range.end]
        assert any(victim.mirror != index for victim in victims)
        for byte in (taken.start, taken.end - 1):
            assert self.plan.stored.add(ByteRange(byte, byte + 1)).length == self.plan.stored.length + 1

    def _schedule(self, segment: Segment) -> None:
        length = min(self.block, segment.range.end - segment.position)
        heapq.heappush(self._events, (self.now + length / self.servers[segment.mirror].rate_bps, segment.id))

    def _deliver(self, segment_id: int) -> None:
        segment = next(s for s in self.plan.segments if s.id == segment_id)
        index, server = segment.mirror, self.servers[segment.mirror]
        served = self._served.get(index, 0)
        code = self._refusal(index, server, served)
        if code is not None:
            self._end(segment, code)
            return
        written = ByteRange(segment.position, min(segment.range.end, segment.position + self.block))
        self.plan = self.plan.store(segment_id, written)
        self.mirrors[index] = self.mirrors[index].received(written.length)
        self._served[index] = served + written.length
        if self.plan.is_done and self.done_at is None:
            self.done_at = self.now
        if self.plan.is_needless(segment_id):
            elapsed_s = self.now - self._begun[segment_id]
            self.mirrors[index] = self.mirrors[index].measured((written.end - segment.range.start) / elapsed_s)
            self._end(segment, None)
        elif server.breaks_every and (self._served[index] // self.block) % server.breaks_every == 0:
            self._end(segment, FailureCode.SOURCE_UNREACHABLE)
        else:
            self._schedule(next(s for s in self.plan.segments if s.id == segment_id))

    def _refusal(self, index: int, server: Server, served: int) -> FailureCode | None:
        if server.lies:
            return FailureCode.ENTITY_CHANGED
        if server.dies_after is not None and served >= server.dies_after:
            return FailureCode.SOURCE_UNREACHABLE
        if self.mirrors[index].active > server.tolerates:
            return FailureCode.SOURCE_STATUS
        return None

    def _end(self, segment: Segment, code: FailureCode | None) -> None:
        self.plan = self.plan.end(segment.id)
        mirror = self.mirrors[segment.mirror].ended()
        if code is FailureCode.SOURCE_STATUS:
            code = FailureCode.SOURCE_UNREACHABLE
            mirror = mirror.failed(failure(code), now=self.now, jitter=0.5, retry_after_s=0.0, is_throttle=True)
        elif code is not None:
            mirror = mirror.failed(failure(code), now=self.now, jitter=0.5, retry_after_s=0.0, is_throttle=False)
        self.mirrors[segment.mirror] = mirror

    def _check(self) -> None:
        """Assert that connections keep to their budgets, and that no byte is on more than two of them."""
        segments = self.plan.segments
        self.most_at_once = max(self.most_at_once, len(segments))
        assert len(segments) <= self.connections
        for index, mirror in enumerate(self.mirrors):
            assert mirror.active == sum(s.mirror == index for s in segments) <= self.limit
        rests = [s.rest for s in segments if s.rest is not None]
        for at in {rest.start for rest in rests}:
            assert sum(rest.start <= at < rest.end for rest in rests) <= 2
        assert self.plan.stored == self.plan.stored.within(self.plan.size)
