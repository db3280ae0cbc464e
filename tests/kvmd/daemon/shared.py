"""Hosts that have one folder as their pool."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.kvmd.daemon.harness import Daemon, running
from tests.kvmd.daemon.ranges import Ranges, stored_ranges
from tests.support.brokers import Broker

LEASE_S = 1.5
MIB = 1 << 20


class SharedHost(Daemon):
    """A daemon whose only pool is a folder that others have, too."""

    def __init__(
        self,
        folder: Path,
        broker: Broker,
        host: str,
        *,
        tables: Mapping[str, Any] | None = None,
        wrapper: Sequence[str | Path] = (),
    ) -> None:
        pool = {"path": str(folder / "pool"), "shared": True, "lease_s": LEASE_S}
        super().__init__(
            folder / host,
            broker.url,
            host=host,
            tables={"pools": {"default": pool}, **(tables or {})},
            wrapper=wrapper,
        )
        self.pool = folder / "pool"
        self.pool.mkdir(exist_ok=True)

    def leftovers(self) -> list[str]:
        """Name the files of partial volumes and of leases."""
        staging = self.pool / ".kvmd"
        return sorted(path.name for path in staging.rglob("*") if path.is_file() and path.suffix != ".ref")

    def stored(self) -> Ranges:
        """Tell which bytes the journal of the only partial volume vouches for."""
        journals = [*(self.pool / ".kvmd").glob("*.json")]
        assert len(journals) <= 1
        return stored_ranges(journals[0]) if journals else []

    def references(self) -> list[str]:
        """Name the hosts' references to volumes."""
        return sorted(path.name for path in (self.pool / ".kvmd" / "shared").glob("*.ref"))


@contextlib.asynccontextmanager
async def sharing(*hosts: SharedHost) -> AsyncGenerator[None, None]:
    """Run them all."""
    async with contextlib.AsyncExitStack() as stack:
        for host in hosts:
            await stack.enter_async_context(running(host))
        yield
