"""When to try again: exponential backoff with full jitter."""

from __future__ import annotations

from kvmwire.codes import CODES, FailureCode

ATTEMPT_CAP_S = 900.0
"""Longest pause between two attempts of a session: 15 minutes."""
RETRY_AFTER_CAP_S = 600.0
"""Longest pause that a server's Retry-After can ask for: 10 minutes."""


def is_retryable(code: FailureCode) -> bool:
    """Whether trying again by itself can help."""
    return CODES[code].retryable


def backoff_s(failures: int, *, jitter: float, base_s: float = 1.0, cap_s: float = ATTEMPT_CAP_S) -> float:
    """Seconds to wait after so many failures in a row, ``jitter`` in 0..1 being the dice.

    Full jitter: anything from nearly nothing to the exponential bound, so that many hosts do not come back together. The
    tenth that is always waited keeps an unlucky dice from hammering.
    """
    bound = min(cap_s, base_s * 2.0 ** min(failures, 32))
    return bound * (0.1 + 0.9 * jitter)


def server_pause_s(retry_after_s: float, *, failures: int, jitter: float) -> float:
    """Seconds to leave a source alone: what it asked for (capped) and up to a tenth more, or a short backoff."""
    if retry_after_s > 0:
        return min(retry_after_s, RETRY_AFTER_CAP_S) * (1.0 + 0.1 * jitter)
    return backoff_s(failures, jitter=jitter, base_s=0.25, cap_s=10.0)
