"""What a controller publishes: the data of Register, Deploy and Command events, and the event around it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    PositiveInt,
    Tag,
    model_validator,
)
from pydantic_core import PydanticCustomError

from kvmwire.codes import WireError
from kvmwire.digest import Digest
from kvmwire.headers import check_header_name, check_header_value
from kvmwire.images import ChecksumOf, ImageFormat
from kvmwire.names import EventId, Name
from kvmwire.origins import OriginPattern
from kvmwire.signing import Signature
from kvmwire.source import SourceUrl
from kvmwire.topics import EventTopic
from kvmwire.trust import TrustList

MAX_SOURCES = 64
MAX_HEADERS = 64
MAX_ORIGINS = 64
MAX_PEM = 128 * 1024
MAX_SIZE = 2**63 - 1
MAX_GENERATION = 2**63 - 1
MAX_VCPUS = 4096
MAX_MEMORY_MIB = 2**30
MAX_DISK_GIB = 2**21
MAX_CDROMS = 8


class Ensure(StrEnum):
    """What the event wants to be true of its subject."""

    PRESENT = "present"
    ABSENT = "absent"


def _check_url(text: str) -> str:
    try:
        SourceUrl.parse(text)
    except WireError as exc:
        raise coded_error(exc) from exc
    return text


def _check_checksum(text: str) -> str:
    try:
        return str(Digest.parse(text))
    except WireError as exc:
        raise coded_error(exc) from exc


def _check_checksum_or_url(text: str) -> str:
    return _check_url(text) if "://" in text else _check_checksum(text)


def _check_header_name(name: str) -> str:
    try:
        return check_header_name(name)
    except WireError as exc:
        raise coded_error(exc) from exc


def _check_header_value(value: str) -> str:
    try:
        return check_header_value(value)
    except WireError as exc:
        raise coded_error(exc) from exc


def _check_origin(text: str) -> str:
    try:
        return str(OriginPattern.parse(text))
    except WireError as exc:
        raise coded_error(exc) from exc


def coded_error(exc: WireError) -> PydanticCustomError:
    """Carry a failure code through pydantic's validation; the codec takes it out again."""
    context = {"message": exc.message, "hint": exc.hint}
    return PydanticCustomError(exc.code.value, "{message}", context)  # pyright: ignore[reportArgumentType] - of an enum


Url = Annotated[str, AfterValidator(_check_url), Field(json_schema_extra={"format": "uri"})]
Checksum = Annotated[
    str, AfterValidator(_check_checksum_or_url), Field(description="{ALGORITHM}hex, or the URL of a file that has it")
]
HeaderName = Annotated[str, AfterValidator(_check_header_name)]
HeaderValue = Annotated[str, AfterValidator(_check_header_value)]
Origins = Annotated[
    tuple[Annotated[str, AfterValidator(_check_origin)], ...],
    Field(min_length=1, max_length=MAX_ORIGINS, description="scheme://host[:port]; the host may begin with `*.`"),
]
Label = Annotated[str, Field(min_length=1, max_length=128)]
Labels = dict[Name, Label]


class WireModel(BaseModel):
    """Data of an event: immutable, and an unknown field is an error, because a typo must not pass."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False, val_json_bytes="utf8", defer_build=True)


class RegisterData(WireModel):
    """A template: where its content is, and how to know that it is right."""

    template: Name
    url: Url | None = None
    sources: tuple[Url, ...] = Field(default=(), max_length=MAX_SOURCES)
    checksum: Checksum | None = None
    checksum_of: ChecksumOf = Field(
        default=ChecksumOf.SERVED, description="what the checksum is of, where the file is compressed"
    )
    format: ImageFormat = ImageFormat.AUTO
    size: Annotated[PositiveInt, Field(le=MAX_SIZE)] | None = Field(default=None, description="bytes")
    headers: dict[HeaderName, HeaderValue] = Field(
        default_factory=dict, max_length=MAX_HEADERS, description="plain HTTP headers, not for secrets"
    )
    credentials: tuple[Name, ...] = Field(default=(), max_length=MAX_SOURCES)
    check: Literal["all", "none"] | tuple[Name, ...] = "all"
    description: str = Field(default="", max_length=4096)
    labels: Labels = Field(default_factory=dict, max_length=64)
    ensure: Ensure = Ensure.PRESENT

    @model_validator(mode="after")
    def _has_sources(self) -> Self:
        if self.ensure is Ensure.PRESENT and not self.urls:
            raise PydanticCustomError("EVENT_SCHEMA", "expected `url` or `sources`, got neither")
        return self

    @property
    def urls(self) -> tuple[str, ...]:
        """All sources, each once, the first named first."""
        return tuple(dict.fromkeys(((self.url,) if self.url else ()) + self.sources))

    @property
    def digest(self) -> Digest | None:
        """The checksum, parsed; None where the event has none, or the URL of a file that has it."""
        return None if self.checksum is None or "://" in self.checksum else Digest.parse(self.checksum)

    @property
    def checksum_url(self) -> str | None:
        """Where the checksum is to be taken from, None where the event does not say so."""
        return self.checksum if self.checksum is not None and "://" in self.checksum else None

    def is_checked_by(self, host: str) -> bool:
        """Whether this host is asked to probe the sources."""
        return self.check == "all" or (self.check != "none" and host in self.check)


class HostLabels(WireModel):
    """Selects the hosts that carry all of these labels."""

    labels: Labels = Field(min_length=1, max_length=64)


class CloudInit(WireModel):
    """The two documents of a NoCloud seed."""

    user_data: str = ""
    meta_data: str = ""


class Machine(WireModel):
    """A virtual machine to start from the template; with ``ensure: absent`` one to remove, and the template's replica stays."""

    name: Name
    vcpus: Annotated[PositiveInt, Field(le=MAX_VCPUS)] = 1
    memory_mib: Annotated[PositiveInt, Field(le=MAX_MEMORY_MIB)] = 1024
    disk_gib: Annotated[PositiveInt, Field(le=MAX_DISK_GIB)] | None = Field(
        default=None, description="size of its disk; the template's where it is not given"
    )
    network: Name | None = Field(
        default=None, description="a network of libvirt's, `user` or `none`; the host's choice where it is not given"
    )
    cloud_init: CloudInit | None = None
    cdrom: tuple[Name, ...] = Field(
        default=(), max_length=MAX_CDROMS, description="templates of format iso, ready on the host"
    )
    start: bool = Field(default=True, description="whether it is to run")


