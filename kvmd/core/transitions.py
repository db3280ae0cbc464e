"""What follows for a session from what happened: one step of its state machine."""

from __future__ import annotations

from datetime import timedelta

from kvmd.core.conversion import check_converted, check_convertible, is_flat
from kvmd.core.image import ImageHead, check
from kvmd.core.placement import Stored, Unusable
from kvmd.core.retry import backoff_s, is_retryable, server_pause_s
from kvmd.core.session import (
    Absent,
    Admitting,
    Broken,
    Cancelled,
    CancelRequested,
    CheckUnused,
    Commit,
    Committed,
    Committing,
    Convert,
    Converted,
    Converting,
    Discard,
    Downloading,
    Effect,
    Failed,
    Fetch,
    Fetched,
    Found,
    Input,
    Inspect,
    LookedUp,
    LookUp,
    Probe,
    Probed,
    Probing,
    Queued,
    Ready,
    RemovalStarted,
    Remove,
    Removed,
    Removing,
    Running,
    Seal,
    Sealed,
    Started,
    State,
    Step,
    Terms,
    Verifying,
    Waiting,
)
from kvmd.errors import (
    CancelledByUserError,
    ChecksumMismatchError,
    ContentError,
    DeadlineError,
    ExistsError,
    KvmdError,
)
from kvmwire.codes import CODES, FailureCode
from kvmwire.digest import Algorithm, Digest


class IllegalTransitionError(Exception):
    """An input that cannot happen in this state: a defect of the engine."""


MAX_RESTARTS = 1
"""How often a download begins anew from nothing because the entity changed."""
MAX_ALONE = 3
"""How often it begins anew because the bytes of several sources were wrong, each time from another one alone."""

_EXISTS_HINT = f"{CODES[FailureCode.EXISTS].hint} For the content of a compressed file, publish the checksum of that (checksum_of)."
_DISCARDS = frozenset(
    {
        FailureCode.CHECKSUM_MISMATCH,
        FailureCode.DEADLINE,
        FailureCode.DECOMPRESS,
        FailureCode.ENTITY_CHANGED,
        FailureCode.EXISTS,
        FailureCode.IO,
        FailureCode.TOO_LARGE,
    }
)


def step(state: State, happened: Input, terms: Terms) -> Step:
    """Give the next state and what is to be done. Raises IllegalTransitionError; total for every legal pair."""
    match state, happened:
        case (Queued() | Waiting() | Ready() | Failed() | Cancelled() | Absent()) as resting, Started():
            return Admitting(_failures_before(resting)), (LookUp(),)
        case (Queued() | Waiting() | Ready() | Failed() | Cancelled() | Absent()) as resting, RemovalStarted():
            return Removing(_failures_before(resting)), (Discard(), Remove())
        case Admitting() as admitting, LookedUp() as found:
            return _looked_up(admitting, found, terms)
        case Probing(failures, restarts, is_alone, replaces), Probed(size, found):
            return Downloading(failures, restarts, is_alone, size, found, replaces), (Fetch(is_alone),)
        case Downloading(failures, restarts, is_alone, _, found, replaces), Fetched():
            return Verifying(failures, restarts, is_alone, found, replaces), (Seal(),)
        case Verifying() as verifying, Sealed() as sealed:
            return _sealed(verifying, sealed, terms)
        case Converting() as converting, Converted(stored):
            return _converted(converting, stored, terms)
        case Committing(_, stored, image, found, _), Committed(placement) if (
            placement.digest == stored.placement.digest
        ):
            return Ready(placement, image, is_adopted=False, found=found, provenance=stored.provenance), ()
        case Removing(), Removed(note):
            return Absent(note), ()
        case (
            (
                Admitting() | Probing() | Downloading() | Verifying() | Converting() | Committing() | Removing()
            ) as running,
            Broken() as broken,
        ):
            return _broken(running, broken, terms)
        case _, CancelRequested(reason) if not isinstance(state, Ready | Absent | Removing | Committing):
            return Cancelled(CancelledByUserError(_cancel_message(reason)).failure), (Discard(),)
        case _:
            raise IllegalTransitionError(f"{type(happened).__name__} in {type(state).__name__}")


