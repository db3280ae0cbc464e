"""The edges that the engine and the daemon need, as Protocols. Only ``app`` knows what stands behind them."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Protocol

from kvmd.core.backing import Dependents
from kvmd.core.checkpoint import Checkpoint
from kvmd.core.compression import Bounds, Compression
from kvmd.core.entity import Entity
from kvmd.core.image import ImageHead
from kvmd.core.manifest import Manifest
from kvmd.core.placement import Placement, Stored, Unusable
from kvmd.core.ranges import ByteRange
from kvmwire.digest import Algorithm, Digest
from kvmwire.source import Origin, SourceUrl
from kvmwire.status import PoolStatus
from kvmwire.topics import Topic

if TYPE_CHECKING:  # what only the daemon has: `kvmd fetch` starts sooner without
    from kvmd.core.desired import HostRecord, MachineRecord, ProbeRecord, Recorded, Replica
    from kvmd.core.domain import Domain, DomainSpec, MachineFiles, Switch
    from kvmd.core.garbage import Remnant


@dataclass(frozen=True, slots=True)
class Head:
    """What a source's first range told: the entity, its first bytes, and how it was reached.

    ``status``, ``tls`` and ``redirect`` are HTTP's. ``media_type`` is what the server calls it, lower case, without parameters.
    ``manifest`` and ``described_by`` are what the answer says of the file beside its bytes (RFC 6249).
    """

    entity: Entity
    head: bytes
    status: int | None = None
    tls: str | None = None
    redirect: SourceUrl | None = None
    media_type: str = ""
    manifest: Manifest = Manifest()
    described_by: tuple[SourceUrl, ...] = ()


class Source(Protocol):
    """One URL of an image. Errors: SourceError, whose class says whether trying again can help."""

    @property
    def url(self) -> SourceUrl:
        """The URL as it was given."""
        ...

    async def probe(self) -> Head:
        """Ask for the first range, once."""
        ...

    def read(
        self, wanted: ByteRange | None, entity: Entity, *, block: int
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes | memoryview]]:
        """Open one stream of these bytes of the entity, or of the whole where the range is None.

        It gives blocks of about ``block`` bytes, smaller ones where they come slowly; a block is valid until the next is asked
        for. Raises EntityChangedError where the source serves another entity now. The stream ends with the last wanted byte.
        """
        ...


@dataclass(frozen=True, slots=True)
class Access:
    """What a template brings along to its sources.

    ``headers`` go to the origin of the URL they are given for, and to no other. ``credentials`` are names: each is used for the
    origins that it covers, wherever a redirect or a mirror leads.
    """

    headers: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    credentials: tuple[str, ...] = ()

    @property
    def elsewhere(self) -> Access:
        """What of it goes along to a URL that somebody else than the event named."""
        return Access(credentials=self.credentials)


class Credentials(Protocol):
    """The credentials that are installed on this host: asked anew for every request, so that the next one uses what came last.

    Headers and client certificates are given only where the template names the credential and the credential covers the origin;
    CA certificates for every connection to an origin that their credential covers, instead of the system's.
    """

    def has(self, name: str) -> bool:
        """Whether a credential of this name is installed."""
        ...

    def headers(self, origin: Origin, names: Sequence[str]) -> Mapping[str, str]:
        """Give the headers for one request. Raises CredentialMissingError where one of the names is not installed."""
        ...

    async def tls(self, origin: Origin, names: Sequence[str]) -> ssl.SSLContext | None:
        """Give the TLS settings for one connection, None for the system's. Raises CredentialMissingError.

        The same context means the same identity: a connection may be used again for a request that gets the same one.
        """
        ...

    def presented(self, origin: Origin, names: Sequence[str]) -> str | None:
        """Name the credential whose client certificate ``tls`` presents."""
        ...


class Sources(Protocol):
    """Makes sources out of URLs; one implementation serves one or more protocols."""

    def open(self, url: SourceUrl, access: Access) -> Source:
        """Give the source. Raises SourceError. Does not connect yet."""
        ...

    async def close(self) -> None:
        """Let go of everything; no source of it is used any more."""
        ...


class Keyring(Protocol):
    """Public keys that the host's operator trusts."""

    async def verify(self, document: bytes, signature: bytes) -> None:
        """Check a detached signature. Raises SignatureError unless one of the keys made it of these very bytes."""
        ...


