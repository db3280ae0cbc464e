"""From wishes to jobs, and from a session's states to replicas. Values in, values out."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime

from kvmd.core.desired import Desired, HostRecord, Replica, ReplicaKey
from kvmd.core.image import ImagePolicy, warnings
from kvmd.core.placement import Placement
from kvmd.core.provenance import Provenance
from kvmd.core.session import (
    Absent,
    Cancelled,
    CancelRequested,
    Committing,
    Converting,
    Downloading,
    Failed,
    Found,
    Input,
    Ready,
    RemovalStarted,
    Started,
    State,
    Terms,
    Waiting,
)
from kvmd.engine.job import Job
from kvmd.engine.report import replica_state
from kvmd.ports import Access
from kvmwire.digest import Digest
from kvmwire.events import RegisterData
from kvmwire.images import ChecksumOf, ImageFormat
from kvmwire.source import SourceUrl
from kvmwire.status import Failure, Progress, ReplicaState, ReplicaStatus, Trust


@dataclass(frozen=True, slots=True)
class Assignment:
    """One wish being worked on: the job, what begins it, and what the replica was before."""

    wish: Desired
    fingerprint: str
    job: Job
    opening: Input
    before: Replica | None
    is_signed: bool = False

    @property
    def key(self) -> ReplicaKey:
        """The subject."""
        return self.wish.key


def assignment(
    record: HostRecord, key: ReplicaKey, template: RegisterData | None, *, images: ImagePolicy, is_raw: bool
) -> Assignment:
    """Build what a session needs. Without a template (a removal or a cancellation) the job has no sources.

    ``is_raw``: the pool wants raw images.
    """
    wish, before = record.desired[key], record.replicas.get(key)
    volume = _volume(wish, before)
    fingerprint = wish.fingerprint(record.templates)
    urls = [SourceUrl.parse(url) for url in template.urls] if template else []
    sibling = _sibling(record, key, template.digest) if template and template.digest else None
    terms = Terms(
        volume=volume,
        expected=template.digest if template else None,
        format=template.format if template else ImageFormat.AUTO,
        sources=len(urls) + (sibling is not None),
        deadline=wish.data.deadline,
        images=images,
        is_of_content=template is not None and template.checksum_of is ChecksumOf.CONTENT,
        is_raw=is_raw,
    )
    is_same_wish = before is not None and before.made_for == fingerprint
    job = Job(
        session=before.status.session if is_same_wish and before and before.status.session else uuid.uuid4().hex,
        terms=terms,
        urls=urls,
        access=access_of(template) if template else Access(),
        size=template.size if template else None,
        checksum_url=SourceUrl.parse(template.checksum_url) if template and template.checksum_url else None,
        rate_limit=wish.data.rate_limit,
        failures=before.failures if is_same_wish and before else 0,
        sibling=sibling,
    )
    known = _known_as(before, volume)
    if known is not None and known.placement is not None:
        job = replace(
            job,
            placed=known.placement,
            is_ours=known.is_ours,
            is_same_content=known.content == job.content,
            must_rehash=known.must_rehash,
            provenance=known.provenance,
            replaced=known.replaced,
            kept_for=_also_needed_by(record, key, known.placement),
            is_repair=wish.is_repair and known.must_rehash,
        )
    return Assignment(wish, fingerprint, job, _opening(wish), before, wish.is_signed(record.templates))


def access_of(template: RegisterData) -> Access:
    """Give what the template brings along to its sources."""
    return Access(template.headers, template.credentials)


def _opening(wish: Desired) -> Input:
    if not wish.is_present:
        return RemovalStarted()
    return CancelRequested(wish.reason) if wish.is_cancelled else Started()


def _volume(wish: Desired, before: Replica | None) -> str:
    """Name the volume; a removal means the one that was made, whatever name the wish gives now."""
    if not wish.is_present and before is not None and before.placement is not None:
        return before.placement.path.rpartition("/")[2]
    return wish.data.volume


def _known_as(before: Replica | None, volume: str) -> Replica | None:
    """Give what is known of the volume that is to have this name: one that the replica had before, or the one it has."""
    if before is None:
        return None
    former = next((one for one in before.formers if one.volume == volume), None)
    if former is None or (before.placement is not None and before.placement.name == volume):
        return before
    return replace(
        before,
        placement=former.placement,
        is_ours=True,
        content=former.content,
        provenance=None,
        replaced=None,
    )


def _is_recheck(made_for: str, fingerprint: str) -> bool:
    """Whether the same event is to be looked at anew: then the file is read again although nobody seems to have touched it."""
    same_event = made_for.split("-")[:2] == fingerprint.split("-")[:2]
    return same_event and made_for.split("-")[2] != fingerprint.split("-")[2]


def _sibling(record: HostRecord, key: ReplicaKey, expected: Digest) -> Placement | None:
    """Find a ready volume of the pool that has the wanted content under another name."""
    for other, replica in record.replicas.items():
        is_ready = other.pool == key.pool and replica.status.state is ReplicaState.READY
        if is_ready and replica.placement is not None and replica.placement.digest == expected:
            return replica.placement
    return None


def _also_needed_by(record: HostRecord, key: ReplicaKey, placement: Placement) -> str:
    others: Iterable[Replica] = (one for other, one in record.replicas.items() if other != key)
    for other in others:
        if (
            other.placement is not None
            and other.placement.path == placement.path
            and other.key in record.desired
            and record.desired[other.key].is_present
        ):
            return f"template {other.status.template}"
    return ""


def queued(wish: Desired, fingerprint: str, before: Replica | None, *, now: datetime) -> Replica:
    """Give the replica of a wish that waits for its turn."""
    status = ReplicaStatus(
        template=wish.key.template,
        generation=wish.stamp.generation,
        pool=wish.key.pool,
        state=ReplicaState.QUEUED,
        since=now,
    )
    is_recheck = before is not None and _is_recheck(before.made_for, fingerprint)
    asked = _carry(before, Replica(status, fingerprint))
    if not wish.is_present:
        return asked
    return replace(_announcing(asked, last_used=now), must_rehash=is_recheck)


def put_off(
    wish: Desired, fingerprint: str, before: Replica | None, *, failure: Failure, now: datetime, until: datetime | None
) -> Replica:
    """Give the replica of a wish that cannot be worked on: ``waiting`` until a time or an event, or else ``failed``."""
    status = ReplicaStatus(
        template=wish.key.template,
        generation=wish.stamp.generation,
        pool=wish.key.pool,
        state=ReplicaState.WAITING if until else ReplicaState.FAILED,
        code=failure.code,
        message=failure.message,
        hint=failure.hint,
        since=now,
        next_attempt=until,
    )
    return _carry(before, Replica(status, fingerprint))


def replica_of(task: Assignment, state: State, *, progress: Progress | None, now: datetime) -> Replica:
    """Give the replica that a session's state makes: what is announced and what is remembered."""
    wish, job, before = task.wish, task.job, task.before
    expected = job.terms.expected
    status = ReplicaStatus(
        template=wish.key.template,
        generation=wish.stamp.generation,
        pool=wish.key.pool,
        state=replica_state(state),
        checksum=str(expected) if expected else None,
        trust=Trust.CHECKSUM if expected else Trust.NONE,
        session=job.session,
        attempt=job.failures + 1,
        since=now,
        progress=progress,
    )
    replica = Replica(status, task.fingerprint, content=job.content, failures=job.failures)
    if before is not None:
        replica = replace(_carry(before, replica), must_rehash=before.must_rehash)
    after = _with_state(replica, state, task, now=now)
    return replace(after, must_rehash=False) if after.status.state.is_settled else after