def _failures_before(state: State) -> int:
    return state.failures if isinstance(state, Queued | Waiting) else 0


def _looked_up(state: Admitting, found: LookedUp, terms: Terms) -> Step:
    if found.damaged is not None:
        return Probing(state.failures, replaces=found.damaged), (CheckUnused(found.damaged), Probe())
    if found.stored is None:
        return Probing(state.failures), (Probe(),)
    placement, promised = found.stored.placement, _promised(found.stored, found.recorded, terms)
    is_wanted = placement.digest == promised and (is_flat(found.stored.image) or not terms.is_raw)
    is_replaceable = found.is_ours and not found.kept_for and found.recorded is None
    if not is_wanted and is_replaceable:
        return Probing(state.failures, replaces=placement), (CheckUnused(placement), Probe())
    if promised is None:
        return _fail(
            ExistsError(
                f"volume {terms.volume}: a file of that name is there already, and without a checksum nobody can know "
                "whether it is the wanted image; it was left as it is.",
                hint="Publish with a checksum to adopt the file, or deploy under another `name`.",
            )
        )
    if placement.digest != promised:
        return _fail(_other_content(found, promised, placement.digest, terms))
    if not is_wanted:
        return _fail(
            ExistsError(
                f"volume {terms.volume}: the image is there already as {found.stored.image.format}, and the pool's format is raw; "
                "it was left as it is.",
                hint="Remove the file, and send a recheck; or deploy under another `name`.",
            )
        )
    try:
        image = _inspect(found.stored, terms)
    except ContentError as exc:
        return _fail(exc)
    return Ready(placement, image, is_adopted=not found.is_ours, provenance=found.stored.provenance), ()


def _promised(stored: Stored, recorded: Digest | None, terms: Terms) -> Digest | None:
    """Give the digest that the file must have to be the wanted one; None where nobody knows any."""
    made, expected = stored.provenance, terms.expected
    if made is not None and expected is not None:
        is_made_of_it = made.is_of_content(expected) if terms.is_of_content else made.is_of_file(expected)
        return stored.placement.digest if is_made_of_it else expected
    return expected or recorded


def _other_content(found: LookedUp, promised: Digest, actual: Digest, terms: Terms) -> KvmdError:
    if found.recorded not in {None, actual}:
        return ChecksumMismatchError(
            f"volume {terms.volume}: it was {found.recorded} when it became ready and is {actual} now; somebody or the disk changed "
            "it. It was left as it is.",
            hint="Look at the disk's health. kvmctl repair replaces it by a new download, unless it is in use.",
        )
    needed = f", {found.kept_for} needs it" if found.kept_for else ""
    return ExistsError(
        f"volume {terms.volume}: a file of that name with other content is there{needed}; expected {promised}, got {actual}; "
        "it was left as it is.",
        hint=_EXISTS_HINT,
    )


def _sealed(state: Verifying, sealed: Sealed, terms: Terms) -> Step:
    stored = sealed.stored
    error = _mismatch(state.found, stored, terms)
    is_proven = error is None and (terms.served is not None or bool(state.found.digests))
    if error is None and isinstance(stored, Unusable):
        error = stored.trouble
    if error is not None:
        sources = max(terms.sources, state.found.sources)
        if not is_proven and sources > 1 and state.restarts < min(sources, MAX_ALONE):
            again = Probing(state.failures, state.restarts + 1, is_alone=True, replaces=state.replaces)
            return again, (Discard(), Probe())
        return Failed(error.failure), (Discard(),)
    if isinstance(stored, Unusable):
        raise IllegalTransitionError("an unusable file without trouble")
    try:
        image = _inspect(stored, terms)
        if not (terms.is_raw or sealed.takes_only_raw) or is_flat(image):
            return _committing(Committing(state.failures, stored, image, state.found, state.replaces), Inspect(image))
        check_convertible(image)
    except ContentError as exc:
        return Failed(exc.failure), (Discard(),)
    return Converting(state.failures, stored, image, state.found, state.replaces), (Inspect(image), Convert(image))


