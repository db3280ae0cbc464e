"""A simulated network: drives a plan and its mirrors as connections would, with time as a number and no waiting.

Every rule that must hold at any moment is asserted while it runs.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field, replace

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
            start = next_start(self.mirrors)
            if self._events and start is not None and self.now < start < self._events[0][0]:
                self.now = start
                continue
            if self._events:
                at, segment_id = heapq.heappop(self._events)
                segment = next((s for s in self.plan.segments if s.id == segment_id), None)
                if segment is not None:
                    self.now = at
                    self._deliver(segment)
                continue
            if self.plan.is_done or is_exhausted(self.mirrors):
                return
            assert start is not None, "nothing is under way and nobody may start"
            assert start > self.now, "a source may start and got nothing to do"
            self.now = start

    def _start_all(self) -> None:
        """Give every free connection its next segment, as the engine does."""
        while len(self.plan.segments) < self.connections and not self.plan.is_done:
            chosen = self._choose()
            if chosen is None:
                return
            index, wanted = chosen
            self.mirrors[index] = self.mirrors[index].started()
            self.plan, segment = self.plan.start(index, wanted)
            self.requests.append((index, wanted))
            self._begun[segment.id] = self.now
            self._schedule(segment)

    def _choose(self) -> tuple[int, ByteRange] | None:
        index = pick(self.mirrors, self.now)
        if index is None:
            return None
        length = segment_length(self.mirrors[index].rate_bps, 0.0)
        fresh = self.plan.next_range(length)
        if fresh is None:
            return self._choose_takeover()
        taken = self.plan.stored.union(RangeSet.of(s.rest for s in self.plan.segments if s.rest))
        assert fresh.length <= length
        assert taken.add(fresh).length == taken.length + fresh.length
        return index, fresh

    def _choose_takeover(self) -> tuple[int, ByteRange] | None:
        rates = {index: mirror.rate_bps for index, mirror in enumerate(self.mirrors)}
        free = [index for index, mirror in enumerate(self.mirrors) if mirror.can_start(self.now)]
        for index in sorted(free, key=lambda one: -rates[one]):
            taken = self.plan.takeover(index, rates)
            if taken is not None:
                self.takeovers += 1
                self._check_takeover(index, taken)
                return index, taken
        return None

    def _check_takeover(self, index: int, taken: ByteRange) -> None:
        """Assert that it is the rest of one other source's request, without the stored bytes at its ends."""
        victims = [s for s in self.plan.segments if s.rest and s.rest.start <= taken.start and taken.end == s.range.end]
        assert any(victim.mirror != index for victim in victims)
        for byte in (taken.start, taken.end - 1):
            assert self.plan.stored.add(ByteRange(byte, byte + 1)).length == self.plan.stored.length + 1

    def _schedule(self, segment: Segment) -> None:
        length = min(self.block, segment.range.end - segment.position)
        heapq.heappush(self._events, (self.now + length / self.servers[segment.mirror].rate_bps, segment.id))

    def _deliver(self, segment: Segment) -> None:
        """Let one block of a request arrive, or the request fail."""
        index, server = segment.mirror, self.servers[segment.mirror]
        code = self._refusal(index, server)
        if code is not None:
            self._end(segment, code)
            return
        written = ByteRange(segment.position, min(segment.range.end, segment.position + self.block))
        self.plan = self.plan.store(segment.id, written)
        self.mirrors[index] = self.mirrors[index].received(written.length)
        if self.plan.is_done and self.done_at is None:
            self.done_at = self.now
        if written.end == segment.range.end:
            elapsed_s = self.now - self._begun[segment.id]
            self.mirrors[index] = self.mirrors[index].measured(segment.range.length / elapsed_s)
            self._end(segment, None)
        elif server.breaks_every and (self.mirrors[index].bytes // self.block) % server.breaks_every == 0:
            self._end(segment, FailureCode.SOURCE_UNREACHABLE)
        else:
            self._schedule(replace(segment, position=written.end))
        for other in self.plan.needless(written):
            self._end(other, None)

    def _refusal(self, index: int, server: Server) -> FailureCode | None:
        if server.lies:
            return FailureCode.ENTITY_CHANGED
        if server.dies_after is not None and self.mirrors[index].bytes >= server.dies_after:
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