def _name_or_record(value: object) -> str:
    return "name" if isinstance(value, str) else "record"


class DeployData(WireModel):
    """A template's replica that is to be, or not to be, in a pool of the selected hosts."""

    deployment: Name
    template: Annotated[
        Annotated[Name, Tag("name")] | Annotated[RegisterData, Tag("record")], Discriminator(_name_or_record)
    ]
    pool: Name = "default"
    hosts: Literal["all"] | HostLabels | tuple[Name, ...] = "all"
    ensure: Ensure = Ensure.PRESENT
    name: Name | None = Field(default=None, description="the volume's name; the template's where it is not given")
    deadline: AwareDatetime | None = None
    priority: int = Field(default=0, ge=-1000, le=1000, description="the higher goes first")
    rate_limit: int = Field(default=0, ge=0, le=MAX_SIZE, description="bytes a second; 0: no limit")
    machine: Machine | None = None

    @model_validator(mode="after")
    def _template_is_present(self) -> Self:
        template_is_absent = isinstance(self.template, RegisterData) and self.template.ensure is Ensure.ABSENT
        if template_is_absent and self.ensure is Ensure.PRESENT:
            raise PydanticCustomError("EVENT_SCHEMA", "the template to deploy says `ensure: absent`")
        return self

    @property
    def template_name(self) -> str:
        """The template's name, whether the whole record was sent or the name alone."""
        return self.template if isinstance(self.template, str) else self.template.template

    @property
    def volume(self) -> str:
        """The volume's name in the pool."""
        return self.name or self.template_name

    def selects(self, host: str, labels: Mapping[str, str]) -> bool:
        """Whether the event is meant for the host that carries these labels."""
        match self.hosts:
            case "all":
                return True
            case HostLabels(labels=wanted):
                return wanted.items() <= labels.items()
            case names:
                return host in names


class CommandData(WireModel):
    """What a command is about; without a template it is about everything on the host."""

    template: Name | None = None
    pool: Name | None = None
    reason: str = Field(default="", max_length=1024)
    dry_run: bool = Field(default=False, description="of gc: delete nothing, only tell what would go")


class Sealed(WireModel):
    """A secret sealed to one host (``kvmwire.seal``): all three are base64, but for ``recipient``, the id of the host's key."""

    recipient: str = Field(max_length=64)
    key: str = Field(max_length=1024, description="the wrapped content key: HPKE's enc and ciphertext")
    ciphertext: str = Field(max_length=192 * 1024)


class CredentialData(WireModel):
    """What a host is to show to, or to believe of, the servers of some origins; or the new list of signing keys.

    ``anchors`` are CA certificates (PEM): public. ``sealed`` holds headers and a client certificate with its key.
    """

    credential: Name
    origins: Origins | None = None
    anchors: str = Field(default="", max_length=MAX_PEM)
    sealed: Sealed | None = None
    trust: TrustList | None = None
    ensure: Ensure = Ensure.PRESENT

    @model_validator(mode="after")
    def _holds_something(self) -> Self:
        if self.ensure is Ensure.ABSENT:
            return self
        is_for_origins = bool(self.anchors) or self.sealed is not None
        if is_for_origins == (self.trust is not None):
            raise PydanticCustomError("EVENT_SCHEMA", "expected `anchors` or `sealed`, or `trust` alone")
        if is_for_origins and self.origins is None:
            raise PydanticCustomError("EVENT_SCHEMA", "origins: expected which servers it is for")
        return self


EventData = RegisterData | DeployData | CommandData | CredentialData


class EventType(StrEnum):
    """The CloudEvents ``type`` of each kind of event."""

    REGISTER = "io.kvmd.register.v1"
    DEPLOY = "io.kvmd.deploy.v1"
    COMMAND = "io.kvmd.command.v1"
    CREDENTIAL = "io.kvmd.credential.v1"


@dataclass(frozen=True, slots=True)
class Event:
    """One decoded event.

    ``content`` is the SHA-256 of the canonical data: two events with the same content want the same.
    ``is_bare`` tells that the payload was the data alone: ``id`` comes from topic and payload, there is no generation.
    ``signature`` has been read, not verified: see ``kvmd.core.warrant``.
    """

    id: EventId
    topic: EventTopic
    data: EventData
    content: str
    source: str
    is_bare: bool
    generation: int | None = None
    time: datetime | None = None
    expires: datetime | None = None
    signature: Signature | None = None

    @property
    def type(self) -> EventType:
        """The CloudEvents type, which follows from the data."""
        return type_of(self.data)


def type_of(data: EventData) -> EventType:
    """Name the CloudEvents type that carries this data."""
    match data:
        case RegisterData():
            return EventType.REGISTER
        case DeployData():
            return EventType.DEPLOY
        case CommandData():
            return EventType.COMMAND
        case CredentialData():
            return EventType.CREDENTIAL