class Volume(Protocol):
    """A partial volume. After an error of the disk it is poisoned: only ``discard`` is left. Errors: StoreError."""

    @property
    def checkpoint(self) -> Checkpoint | None:
        """What an earlier attempt left that can be gone on from; None for a fresh volume."""
        ...

    @property
    def takes_only_raw(self) -> bool:
        """Whether it is committed only as bytes that a machine sees as they are: raw or ISO. Its pool has no files."""
        ...

    async def write(self, offset: int, block: bytes | memoryview) -> None:
        """Write a block at the offset."""
        ...

    async def digest(self, part: ByteRange, algorithm: Algorithm) -> Digest:
        """Give the digest of these bytes, which must all have been written."""
        ...

    async def save(self, checkpoint: Checkpoint) -> None:
        """Sync everything written before this call, then journal the checkpoint, whose bytes must all have been written."""
        ...

    async def seal(self, size: int) -> Stored | Unusable:
        """Sync, and read back all of it: the digests are of what the disk holds. They followed the writes, so little is left.

        Unusable only where the request asks for unpacking.
        """
        ...

    async def open_sealed(self) -> int:
        """Open what was sealed, for reading alone and by others than kvmd's user, too; the caller closes the descriptor."""
        ...

    async def convert(self, image: ImageHead, converter: Converter) -> Stored:
        """Let the raw form of what was sealed, which is ``image``, become the volume; synced and read back as ``seal`` does.

        What was downloaded stays until ``commit``. Raises ConvertError, and NoSpaceError before anything is written where there is no
        room for both.
        """
        ...

    async def commit(self, *, replaces: Placement | None = None) -> Placement:
        """Give the volume its final name, atomically and durably; that very file, if it has the name, is replaced and deleted.

        Raises ExistsError where another has the name: it is left as it is.
        """
        ...

    async def close(self, *, discard: bool) -> None:
        """Let go of it; ``discard`` deletes the partial data and its journal, else a later attempt goes on from them."""
        ...


@dataclass(frozen=True, slots=True)
class Inspected:
    """An image's structures are sound. ``leaks`` clusters of it are wasted, which does no harm."""

    leaks: int = 0


class Inspector(Protocol):
    """Looks at a whole image with a program that knows its format, in a sandbox."""

    async def inspect(self, volume: int, image: ImageHead) -> Inspected | None:
        """Check an open volume whose head was found good. None where nothing can be checked.

        Raises ImageInvalidError, ImageTruncatedError or ImageUnsafeError, also where the check does not end well, and InspectorError
        where there is nobody to do it.
        """
        ...


class Converter(Protocol):
    """Makes raw images of others with a program that knows their format, in a sandbox.

    Errors: ConvertError, NoSpaceError, and InspectorError where there is nobody to do it.
    """

    async def measure(self, volume: int, image: ImageHead) -> int:
        """Give about how many bytes the raw form of an open image takes, runs of zeros left out."""
        ...

    async def convert(self, volume: int, image: ImageHead, target: int, *, writes_zeros: bool) -> None:
        """Write the raw form of an open image into an open file of its virtual size that reads as zeros, and others may write to.

        Runs of zeros are left out unless ``writes_zeros``. Nobody has the target open for writing afterwards who got it here.
        """
        ...


@dataclass(frozen=True, slots=True)
class Packing:
    """How what is written is compressed: the volume is its content, known by the digest of this algorithm.

    ``is_hasty``: a write says that the file cannot be unpacked as soon as that is known; else ``seal`` does.
    """

    compression: Compression
    bounds: Bounds
    algorithm: Algorithm
    is_hasty: bool = False


