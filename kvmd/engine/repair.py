"""Whether a volume is to be replaced because it is not what it was: only where somebody asked for that."""

from __future__ import annotations

from kvmd.core.placement import Placement
from kvmd.engine.job import Job
from kvmd.errors import StoreIoError
from kvmd.ports import Keeper


async def damaged(keeper: Keeper, job: Job) -> Placement | None:
    """Give the volume that kvmd made and that has changed since, or cannot be read; None where it is sound, gone, or another file.

    What was written to in place is still kvmd's; what took its place is not. Raises StoreError.
    """
    placed = job.placed
    if not job.is_repair or placed is None or not job.is_ours or job.kept_for:
        return None
    try:
        found = await keeper.reread(placed, rate=0)
    except StoreIoError:
        return placed
    if found is None or found.digest == placed.digest or not found.is_same_inode(placed):
        return None
    return found
