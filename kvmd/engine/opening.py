"""The partial volume that a session asks its pool for: under which key, with which digests, unpacked or not."""

from __future__ import annotations

from collections.abc import Sequence

from kvmd.core.checkpoint import Checkpoint
from kvmd.core.compression import Bounds
from kvmd.core.entity import Entity
from kvmd.core.placement import Placement
from kvmd.engine.job import Job, Limits
from kvmd.engine.supply import Supply
from kvmd.ports import Packing, VolumeRequest
from kvmwire.digest import Algorithm, Digest


def volume_request(
    job: Job,
    supply: Supply,
    entity: Entity,
    *,
    promised: Sequence[Digest],
    limits: Limits,
    has_pieces: bool,
    resumes: bool,
    copy_of: Placement | None,
) -> VolumeRequest:
    """Give the request for what is to be fetched of the entity. ``promised`` are all digests that the whole must have."""
    packing = _packing(job, supply, limits, is_hasty=not promised)

    def can_resume(checkpoint: Checkpoint) -> bool:
        return resumes and checkpoint.can_resume(entity, promised=promised)

    return VolumeRequest(
        name=job.terms.volume,
        key=job.key(is_unpacked=packing is not None),
        size=entity.size,
        algorithms=_algorithms(job, promised, is_unpacked=packing is not None),
        is_rewritten=has_pieces and resumes,
        resumes=can_resume,
        copy_of=copy_of if packing is None else None,
        packing=packing,
    )


def _packing(job: Job, supply: Supply, limits: Limits, *, is_hasty: bool) -> Packing | None:
    """Tell how what is fetched is to be unpacked; None where it is the image itself."""
    if supply.compression is None:
        return None
    most = job.terms.images.max_virtual_size
    bounds = Bounds.of(max_size=limits.max_size, max_virtual_size=most, ratio=limits.max_ratio)
    return Packing(supply.compression, bounds, job.algorithm, is_hasty=is_hasty)


def _algorithms(job: Job, promised: Sequence[Digest], *, is_unpacked: bool) -> tuple[Algorithm, ...]:
    """Give the digests to take of the bytes that are fetched; one of a packed file serves only to compare it."""
    is_needed = not is_unpacked or job.terms.served is not None
    found = (digest.algorithm for digest in promised if digest != job.terms.expected)
    return tuple(dict.fromkeys((*((job.algorithm,) if is_needed else ()), *found)))
