"""One session: one attempt after another to make one replica, as a state machine, whose steps are in ``transitions``.

Events are facts in the past tense, effects are orders to the engine, which performs them in their order and feeds back what
happened. A state holds only what is true in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from kvmd.core.image import ImageHead, ImagePolicy
from kvmd.core.placement import Placement, Stored, Unusable
from kvmd.core.provenance import Provenance
from kvmwire.digest import Digest
from kvmwire.images import ImageFormat
from kvmwire.status import Failure


@dataclass(frozen=True, slots=True)
class Terms:
    """What was asked for; the same for the whole session.

    ``is_of_content``: ``expected`` is of the content where the file is compressed, else of the file as it is served. ``is_raw``:
    an image of another format is converted.
    """

    volume: str
    expected: Digest | None
    format: ImageFormat
    sources: int = 1
    deadline: datetime | None = None
    images: ImagePolicy = ImagePolicy()
    is_of_content: bool = False
    is_raw: bool = False

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
class Converting:
    """Has verified bytes checked as an image, and made into a raw one."""

    failures: int
    stored: Stored
    image: ImageHead
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
    """The volume is there, durable, and what was promised. ``is_adopted``: it was there before, kvmd did not make it.

    ``provenance``: what it was made of, where that is not the file as it was served.
    """

    placement: Placement
    image: ImageHead | None
    is_adopted: bool
    found: Found = Found()
    provenance: Provenance | None = None


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
    | Converting
    | Committing
    | Ready
    | Waiting
    | Failed
    | Cancelled
    | Removing
    | Absent
)
Running = Admitting | Probing | Downloading | Verifying | Converting | Committing | Removing


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

    ``recorded`` is the digest it had when it became ready for this very wish, None where it never did. ``kept_for`` names another
    replica that needs the file as it is. ``damaged`` is kvmd's own file of that name, which is to be replaced because it has changed.
    """

    stored: Stored | None
    is_ours: bool = False
    recorded: Digest | None = None
    kept_for: str = ""
    damaged: Placement | None = None


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
    """All is synced and read back. ``takes_only_raw``: the pool has no place for an image of another format."""

    stored: Stored | Unusable
    takes_only_raw: bool = False


@dataclass(frozen=True, slots=True)
class Converted:
    """The raw image is synced and read back."""

    stored: Stored


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


Input = (
    Started
    | RemovalStarted
    | LookedUp
    | Probed
    | Fetched
    | Sealed
    | Converted
    | Committed
    | Removed
    | Broken
    | CancelRequested
)


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
class Convert:
    """Make a raw image of the sealed one; ``image`` is what its head told."""

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


Effect = LookUp | Probe | Fetch | Seal | Inspect | Convert | CheckUnused | Commit | Discard | Remove
Step = tuple[State, tuple[Effect, ...]]