@dataclass(frozen=True, slots=True)
class VolumeRequest:
    """A partial volume to open: ``key`` tells apart contents that want the same name; ``size`` None where unknown.

    ``algorithms`` are the digests to take of what is written, the one to know it by first. ``is_rewritten`` tells that written
    bytes may turn out wrong and be written again: then only those of a checkpoint are final. ``copy_of`` is a finished volume of the
    pool with the same content: a fresh partial volume is filled from it. ``packing``: what is written is compressed.
    """

    name: str
    key: str
    size: int | None
    algorithms: Sequence[Algorithm]
    is_rewritten: bool = False
    resumes: Callable[[Checkpoint], bool] = field(default=lambda _: False)
    copy_of: Placement | None = None
    packing: Packing | None = None


class Store(Protocol):
    """A storage pool. Errors: StoreError."""

    async def open(self, request: VolumeRequest) -> Volume:
        """Open or go on with a partial volume and reserve its space. Raises NoSpaceError, InUseError, PoolMissingError..."""
        ...

    async def find(self, name: str, *, known: Placement | None, algorithm: Algorithm) -> Stored | None:
        """Look for the finished volume of that name; hashes it unless ``known`` is provably that very file.

        None where nothing has the name. Raises ExistsError where something else than a regular file has it.
        """
        ...

    async def remove(self, placement: Placement) -> bool:
        """Delete that very file; False, and nothing is touched, where the name is gone or another file has it."""
        ...

    async def discard(self, name: str) -> None:
        """Delete every partial volume of that name that nobody is working on."""
        ...

    async def status(self) -> PoolStatus:
        """Describe the pool as it is now. Never raises."""
        ...


class Keeper(Protocol):
    """Looks after what lies in a storage pool. Errors: StoreError."""

    async def reread(self, placement: Placement, *, rate: int) -> Placement | None:
        """Read what has the volume's name from the disk, at most ``rate`` bytes a second (0: no limit), and give its digest.

        None where nothing has the name. Raises ExistsError where something else than a regular file has it.
        """
        ...

    async def dependents(self, path: str) -> Dependents:
        """Look which of this pool's volumes read from the volume at ``path``, of this pool or another, or may."""
        ...

    async def whereabouts(self, placement: Placement) -> str:
        """Give the path that leads to the volume now: devices are called otherwise after a boot."""
        ...


class Sweeper(Protocol):
    """Finds and deletes the partial data that nobody goes on with in a storage pool. Errors: StoreError."""

    async def remnants(self, *, unlocked_since: datetime) -> Sequence[Remnant]:
        """List the partial volumes; of those that were not written to since then it is found out whether they are locked."""
        ...

    async def sweep(self, remnant: Remnant) -> bool:
        """Delete these very files; False, and nothing is touched, where somebody works on them or has done so since."""
        ...


class Domains(Protocol):
    """All domains of this host's hypervisors, whoever defined them. Errors: StoreError, where they cannot be asked."""

    async def using(self, path: str) -> Mapping[str, str]:
        """Name those that need the file at ``path``, or may; with why where that is not plain, else with nothing."""
        ...

    async def standing(self, images: Collection[str], path: str) -> Mapping[str, bool]:
        """Give those of ``images``, which kvmd cannot read, that stand on ``path``, or may; and whether they surely do.

        What a domain has as a disk is none of these unless it surely does: that is judged by ``using``.
        """
        ...


class PoolStore(Store, Keeper, Sweeper, Protocol):
    """All that is done with a storage pool."""


@dataclass(frozen=True, slots=True)
class Holder:
    """The host that makes a volume of a shared pool (empty where it cannot be told), and how far it is: bytes."""

    host: str
    done: int = 0
    size: int | None = None


