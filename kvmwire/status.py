"""What a host publishes: its own state, probes, replicas, receipts and progress."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, field_validator

from kvmwire.codes import FailureCode
from kvmwire.names import EventId, Name


class StatusModel(BaseModel):
    """A status: immutable; fields that a newer host adds are ignored by an older reader."""

    model_config = ConfigDict(frozen=True, extra="ignore", defer_build=True)

    @field_validator("*", mode="before")
    @classmethod
    def _encodable(cls, value: object) -> object:
        """Replace half surrogates, which stand for bytes that are no UTF-8 in a server's header or a file's name."""
        return value.encode(errors="replace").decode() if isinstance(value, str) and not value.isascii() else value


Bytes = Annotated[int, Field(ge=0, description="bytes")]


class Failure(StatusModel):
    """Why: a stable code, what happened, and what a person can do next."""

    code: FailureCode
    message: str
    hint: str


class HostState(StrEnum):
    """``offline`` is published by the broker as the host's last will, or by the host when it stops."""

    ONLINE = "online"
    OFFLINE = "offline"


class PoolState(StrEnum):
    """Whether volumes can be put into the pool."""

    ACTIVE = "active"
    MISSING = "missing"
    READONLY = "readonly"


class PoolStatus(StatusModel):
    """A storage pool of a host."""

    name: Name
    type: str
    path: str
    state: PoolState
    capacity: Bytes | None = None
    allocation: Bytes | None = None
    available: Bytes | None = None


class HostStatus(StatusModel):
    """A host: whether it listens, and what it has."""

    host: Name
    state: HostState
    version: str = ""
    labels: dict[str, str] = Field(default_factory=dict)
    protocols: tuple[str, ...] = ()
    pools: tuple[PoolStatus, ...] = ()
    sealing_key: str | None = Field(default=None, description="id of the key that secrets for this host are sealed to")
    signing_keys: int | None = Field(
        default=None, description="generation of the list of signing keys that counts here"
    )
    started: AwareDatetime | None = None
    since: AwareDatetime | None = None


class SourceProbe(StatusModel):
    """What one source looks like from one host. ``url`` and ``redirect`` are redacted."""

    url: str
    reachable: bool
    status: int | None = None
    tls: str | None = None
    size: Bytes | None = None
    ranges: bool | None = None
    etag: str | None = None
    last_modified: str | None = None
    redirect: str | None = None
    format: str | None = None
    virtual_size: Bytes | None = None
    compression: str | None = Field(default=None, description="how the image is packed; format is what is in it")
    seconds: float
    code: FailureCode | None = None
    message: str = ""
    hint: str = ""


class Verdict(StrEnum):
    """Of the sources can be used: ``good`` every one, ``degraded`` some, ``bad`` none; ``unchecked``: nobody asked."""

    GOOD = "good"
    DEGRADED = "degraded"
    BAD = "bad"
    UNCHECKED = "unchecked"


class ProbeStatus(StatusModel):
    """What a host found out about a template's sources when it was registered."""

    template: Name
    generation: int
    verdict: Verdict
    code: FailureCode | None = None
    message: str = ""
    hint: str = ""
    sources: tuple[SourceProbe, ...] = ()
    checked: AwareDatetime


class ReplicaState(StrEnum):
    """Where a replica stands; see ``is_settled`` and ``is_running``."""

    QUEUED = "queued"
    PROBING = "probing"
    DOWNLOADING = "downloading"
    VERIFYING = "verifying"
    COMMITTING = "committing"
    READY = "ready"
    WAITING = "waiting"
    FAILED = "failed"
    CANCELLED = "cancelled"
    REMOVING = "removing"
    ABSENT = "absent"

    @property
    def is_settled(self) -> bool:
        """Whether it stays so until somebody publishes something new."""
        return self in {ReplicaState.READY, ReplicaState.FAILED, ReplicaState.CANCELLED, ReplicaState.ABSENT}

    @property
    def is_running(self) -> bool:
        """Whether a session works on it right now."""
        return self in {
            ReplicaState.PROBING,
            ReplicaState.DOWNLOADING,
            ReplicaState.VERIFYING,
            ReplicaState.COMMITTING,
            ReplicaState.REMOVING,
        }


class Trust(StrEnum):
    """Why the content is believed: event signature and checksum, checksum alone, or nothing."""

    SIGNED = "signed"
    CHECKSUM = "checksum"
    NONE = "none"


class SourceState(StrEnum):
    """``standby``: not needed yet; ``active``: sends; ``waiting``: pauses; ``banned``: not asked again."""

    STANDBY = "standby"
    ACTIVE = "active"
    WAITING = "waiting"
    BANNED = "banned"


class SourceProgress(StatusModel):
    """One source's share of a download. ``url`` is redacted."""

    url: str
    bytes: Bytes
    bytes_per_second: Bytes
    state: SourceState
    code: FailureCode | None = None
    message: str = ""


