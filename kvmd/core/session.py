"""One session: one attempt after another to make one replica, as a state machine.

Events are facts in the past tense, effects are orders to the engine, which performs them in their order and feeds back what
happened. A state holds only what is true in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from kvmd.core.image import ImageHead, ImagePolicy, check
from kvmd.core.placement import Placement, Stored, Unusable
from kvmd.core.retry import backoff_s, is_retryable, server_pause_s
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
from kvmwire.events import ImageFormat
from kvmwire.status import Failure


@dataclass(frozen=True, slots=True)
class Terms:
    """What was asked for; the same for the whole session.

    ``is_of_content``: ``expected`` is of the content where the file is compressed, else of the file as it is served.
    """

    volume: str
    expected: Digest | None
    format: ImageFormat
    sources: int = 1
    deadline: datetime | None = None
    images: ImagePolicy = ImagePolicy()
    is_of_content: bool = False

    @property
    def served(self) -> Digest | None:
        """The digest that the served file must have, None where nothing is promised of it."""
        return None if self.is_of_content else self.expected


@dataclass(frozen=True, slots=True)
class Found:
    """What is not in the event: digests and where they were found, and how many sources there are in all.

    ``is_vouched``: a signature shows whose the digests are.
    """

    digests: tuple[Digest, ...] = ()
    where: str = ""
    is_vouched: bool = False
    sources: int = 0


# --- states ---


@dataclass(frozen=True, slots=True)
class Queued:
    """Waits for its turn; ``failures`` attempts in a row went wrong before."""

    failures: int = 0


@dataclass(frozen=True, slots=True)
class Admitting:
    """Looks whether the volume is there already."""

    failures: int = 0


@dataclass(frozen=True, slots=True)
class Probing:
    """Asks the sources what they have; ``restarts`` times the download was begun anew from nothing.

    ``replaces``, here and further on, is kvmd's own volume with other content whose name the new one takes; None: nothing has it.
    """

    failures: int = 0
    restarts: int = 0
    is_alone: bool = False
    replaces: Placement | None = None


@dataclass(frozen=True, slots=True)
class Downloading:
    """Fetches the bytes; with ``is_alone`` from one source only, because the mix of several was wrong."""

    failures: int
    restarts: int
    is_alone: bool
    size: int | None
    found: Found = Found()
    replaces: Placement | None = None


@dataclass(frozen=True, slots=True)
class Verifying:
    """Reads back what the disk holds."""

    failures: int
    restarts: int
    is_alone: bool
    found: Found = Found()
    replaces: Placement | None = None


@dataclass(frozen=True, slots=True)
class Committing:
    """Has verified bytes checked as an image, and gives them their final name."""

    failures: int
    stored: Stored
    image: ImageHead
    found: Found = Found()
    replaces: Placement | None = None


@dataclass(frozen=True, slots=True)
class Ready:
    """The volume is there, durable, and what was promised. ``is_adopted``: it was there before, kvmd did not make it."""

    placement: Placement
    image: ImageHead | None
    is_adopted: bool
    found: Found = Found()


@dataclass(frozen=True, slots=True)
class Waiting:
    """Goes on at ``until`` by itself."""

    failures: int
    failure: Failure
    until: datetime


@dataclass(frozen=True, slots=True)
class Failed:
    """Stays so until somebody publishes something new."""

    failure: Failure


@dataclass(frozen=True, slots=True)
class Cancelled:
    """Somebody stopped it."""

    failure: Failure


@dataclass(frozen=True, slots=True)
class Removing:
    """Takes the volume away."""

    failures: int = 0


@dataclass(frozen=True, slots=True)
class Absent:
    """The replica is not there, as wished. ``note`` tells what was left in place on purpose."""

    note: str = ""


State = (
    Queued
    | Admitting
    | Probing
    | Downloading
    | Verifying
    | Committing
    | Ready
    | Waiting
    | Failed
    | Cancelled
    | Removing
    | Absent
)
Running = Admitting | Probing | Downloading | Verifying | Committing | Removing


# --- inputs ---


@dataclass(frozen=True, slots=True)
class Started:
    """The session got its turn."""


@dataclass(frozen=True, slots=True)
class RemovalStarted:
    """The removal got its turn."""


@dataclass(frozen=True, slots=True)
class LookedUp:
    """``stored`` is the file under the final name, None where there is none; ``is_ours`` tells that kvmd put it there.

    ``recorded`` is the digest it had when it became ready for this very wish, None where it never did. ``is_unpacked``: kvmd
    made it of a compressed file. ``kept_for`` names another replica that needs the file as it is.
    """

    stored: Stored | None
    is_ours: bool = False
    recorded: Digest | None = None
    is_unpacked: bool = False
    kept_for: str = ""


@dataclass(frozen=True, slots=True)
class Probed:
    """At least one source has the image."""

    size: int | None
    found: Found = Found()


@dataclass(frozen=True, slots=True)
class Fetched:
    """Every byte is written."""


@dataclass(frozen=True, slots=True)
class Sealed:
    """All is synced and read back."""

    stored: Stored | Unusable


@dataclass(frozen=True, slots=True)
class Committed:
    """The volume has its final name."""

    placement: Placement


@dataclass(frozen=True, slots=True)
class Removed:
    """The volume is gone; ``note`` tells what was left in place on purpose."""

    note: str = ""


@dataclass(frozen=True, slots=True)
class Broken:
    """An effect failed at ``now``. ``has_progressed``: bytes were gained; where they are kept, it is the first failure again.

    ``retry_after_s`` is the pause that the source asked for, 0 where it did not.
    """

    failure: Failure
    now: datetime
    jitter: float
    has_progressed: bool = False
    retry_after_s: float = 0.0


@dataclass(frozen=True, slots=True)
class CancelRequested:
    """Somebody wants it stopped."""

    reason: str = ""


Input = Started | RemovalStarted | LookedUp | Probed | Fetched | Sealed | Committed | Removed | Broken | CancelRequested


# --- effects ---


@dataclass(frozen=True, slots=True)
class LookUp:
    """Look for the volume under its final name."""


@dataclass(frozen=True, slots=True)
class Probe:
    """Ask every source for its first range."""


@dataclass(frozen=True, slots=True)
class Fetch:
    """Open the partial volume, reserve its space, and fetch what is missing."""

    is_alone: bool


@dataclass(frozen=True, slots=True)
class Seal:
    """Sync and read back."""


@dataclass(frozen=True, slots=True)
class Inspect:
    """Have the whole image checked; ``image`` is what its head told."""

    image: ImageHead


@dataclass(frozen=True, slots=True)
class CheckUnused:
    """See that nothing needs a volume that is to be replaced."""

    volume: Placement


@dataclass(frozen=True, slots=True)
class Commit:
    """Give it the final name, durably; where ``replaces`` has that, by exchange."""

    replaces: Placement | None = None


@dataclass(frozen=True, slots=True)
class Discard:
    """Delete the partial volume."""


@dataclass(frozen=True, slots=True)
class Remove:
    """Delete the finished volume, if kvmd put it there."""


Effect = LookUp | Probe | Fetch | Seal | Inspect | CheckUnused | Commit | Discard | Remove
Step = tuple[State, tuple[Effect, ...]]


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
        case Verifying() as verifying, Sealed(stored):
            return _sealed(verifying, stored, terms)
        case Committing(_, stored, image, found, _), Committed(placement) if (
            placement.digest == stored.placement.digest
        ):
            return Ready(placement, image, is_adopted=False, found=found), ()
        case Removing(), Removed(note):
            return Absent(note), ()
        case (
            (Admitting() | Probing() | Downloading() | Verifying() | Committing() | Removing()) as running,
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
    if found.stored is None:
        return Probing(state.failures), (Probe(),)
    placement, promised = found.stored.placement, terms.expected or found.recorded
    if found.is_unpacked and found.recorded is not None and not terms.is_of_content:
        promised = found.recorded  # what the event promises is the digest of the file as it is served
    is_replaceable = found.is_ours and not found.kept_for and found.recorded is None
    if placement.digest != promised and is_replaceable:
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
    try:
        image = _inspect(found.stored, terms)
    except ContentError as exc:
        return _fail(exc)
    return Ready(placement, image, is_adopted=not found.is_ours), ()


def _other_content(found: LookedUp, promised: Digest, actual: Digest, terms: Terms) -> KvmdError:
    if found.recorded == promised:
        return ChecksumMismatchError(
            f"volume {terms.volume}: it was {promised} when it became ready and is {actual} now; somebody or the disk changed it. "
            "It was left as it is.",
            hint="Delete the file by hand and send a recheck, and it is downloaded again; look at the disk's health.",
        )
    needed = f", {found.kept_for} needs it" if found.kept_for else ""
    return ExistsError(
        f"volume {terms.volume}: a file of that name with other content is there{needed}; expected {promised}, got {actual}; "
        "it was left as it is.",
        hint=_EXISTS_HINT,
    )


def _sealed(state: Verifying, stored: Stored | Unusable, terms: Terms) -> Step:
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
    except ContentError as exc:
        return Failed(exc.failure), (Discard(),)
    committing = Committing(state.failures, stored, image, state.found, state.replaces)
    if state.replaces is None:
        return committing, (Inspect(image), Commit())
    return committing, (Inspect(image), CheckUnused(state.replaces), Commit(state.replaces))


def _mismatch(found: Found, stored: Stored | Unusable, terms: Terms) -> KvmdError | None:
    """Give the error for bytes that do not have what was promised of them."""
    wrong = _contradiction(found, stored, terms)
    if wrong is None:
        return None
    expected, actual = wrong
    where = "" if expected == terms.expected else f" (of {found.where})"
    is_content = terms.is_of_content and expected == terms.expected
    if is_content and isinstance(stored, Stored):
        size = (
            f"{stored.placement.size} bytes of content"
            if stored.served is not None
            else f"{stored.placement.size} bytes"
        )
    else:
        size = f"{stored.size if isinstance(stored, Unusable) else stored.placement.size} bytes"
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
    return (content if stored.served is None else {one.algorithm: one for one in stored.served}), content


def _inspect(stored: Stored, terms: Terms) -> ImageHead:
    check(stored.image, terms.format, policy=terms.images)
    return stored.image


def _broken(state: Running, happened: Broken, terms: Terms) -> Step:
    failure = happened.failure
    if isinstance(state, Downloading) and failure.code is FailureCode.ENTITY_CHANGED and state.restarts < MAX_RESTARTS:
        return Probing(state.failures, state.restarts + 1, state.is_alone, state.replaces), (Discard(), Probe())
    is_refused = isinstance(state, Committing) and not is_retryable(failure.code)
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