def _converted(state: Converting, stored: Stored, terms: Terms) -> Step:
    try:
        image = _inspect(stored, terms)
    except ContentError as exc:
        return Failed(exc.failure), (Discard(),)
    return _committing(Committing(state.failures, stored, image, state.found, state.replaces))


def _committing(state: Committing, *before: Effect) -> Step:
    if state.replaces is None:
        return state, (*before, Commit())
    return state, (*before, CheckUnused(state.replaces), Commit(state.replaces))


def _mismatch(found: Found, stored: Stored | Unusable, terms: Terms) -> KvmdError | None:
    """Give the error for bytes that do not have what was promised of them."""
    wrong = _contradiction(found, stored, terms)
    if wrong is None:
        return None
    expected, actual = wrong
    where = "" if expected == terms.expected else f" (of {found.where})"
    size = f"{stored.size if isinstance(stored, Unusable) else stored.placement.size} bytes"
    if (
        terms.is_of_content
        and expected == terms.expected
        and isinstance(stored, Stored)
        and stored.provenance is not None
    ):
        size += " of content"
    return ChecksumMismatchError(
        f"volume {terms.volume}: expected {expected}{where}, got {actual} of {size}; the bytes were discarded."
    )


def _contradiction(found: Found, stored: Stored | Unusable, terms: Terms) -> tuple[Digest, Digest] | None:
    """Give the first promised digest that the stored bytes do not have, and the one that they have."""
    served, content = _digests(stored)
    promised = [(digest, served) for digest in found.digests]
    if terms.expected is not None and (content or not terms.is_of_content):
        promised.insert(0, (terms.expected, content if terms.is_of_content else served))
    return next(((one, of[one.algorithm]) for one, of in promised if of[one.algorithm] != one), None)


def _digests(stored: Stored | Unusable) -> tuple[dict[Algorithm, Digest], dict[Algorithm, Digest]]:
    """Give the digests of the file as it was served, and those of its content, by algorithm."""
    if isinstance(stored, Unusable):
        return {one.algorithm: one for one in stored.served}, {}
    content = {one.algorithm: one for one in (*stored.digests, stored.placement.digest)}
    made = stored.provenance
    return (content if made is None else {one.algorithm: one for one in made.served}), content


def _inspect(stored: Stored, terms: Terms) -> ImageHead:
    """Give what the image is to be known as. Raises ContentError."""
    if stored.provenance is not None and stored.provenance.converted is not None:
        return check_converted(stored.image, size=stored.placement.size, policy=terms.images)
    check(stored.image, terms.format, policy=terms.images)
    return stored.image


def _broken(state: Running, happened: Broken, terms: Terms) -> Step:
    failure = happened.failure
    if isinstance(state, Downloading) and failure.code is FailureCode.ENTITY_CHANGED and state.restarts < MAX_RESTARTS:
        return Probing(state.failures, state.restarts + 1, state.is_alone, state.replaces), (Discard(), Probe())
    is_refused = isinstance(state, Converting | Committing) and not is_retryable(failure.code)
    cleanup: tuple[Effect, ...] = (Discard(),) if is_refused or failure.code in _DISCARDS else ()
    if not is_retryable(failure.code):
        return Failed(failure), cleanup
    is_progress_kept = happened.has_progressed and not cleanup
    failures = 1 if is_progress_kept else state.failures + 1
    pause_s = backoff_s(failures, jitter=happened.jitter)
    if happened.retry_after_s > 0:
        pause_s = max(pause_s, server_pause_s(happened.retry_after_s, failures=failures, jitter=happened.jitter))
    until = happened.now + timedelta(seconds=pause_s)
    if terms.deadline is not None and until > terms.deadline:
        late = DeadlineError(
            f"volume {terms.volume}: the deadline {terms.deadline.isoformat()} comes before the next attempt; "
            f"the last one ended with {failure.code}: {failure.message}"
        )
        return Failed(late.failure), (Discard(),)
    return Waiting(failures, failure, until), cleanup


def _cancel_message(reason: str) -> str:
    return f"cancelled: {reason}." if reason else "cancelled by a command; the partial data was discarded."


def _fail(error: KvmdError) -> Step:
    return Failed(error.failure), ()