class Progress(StatusModel):
    """A running download's figures."""

    size: Bytes | None = None
    done: Bytes
    bytes_per_second: Bytes
    eta_seconds: float | None = None
    resumed_from: Bytes = 0
    refetched: Bytes = Field(default=0, description="bytes that came more than once")
    connections: int = Field(default=0, ge=0, description="most connections at once")
    retries: int = Field(default=0, ge=0, description="requests that failed")
    sources: tuple[SourceProgress, ...] = ()


class ReplicaStatus(StatusModel):
    """The state of a template's volume in one pool of one host."""

    template: Name
    generation: int
    pool: Name
    state: ReplicaState
    code: FailureCode | None = None
    message: str = ""
    hint: str = ""
    path: str | None = None
    format: str | None = None
    size: Bytes | None = None
    virtual_size: Bytes | None = None
    checksum: str | None = None
    trust: Trust = Trust.NONE
    session: str | None = None
    attempt: int = 0
    since: AwareDatetime
    verified: AwareDatetime | None = Field(
        default=None, description="when all of the volume was last read from the disk and was what was promised"
    )
    last_used: AwareDatetime | None = Field(
        default=None, description="when an event last asked for it, or something was last seen to use it"
    )
    digest: str | None = Field(
        default=None, description="of the volume's bytes; another than checksum where that is of a compressed file"
    )
    warnings: tuple[str, ...] = Field(default=(), description="what is accepted and yet worth knowing")
    next_attempt: AwareDatetime | None = None
    progress: Progress | None = None


class GcKind(StrEnum):
    """Partial data in a staging folder, a volume that a replica had before, or a replica's volume."""

    STAGING = "staging"
    FORMER = "former"
    REPLICA = "replica"


class GcItem(StatusModel):
    """One thing in a pool: whether it goes, and why. ``template`` is empty for partial data."""

    pool: Name
    path: str
    kind: GcKind
    template: str = ""
    size: Bytes
    goes: bool
    why: str


class GcSkipped(StatusModel):
    """A pool that could not be looked into."""

    pool: Name
    why: str


class GcStatus(StatusModel):
    """The last time that a host looked for garbage. ``event`` is the command that asked for it, if one did.

    With ``dry_run`` nothing was deleted. ``deleted`` counts what went, or would have, ``freed`` its bytes. Of many ``items`` not
    all are told: first what goes.
    """

    host: Name
    event: EventId | None = None
    dry_run: bool = False
    deleted: int = Field(default=0, ge=0)
    freed: Bytes = 0
    kept: int = Field(default=0, ge=0)
    items: tuple[GcItem, ...] = ()
    skipped: tuple[GcSkipped, ...] = ()
    since: AwareDatetime


class MachineState(StrEnum):
    """Where a virtual machine stands."""

    DEFINED = "defined"
    STARTING = "starting"
    RUNNING = "running"
    STOPPED = "stopped"
    FAILED = "failed"


class MachineStatus(StatusModel):
    """The state of a virtual machine on a host. ``uuid`` is its domain's, and cloud-init's instance id.

    Of a machine that is removed nothing is retained.
    """

    name: Name
    generation: int
    deployment: Name
    template: Name
    pool: Name
    state: MachineState
    code: FailureCode | None = None
    message: str = ""
    hint: str = ""
    uuid: str | None = None
    console: str = Field(default="", description="the end of what it wrote on its serial console, at most 4 KiB")
    since: AwareDatetime
    next_attempt: AwareDatetime | None = None


class CredentialState(StrEnum):
    """What became of a credential on a host; with ``refused`` an earlier one may still be in force."""

    INSTALLED = "installed"
    REFUSED = "refused"
    REVOKED = "revoked"


class CredentialStatus(StatusModel):
    """A credential on a host, without anything secret.

    ``generation`` is that of the event judged last, ``installed`` the one in force. ``fingerprint`` is the SHA-256 of the client
    certificate, or of the first CA certificate where there is none; ``expires`` is the earliest end of any certificate in it.
    """

    credential: Name
    state: CredentialState
    generation: int
    installed: int | None = None
    origins: tuple[str, ...] = ()
    holds: tuple[str, ...] = Field(default=(), description="of: anchors, headers, certificate, keys")
    fingerprint: str | None = None
    expires: AwareDatetime | None = None
    code: FailureCode | None = None
    message: str = ""
    hint: str = ""
    since: AwareDatetime


class Outcome(StrEnum):
    """What a host did with an event."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"
    STALE = "stale"
    REFUSED = "refused"


class Receipt(StatusModel):
    """A host's answer to one event. ``generation`` is the one that now holds for the event's subject."""

    event: EventId
    host: Name
    outcome: Outcome
    topic: str
    generation: int | None = None
    code: FailureCode | None = None
    message: str = ""
    hint: str = ""
    time: AwareDatetime


Status = HostStatus | ProbeStatus | ReplicaStatus | GcStatus | MachineStatus | CredentialStatus | Receipt | Progress
