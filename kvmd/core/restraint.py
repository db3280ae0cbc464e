"""How much a host lets refused events cost it: the first few are answered one by one, a flood is counted and slowed down."""

from __future__ import annotations

from dataclasses import dataclass, replace

BURST = 100
"""Refusals answered at once: a person's mistakes, a fleet's worth of retained events after a key was revoked."""
ANSWERED_PER_S = 10.0
"""Refusals answered in the long run."""
SHARE = 0.25
"""Part of the event loop's time that unanswered refusals may take; the rest is for downloads."""
REPORT_EVERY_S = 60.0


@dataclass(frozen=True, slots=True)
class Restraint:
    """``level`` refusals may be answered now, as of ``at`` (monotonic seconds); ``silent`` were not, since ``told_at``."""

    level: float = BURST
    at: float = 0.0
    silent: int = 0
    told_at: float = float("-inf")

    def refused(self, now: float) -> tuple[Restraint, bool]:
        """Count a refusal, and say whether it is to be answered."""
        level = min(BURST, self.level + max(0.0, now - self.at) * ANSWERED_PER_S)
        if level < 1:
            return replace(self, level=level, at=now, silent=self.silent + 1), False
        return replace(self, level=level - 1, at=now), True

    def report(self, now: float) -> tuple[Restraint, int]:
        """Give how many were passed over without an answer, once in a while; 0: there is nothing to tell now."""
        if not self.silent or now - self.told_at < REPORT_EVERY_S:
            return self, 0
        return replace(self, silent=0, told_at=now), self.silent


def pause_s(spent_s: float) -> float:
    """Give the seconds to rest after an unanswered refusal that took so long."""
    return spent_s * (1 - SHARE) / SHARE