class Sharing(Protocol):
    """A storage pool that several hosts have. Errors: StoreError."""

    async def holder(self, name: str) -> Holder | None:
        """Tell which other host makes the volume of that name; None where it is there, or nobody does."""
        ...

    async def hold(self, placement: Placement, *, is_ours: bool) -> bool:
        """Note that this host needs that very volume until it is removed, and tell whether a kvmd has put it there.

        ``is_ours``: it was this one's. Raises InUseError where the volume is taken away right now.
        """
        ...


@dataclass(frozen=True, slots=True)
class Delivery:
    """One message as it arrived."""

    topic: Topic
    payload: bytes
    is_retained: bool
    is_redelivery: bool


@dataclass(frozen=True, slots=True)
class Message:
    """One message to publish; of two with the same topic that wait for a connection only the later is sent."""

    topic: Topic
    payload: bytes
    is_retained: bool = True
    is_droppable: bool = False
    on_sent: Callable[[], Awaitable[None]] | None = None


class Bus(Protocol):
    """The MQTT side: connects for ever, hands every event to the inbox, and acknowledges it once the inbox returns."""

    async def run(self, *, inbox: Callable[[Delivery], Awaitable[None]], greet: Callable[[], Awaitable[None]]) -> None:
        """Serve until cancelled; ``greet`` is awaited after every connect and posts what must be known of this host."""
        ...

    def post(self, message: Message) -> None:
        """Queue a message; it is sent as soon as there is a connection, a droppable one only while there is one."""
        ...

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection right now."""
        ...

    def replay(self) -> None:
        """Have the broker send once more what it retains, now or after the next connect."""
        ...

    async def flush(self) -> None:
        """Wait until everything queued is sent, or there is no connection."""
        ...


class Journal(Protocol):
    """The host's memory: every call returns when it is on disk. Errors: StoreIoError."""

    async def record(self, event: Recorded) -> None:
        """Store an event's outcome and what it changes, in one transaction."""
        ...

    async def load(self) -> HostRecord:
        """Read everything."""
        ...

    async def save_replica(self, replica: Replica) -> None:
        """Store where a replica stands."""
        ...

    async def save_probe(self, probe: ProbeRecord) -> None:
        """Store what was found out about a template's sources."""
        ...

    async def receipt_sent(self, event_id: str) -> None:
        """Note that the broker has taken the receipt."""
        ...


class MachineJournal(Protocol):
    """What the journal keeps of machines. Errors: StoreIoError."""

    async def save_machine(self, machine: MachineRecord) -> None:
        """Store where a machine stands."""
        ...

    async def forget_machine(self, name: str) -> None:
        """Forget a machine of which nothing is left."""
        ...


class Hypervisor(Protocol):
    """Makes and runs virtual machines. Errors: MachineError, ExistsError, NoSpaceError, HypervisorUnreachableError..."""

    async def look(self, names: Collection[str]) -> Mapping[str, Domain]:
        """Give those of these domains that there are, by their names. Asked for none, it gets ready, which may take seconds."""
        ...

    async def make(self, spec: DomainSpec, files: MachineFiles, *, is_new: bool) -> None:
        """Make the files that are missing, and define the domain, anew where it is defined. What is there is kept.

        ``is_new``: nothing of it was ever made, so that a file of its names is somebody else's: raises ExistsError.
        """
        ...

    async def switch(self, uuid: str, to: Switch) -> str:
        """Start it, ask it to shut down, or pull its plug; nothing where it is so already. Gives the remark as ``look`` does."""
        ...

    async def remove(self, uuid: str, files: MachineFiles) -> None:
        """Stop and undefine the domain, and delete the files: whatever there is of them."""
        ...

    async def console(self, path: str) -> str:
        """Give the end of what a machine wrote; empty where there is nothing, or nothing that can be read."""
        ...


class Clock(Protocol):
    """Time and chance, so that decisions take them as values."""

    def now(self) -> datetime:
        """Give the wall-clock time, in UTC: for people and for events' times."""
        ...

    def monotonic(self) -> float:
        """Give seconds that never jump: for pauses and rates."""
        ...

    def jitter(self) -> float:
        """Give a random number in 0..1."""
        ...
