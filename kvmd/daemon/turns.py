"""What is said of a replica whose volume another host of a shared pool makes right now. Values in, values out."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from kvmd.core.desired import Replica
from kvmd.core.session import Failed, Waiting
from kvmd.daemon.jobs import Assignment, replica_of
from kvmd.errors import DeadlineError, MadeElsewhereError
from kvmd.ports import Holder
from kvmwire.status import Progress

TURN_S = 1.0
"""So often the other host is looked at."""


def waiting_turn(task: Assignment, holder: Holder, *, now: datetime) -> Replica:
    """Give the replica while the other host is at it: ``waiting``, or ``failed`` once its deadline has passed.

    Nothing has gone wrong, so it has no code; and when it goes on nobody knows.
    """
    terms, progress = task.job.terms, progress_of(holder)
    if terms.deadline is not None and now >= terms.deadline:
        late = DeadlineError(
            f"volume {terms.volume}: the deadline {terms.deadline.isoformat()} passed while host {holder.host or 'unknown'} downloads "
            "it into the shared pool."
        )
        return replica_of(task, Failed(late.failure), progress=progress, now=now)
    failure = MadeElsewhereError(terms.volume, host=holder.host).failure
    waiting = replica_of(task, Waiting(task.job.failures, failure, until=now), progress=progress, now=now)
    return replace(waiting, status=waiting.status.model_copy(update={"code": None, "next_attempt": None}))


def progress_of(holder: Holder) -> Progress | None:
    """Give the other host's figures, as far as they are known."""
    return None if holder.size is None else Progress(size=holder.size, done=holder.done, bytes_per_second=0)
