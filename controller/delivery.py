"""Which events have to be sent again, and when: until every host that listens has answered. Pure; time is an argument."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from controller.backoff import resend_delay_s
from controller.fleet import Fleet
from controller.registry import Stored
from kvmwire.events import Event

GRACE_S = 1.0


@dataclass(slots=True)
class _Delivery:
    stored: Stored
    event: Event
    answered: set[str] = field(default_factory=set[str])
    attempt: int = 0
    next_send: float = math.inf


class Deliveries:
    """Events of ours with the hosts that have answered. Offline hosts are not chased, but when they come back.

    ``chance`` gives numbers from 0 up to but not including 1: the jitter. Times are of any one clock, in seconds.
    """

    def __init__(self, chance: Callable[[], float]) -> None:
        self._chance = chance
        self._open: dict[str, _Delivery] = {}

    def add(self, stored: Stored, event: Event, *, answered: Iterable[str] = (), now: float) -> None:
        """Follow an event that was published just now; one that is followed already keeps its schedule, not its bytes."""
        delivery = self._open.setdefault(stored.id, _Delivery(stored, event, next_send=now + self._delay_s(0)))
        delivery.stored = stored
        delivery.answered.update(answered)

    def keep_only(self, ids: set[str]) -> None:
        """Stop following what is not among these: it was superseded, or has expired."""
        for event_id in self._open.keys() - ids:
            del self._open[event_id]

    def expire(self, now: float) -> None:
        """Stop following what has expired; ``now`` is in seconds since the epoch."""
        for event_id in [i for i, d in self._open.items() if d.stored.expires is not None and d.stored.expires <= now]:
            del self._open[event_id]

    def answer(self, event_id: str, host: str) -> bool:
        """Note a receipt; whether it was the host's first to an event that is followed."""
        delivery = self._open.get(event_id)
        if delivery is None or host in delivery.answered:
            return False
        delivery.answered.add(host)
        return True

    def host_came(self, host: str, now: float) -> None:
        """Start anew for a host that listens again: it gets what is retained by itself first."""
        for delivery in self._open.values():
            if host not in delivery.answered:
                delivery.attempt = 0
                delivery.next_send = min(delivery.next_send, now + GRACE_S)

    def silent(self, event_id: str, fleet: Fleet) -> frozenset[str]:
        """Hosts that listen, are meant, and have not answered."""
        delivery = self._open[event_id]
        return frozenset(h for h in fleet.audience(delivery.event) - delivery.answered if fleet.is_online(h))

    def due(self, fleet: Fleet, now: float) -> list[Stored]:
        """Take what has to be sent now; its next time is set. What another controller superseded would overwrite the newer."""
        found = list[Stored]()
        for event_id, delivery in self._open.items():
            if delivery.next_send > now:
                continue
            if fleet.supersedes(delivery.event) or not self.silent(event_id, fleet):
                delivery.next_send = math.inf  # until a host comes
                continue
            delivery.attempt += 1
            delivery.next_send = now + self._delay_s(delivery.attempt)
            found.append(delivery.stored)
        return found

    @property
    def open_count(self) -> int:
        """How many events are to be sent again, unless answers come first."""
        return sum(1 for delivery in self._open.values() if delivery.next_send < math.inf)

    def _delay_s(self, attempt: int) -> float:
        return resend_delay_s(attempt, self._chance())