def _is_read(task: Assignment, placement: Placement) -> bool:
    """Whether all of a volume that is ready now was read for that; else nobody seems to have touched it since it was the last time."""
    before, placed, algorithm = task.before, task.job.placed, task.job.algorithm
    if before is None or placed is None or before.must_rehash:
        return True
    is_known = placed.is_same_file(placement) and placed.digest.algorithm is algorithm
    return not is_known or before.status.state is ReplicaState.COMMITTING


def _trust(task: Assignment, found: Found) -> Trust:
    if not task.job.terms.expected and not found.is_vouched:
        return Trust.NONE
    return Trust.SIGNED if task.is_signed else Trust.CHECKSUM


def _with_state(replica: Replica, state: State, task: Assignment, *, now: datetime) -> Replica:
    job = task.job
    match state:
        case Downloading(size=size):
            return _announcing(replica, size=size)
        case Converting(image=image):
            return _announcing(replica, message=f"the {image.format} is being converted to raw.")
        case Committing(stored=stored, replaces=replaces):
            # Written down before the rename: after a crash in between, the file under the final name is recognised as ours.
            is_replaced = (
                replaces is not None and replica.placement is not None and replaces.path == replica.placement.path
            )
            retired = replica if is_replaced else replica.retiring(beside=stored.placement, now=now)
            return replace(
                retired,
                placement=stored.placement,
                is_ours=True,
                content=job.content,
                provenance=stored.provenance,
                replaced=replaces,
            )
        case Ready(placement, image, is_adopted, found, provenance):
            is_read = _is_read(task, placement)
            ready = _announcing(
                replica,
                verified=now if is_read else replica.status.verified,
                path=placement.path,
                size=placement.size,
                checksum=str(_served(provenance, job.terms) or placement.digest),
                digest=str(placement.digest),
                format=image.format.value if image else None,
                virtual_size=image.virtual_size if image else None,
                message=_ready_message(found, is_adopted=is_adopted),
                trust=_trust(task, found),
                warnings=warnings(image) if image else (),
                progress=None,
            )
            is_made = task.before is not None and task.before.status.state is ReplicaState.COMMITTING
            return replace(
                ready if is_made else ready.retiring(beside=placement, now=now),
                placement=placement,
                is_ours=not is_adopted,
                content=job.content,
                provenance=provenance,
                failures=0,
                replaced=None,
                scrubbed=task.wish.scrubs if is_read else min(task.wish.scrubs, replica.scrubbed),
            )
        case Waiting(failures, failure, until):
            return replace(_failing(replica, failure, next_attempt=until), failures=failures)
        case Failed(failure) | Cancelled(failure):
            return replace(_failing(replica, failure), failures=0)
        case Absent(note):
            gone = _announcing(replica, message=note, checksum=None, trust=Trust.NONE, verified=None)
            return replace(gone, placement=None, is_ours=False, content="", failures=0, replaced=None)
        case _:
            return replica


