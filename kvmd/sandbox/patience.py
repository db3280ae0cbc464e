"""How long a run of qemu-img is waited for: what writes a file may take long, as long as it makes progress."""

from __future__ import annotations

import os
import time

LOOK_EVERY_S = 1.0
"""So often the target is looked at."""


class Patience:
    """``timeout_s`` is from the start, or with a target from the last progress that was seen; ``longest_s`` is for all of it.

    Progress is a write to the target, or a word of qemu-img about it.
    """

    def __init__(self, timeout_s: float, longest_s: float, target: int | None) -> None:
        self._timeout_s = timeout_s
        self._target = target
        self._since = time.monotonic()
        self._end = self._since + longest_s
        self._seen: tuple[int, ...] = ()

    def pause_s(self, told: int) -> float:
        """Give how long to wait before looking again; 0 or less where it has lasted too long. ``told``: bytes that it wrote."""
        now = time.monotonic()
        if self._target is None:
            return min(self._since + self._timeout_s, self._end) - now
        found = os.fstat(self._target)
        seen = (told, found.st_mtime_ns, found.st_blocks)
        if seen != self._seen:
            self._seen, self._since = seen, now
        return min(self._since + self._timeout_s - now, self._end - now, LOOK_EVERY_S)
