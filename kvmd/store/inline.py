"""Whether a write may be done in the event loop: a copy into the page cache takes less time than handing it to a thread.

But a disk that is behind makes writers wait, and everything else in the loop with them (docs/decisions/0007-body-path.md).
"""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager

from kvmd.store.calls import filesystem_type

SLOW_S = 0.1
"""A write that took longer was not delayed by other processes alone: the disk is behind."""
FIRST_REST_S, LONGEST_REST_S = 1.0, 60.0
"""So long after a slow write all go to threads; twice as long after the next one."""
_LOCAL = frozenset({0xEF53, 0x58465342, 0x9123683E, 0x01021994, 0xF2F52010})
"""ext2/3/4, xfs, btrfs, tmpfs and f2fs (statfs(2)): a write to any other filesystem may wait for a server."""


class Inline:
    """The experience with one pool; ``fd`` is its open folder."""

    def __init__(self, fd: int) -> None:
        self._is_local = filesystem_type(fd) in _LOCAL
        self._rests_until = 0.0
        self._rest_s = FIRST_REST_S

    def is_allowed(self) -> bool:
        """Whether the next write is likely short."""
        return self._is_local and time.monotonic() >= self._rests_until

    @contextmanager
    def measured(self) -> Generator[None]:
        """Measure a write, and learn from it."""
        began = time.monotonic()
        yield
        ended = time.monotonic()
        if ended - began > SLOW_S:
            self._rests_until = ended + self._rest_s
            self._rest_s = min(LONGEST_REST_S, 2 * self._rest_s)
