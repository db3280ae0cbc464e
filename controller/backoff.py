"""How long to wait before trying again. Pure: chance is an argument, from 0 up to but not including 1."""

from __future__ import annotations

RECONNECT_CAP_S = 30.0
RESEND_FIRST_S = 1.0
RESEND_CAP_S = 60.0


def reconnect_delay_s(attempt: int, chance: float) -> float:
    """Full jitter over a doubling span, so that a fleet does not come back all at once; ``attempt`` counts from 0."""
    return chance * min(RECONNECT_CAP_S, 0.5 * 2.0 ** min(attempt, 16))


def resend_delay_s(attempt: int, chance: float) -> float:
    """Doubling from 1 s to 60 s, half of it jitter: a receipt needs its time; ``attempt`` counts from 0."""
    return min(RESEND_CAP_S, RESEND_FIRST_S * 2.0 ** min(attempt, 16)) * (0.5 + chance / 2)