def _served(made: Provenance | None, terms: Terms) -> Digest | None:
    """Give the promised checksum for what was only unpacked; None where the volume's own is to be told."""
    return terms.served if made is not None and made.converted is None else None


def _ready_message(found: Found, *, is_adopted: bool) -> str:
    if is_adopted:
        return "the file was there already and has the right content."
    if not found.digests:
        return ""
    checked = " and ".join(str(digest.algorithm) for digest in found.digests)
    signer = "signed by a key of this host's keyring" if found.is_vouched else "which nobody has signed"
    return f"it has the {checked} of {found.where}, {signer}."


def _announcing(replica: Replica, **update: object) -> Replica:
    return replace(replica, status=replica.status.model_copy(update=update))


def _failing(replica: Replica, failure: Failure, **update: object) -> Replica:
    return _announcing(replica, code=failure.code, message=failure.message, hint=failure.hint, **update)


def _carry(before: Replica | None, replica: Replica) -> Replica:
    if before is None:
        return replica
    return replace(
        _announcing(replica, verified=before.status.verified, last_used=before.status.last_used),
        scrubbed=before.scrubbed,
        formers=before.formers,
        replaced=before.replaced,
        placement=before.placement,
        is_ours=before.is_ours,
        content=before.content,
        provenance=before.provenance,
    )
