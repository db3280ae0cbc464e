"""Nothing that kvmd does may block the event loop."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from blockbuster import BlockBuster, blockbuster_ctx


@pytest.fixture(autouse=True)
def no_blocking() -> Iterator[BlockBuster]:
    """Fail the test in which code of kvmd blocks the event loop."""
    with blockbuster_ctx("kvmd") as watching:
        # At the end of a command, when nothing else runs in the loop any more, its idle threads are waited for.
        watching.functions["threading.Lock.acquire"].can_block_in("concurrent/futures/thread.py", "shutdown")
        yield watching
