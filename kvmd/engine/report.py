"""Findings of probes and states of sessions, as they are announced."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from kvmd.core.retry import is_retryable
from kvmd.core.session import (
    Absent,
    Admitting,
    Cancelled,
    Committing,
    Converting,
    Downloading,
    Failed,
    Probing,
    Queued,
    Ready,
    Removing,
    State,
    Verifying,
    Waiting,
)
from kvmd.engine.probing import Finding
from kvmd.errors import SourceError
from kvmwire.status import Failure, ProbeStatus, ReplicaState, SourceProbe, Verdict


def source_probe(finding: Finding) -> SourceProbe:
    """Give a finding in its announced form, with redacted URLs."""
    head, image, error = finding.head, finding.image, finding.error
    entity = head.entity if head else None
    status = head.status if head else error.status if isinstance(error, SourceError) else None
    return SourceProbe(
        url=str(finding.url),
        reachable=head is not None or status is not None,
        status=status,
        tls=head.tls if head else None,
        size=entity.size if entity else None,
        ranges=entity.has_ranges if entity else None,
        etag=entity.etag if entity else None,
        last_modified=entity.last_modified if entity else None,
        redirect=str(head.redirect) if head and head.redirect else None,
        format=image.format.value if image else "metalink" if finding.is_document else None,
        virtual_size=image.virtual_size if image else None,
        compression=finding.compression.value if finding.compression else None,
        seconds=round(finding.seconds, 3),
        code=error.code if error else None,
        message=error.message if error else "",
        hint=error.hint if error else "",
    )


def overall(probes: Sequence[SourceProbe]) -> tuple[Verdict, Failure | None]:
    """Judge all sources of a template together; a failure that may pass by itself stands before a final one."""
    failures = [Failure(code=p.code, message=p.message, hint=p.hint) for p in probes if p.code is not None]
    if not failures:
        return Verdict.GOOD, None
    worst = min(failures, key=lambda failure: not is_retryable(failure.code))
    return (Verdict.BAD if len(failures) == len(probes) else Verdict.DEGRADED), worst


def probe_status(template: str, generation: int, findings: Sequence[Finding], now: datetime) -> ProbeStatus:
    """Give what a host found out about a template."""
    probes = tuple(source_probe(finding) for finding in findings)
    verdict, failure = overall(probes)
    return ProbeStatus(
        template=template,
        generation=generation,
        verdict=verdict,
        code=failure.code if failure else None,
        message=failure.message if failure else "",
        hint=failure.hint if failure else "",
        sources=probes,
        checked=now,
    )


def replica_state(state: State) -> ReplicaState:
    """Name a session's state as it is announced."""
    match state:
        case Queued():
            return ReplicaState.QUEUED
        case Admitting() | Probing():
            return ReplicaState.PROBING
        case Downloading():
            return ReplicaState.DOWNLOADING
        case Verifying() | Converting():
            return ReplicaState.VERIFYING
        case Committing():
            return ReplicaState.COMMITTING
        case Ready():
            return ReplicaState.READY
        case Waiting():
            return ReplicaState.WAITING
        case Failed():
            return ReplicaState.FAILED
        case Cancelled():
            return ReplicaState.CANCELLED
        case Removing():
            return ReplicaState.REMOVING
        case Absent():
            return ReplicaState.ABSENT
