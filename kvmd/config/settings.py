"""The settings, their defaults and their meaning. Immutable; an unknown key is an error: a typo must not pass."""

from __future__ import annotations

import ipaddress
import re
import socket
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast

from pydantic import BaseModel, ConfigDict, Discriminator, Field, SecretStr, Tag, model_validator
from pydantic_core import PydanticCustomError

from kvmd.config.fields import (
    UNQUOTED,
    AbsolutePath,
    BrokerAddress,
    BrokerUrl,
    KeyPath,
    LeaseSeconds,
    Listen,
    Network,
    NetworkSetting,
    OptionalPath,
    OriginSetting,
    Port,
    Protocol,
    ProxyUrl,
    Seconds,
    SettingName,
    Size,
    TopicPrefix,
    parse_broker_url,
    parse_listen,
)
from kvmd.errors import ConfigError

_MAX_PASSWORD_FILE_SIZE = 64 << 10

DENIED_NETWORKS: tuple[Network, ...] = tuple(
    ipaddress.ip_network(text)
    for text in (
        "0.0.0.0/8",  # unspecified: Linux connects to itself
        "127.0.0.0/8",
        "169.254.0.0/16",  # link-local, with the metadata services of the clouds
        "224.0.0.0/4",
        "255.255.255.255/32",
        "::/128",
        "::1/128",
        "fe80::/10",
        "ff00::/8",
        "fd00:ec2::254/128",  # a cloud's metadata service that is not link-local
    )
)

# Those that web browsers refuse (Fetch standard, "port blocking"), but for 2049: NFS is a protocol of ours.
# fmt: off
DENIED_PORTS = (
    1, 7, 9, 11, 13, 15, 17, 19, 20, 21, 22, 23, 25, 37, 42, 43, 53, 69, 77, 79, 87, 95, 101, 102, 103, 104, 109, 110, 111, 113,
    115, 117, 119, 123, 135, 137, 139, 143, 161, 179, 389, 427, 465, 512, 513, 514, 515, 526, 530, 531, 532, 540, 548, 554, 556,
    563, 587, 601, 636, 989, 990, 993, 995, 1719, 1720, 1723, 3659, 4045, 4190, 5060, 5061, 6000, 6566, 6665, 6666, 6667, 6668,
    6669, 6679, 6697, 10080,
)
# fmt: on


class Section(BaseModel):
    """A table of the settings file."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class MqttSettings(Section):
    """The broker, and how to log in there."""

    url: BrokerUrl = Field(
        default="mqtt://127.0.0.1:1883", description="mqtt://host:port, or mqtts://host:port for TLS"
    )
    ca: KeyPath = Field(
        default=None, description="PEM file of the CAs that may sign the broker's certificate; empty: the system's"
    )
    cert: KeyPath = Field(default=None, description="PEM file of the client certificate and its chain")
    key: KeyPath = Field(
        default=None, description="PEM file of the client certificate's private key, such as keys/mqtt.key"
    )
    username: str = Field(default="", max_length=1024, description="user name; empty: none is sent")
    password_file: KeyPath = Field(
        default=None, description="file whose first line is the password, such as keys/mqtt.password"
    )
    prefix: TopicPrefix = Field(default="kvmd/v1", description="first levels of every topic")
    version: Literal["auto", "5", "3.1.1"] = Field(default="auto", description="MQTT version; auto tries 5, then 3.1.1")

    @property
    def address(self) -> BrokerAddress:
        """Host, port and TLS of ``url``."""
        return parse_broker_url(self.url)

    @model_validator(mode="after")
    def _belong_together(self) -> Self:
        if (self.cert is None) != (self.key is None):
            raise _unquoted("cert and key are only of use together; set both or none")
        if not self.address.tls and (self.ca or self.cert):
            raise _unquoted("ca, cert and key are only used with an mqtts:// url; set it, or remove them")
        if self.password_file is not None and not self.username:
            raise _unquoted("password_file is only used with a username; set it, or remove password_file")
        return self

    def read_password(self) -> SecretStr | None:
        """Read the first line of ``password_file``; None without one. Raises ConfigError that names the file."""
        if self.password_file is None:
            return None
        try:
            with self.password_file.open("rb") as file:
                line = file.read(_MAX_PASSWORD_FILE_SIZE).partition(b"\n")[0]
            password = line.removesuffix(b"\r").decode()
        except OSError as exc:
            raise ConfigError(
                f"mqtt.password_file: {self.password_file} cannot be read: {exc.strerror}.",
                hint="Create the file, or give the daemon the right to read it.",
            ) from exc
        except UnicodeDecodeError as exc:
            raise ConfigError(
                f"mqtt.password_file: {self.password_file} is not UTF-8 text.", hint="Write it anew."
            ) from exc
        if not password:
            raise ConfigError(
                f"mqtt.password_file: the first line of {self.password_file} is empty.",
                hint="Write the password into its first line.",
            )
        return SecretStr(password)


class DirectoryPool(Section):
    """A storage pool that is a folder."""

    type: Literal["directory"] = Field(default="directory", description="kind of the pool")
    path: AbsolutePath = Field(description="folder of the volumes")
    allocation: Literal["sparse", "dense", "full"] = Field(
        default="sparse",
        description="runs of zeros become holes (sparse), reserved space (dense), or are written (full)",
    )
    format: Literal["keep", "raw"] = Field(
        default="keep", description="keep: images stay what they are; raw: qcow2, VMDK and VHDX are converted to raw"
    )
    shared: bool = Field(
        default=False,
        description="whether other hosts have the same folder as a pool, as on NFS: then each image is downloaded once",
    )
    lease_s: LeaseSeconds = Field(
        default=30.0,
        description="seconds after which another host of a shared pool goes on with the download of one that shows no life",
    )

    @property
    def place(self) -> str:
        """What no other pool may have."""
        return f"path {self.path}"


class LibvirtPool(Section):
    """A storage pool that libvirt knows."""

    type: Literal["libvirt"] = Field(description="kind of the pool")
    uri: str = Field(
        default="qemu:///system",
        min_length=1,
        max_length=1024,
        description="libvirtd to ask about a pool of type libvirt",
    )
    pool: str = Field(min_length=1, max_length=255, description="name that a pool of type libvirt has there")
    staging: AbsolutePath | None = Field(
        default=None,
        description="folder where images for a pool of block devices are made ready; default: state_dir/staging/NAME",
    )
    units: tuple[Annotated[str, Field(pattern=r"^unit:\d+:\d+:\d+$")], ...] = Field(
        default=(),
        description="volumes of a pool of type iscsi-direct that may be overwritten, by libvirt's names (unit:0:0:1)",
    )
    allocation: Literal["sparse", "dense", "full"] = Field(
        default="sparse",
        description="runs of zeros become holes (sparse), reserved space (dense), or are written (full)",
    )
    format: Literal["keep", "raw"] = Field(
        default="keep", description="keep: images stay what they are; raw: qcow2, VMDK and VHDX are converted to raw"
    )
    shared: bool = Field(
        default=False,
        description="whether other hosts have the same folder as a pool, as on NFS: then each image is downloaded once",
    )
    lease_s: LeaseSeconds = Field(
        default=30.0,
        description="seconds after which another host of a shared pool goes on with the download of one that shows no life",
    )

    @property
    def place(self) -> str:
        """What no other pool may have."""
        return f"pool {self.pool} at {self.uri}"


POOLS: tuple[type[Section], ...] = (DirectoryPool, LibvirtPool)


def pool_type(table: Any) -> str:
    """Give the type of a pool, or of its table, which is a folder's where it says nothing."""
    if isinstance(table, DirectoryPool | LibvirtPool):
        return table.type
    fields = cast("dict[str, Any]", table if isinstance(table, dict) else {})
    return str(fields.get("type", "directory"))


Pool = Annotated[
    Annotated[DirectoryPool, Tag("directory")] | Annotated[LibvirtPool, Tag("libvirt")], Discriminator(pool_type)
]


class TransferSettings(Section):
    """How much is downloaded at once, how fast, and when a source is given up."""

    sessions: int = Field(default=4, ge=1, le=64, description="images downloaded at the same time")
    connections: int = Field(
        default=8, ge=1, le=64, description="connections of one session, to all its sources together"
    )
    connections_per_source: int = Field(default=4, ge=1, le=32, description="connections of one session to one source")
    rate_limit: Size = Field(default=0, description="bytes per second of all sessions together; 0: no limit")
    stall_timeout_s: Seconds = Field(
        default=30.0, description="seconds without progress after which a source counts as stalled"
    )
    connect_timeout_s: Seconds = Field(default=10.0, description="seconds for connecting, TLS included")
    proxies: dict[OriginSetting, ProxyUrl] = Field(
        default_factory=dict,
        description="HTTP proxies, by the origins they are for: 'https://cloud.example' = 'http://proxy:3128'; no others are used",
    )


class PolicySettings(Section):
    """What the host accepts, whoever asks for it."""

    require_signature: bool = Field(
        default=False, description="refuse events that no key of trust.keys has signed; credentials are always signed"
    )
    require_checksum: bool = Field(
        default=False, description="refuse deployments without a checksum, or one that a key of the keyring signed"
    )
    weak_checksums: bool = Field(default=False, description="accept MD5 and SHA-1 checksums")
    discover_checksums: bool = Field(
        default=True,
        description="look for a checksum beside the image (SHA256SUMS and the like) where the event has none",
    )
    keyring: OptionalPath = Field(
        default=None,
        description="OpenPGP public keys (gpg --export) that may sign checksum files; with it a signature that is wrong is refused",
    )
    allow_http: bool = Field(default=True, description="accept sources without TLS")
    allowed_networks: tuple[NetworkSetting, ...] = Field(
        default=(), description="networks that may be downloaded from although they are in denied_networks"
    )
    denied_networks: tuple[NetworkSetting, ...] = Field(
        default=DENIED_NETWORKS,
        description="networks that are never connected to for a download; replaces the default list",
    )
    denied_ports: tuple[Port, ...] = Field(
        default=DENIED_PORTS,
        description="ports that belong to other services, which are never connected to for a download; replaces the default list",
    )
    max_size: Size = Field(default=0, description="largest file in bytes, as it is served and unpacked; 0: no limit")
    max_virtual_size: Size = Field(default=0, description="largest virtual size in bytes; 0: no limit")
    allow_encrypted: bool = Field(default=False, description="accept encrypted images (LUKS, alone or in qcow2)")
    allow_dirty: bool = Field(default=False, description="accept images that were not closed properly")
    allow_snapshots: bool = Field(default=True, description="accept qcow2 images with internal snapshots or bitmaps")
    decompress: bool = Field(
        default=True, description="unpack images that are served as gzip, xz, zstd, bzip2 or a zip of one file"
    )
    max_compression_ratio: int = Field(
        default=200,
        ge=0,
        le=1_000_000,
        description="bytes of data, zeros that become holes not counted, that a compressed byte may give; 0: no limit",
    )
    allowed_protocols: tuple[Protocol, ...] = Field(
        default=("http", "https"), description="protocols of sources, such as http, https, nfs, file, or a plug-in's"
    )
    allowed_folders: tuple[AbsolutePath, ...] = Field(
        default=(), description="folders that file URLs may lead into; the protocol file must be allowed, too"
    )


class TrustSettings(Section):
    """Whom this host believes, and the key that secrets are sealed to; both come with the host's enrolment."""

    keys: KeyPath = Field(
        default=None, description="TOML file of the signing keys that count, and what each may ask for; empty: none"
    )
    sealing_key: KeyPath = Field(
        default=None,
        description="PEM file of the X25519 key that credentials for this host are sealed to, such as keys/sealing.key",
    )


class MetricsSettings(Section):
    """Where numbers about the daemon can be fetched."""

    listen: Listen = Field(
        default="", description="host:port to serve Prometheus metrics on, at /metrics; empty: nothing listens"
    )

    @property
    def address(self) -> tuple[str, int] | None:
        """Host and port of ``listen``; None where it is empty."""
        return parse_listen(self.listen) if self.listen else None


class InspectorSettings(Section):
    """How qemu-img looks at what was downloaded: in a sandbox, within these limits."""

    socket: OptionalPath = Field(
        default=None,
        description="socket of kvmd-inspector.socket; empty: a child process of kvmd, which is less well shut in",
    )
    required: bool = Field(
        default=False, description="refuse images that need the check where qemu-img is not installed"
    )
    timeout_s: Seconds = Field(
        default=60.0,
        description="seconds for each of the two runs of qemu-img; a conversion may be so long without progress",
    )
    memory: Size = Field(default=512 << 20, ge=64 << 20, description="bytes of address space for qemu-img")


class MachineSettings(Section):
    """Virtual machines on this host, through libvirt."""

    uri: str = Field(
        default="",
        max_length=1024,
        description="libvirtd that runs machines, such as qemu:///system; empty: none are run",
    )
    type: Literal["auto", "kvm", "qemu"] = Field(
        default="auto", description="auto: KVM where it works, else QEMU's emulation"
    )
    network: SettingName = Field(
        default="user",
        description="network of machines that name none: one of libvirt's, user (QEMU's own, outgoing only) or none",
    )
    stop_timeout_s: Seconds = Field(
        default=60.0, description="seconds that a guest gets to shut down before its plug is pulled"
    )


class MaintenanceSettings(Section):
    """What is done, by and by, with what lies in the pools."""

    scrub_rate: Size = Field(
        default=32 << 20, description="bytes a second that a scrub reads of volumes at rest; 0: no limit"
    )
    scrub_every_d: int = Field(
        default=0, ge=0, le=3650, description="days after which every ready volume is read again unasked; 0: never"
    )
    gc_every_d: int = Field(
        default=1, ge=0, le=3650, description="days after which garbage is looked for unasked; 0: never"
    )
    staging_ttl_d: int = Field(
        default=30, ge=1, le=3650, description="days that partial data stays after the last attempt, to go on from"
    )
    keep_generations: int = Field(
        default=0,
        ge=0,
        le=1000,
        description="volumes of other names that a replica had before, which are kept; 0: none",
    )
    unused_d: int = Field(
        default=0,
        ge=0,
        le=3650,
        description="days after which a replica that nobody uses is deleted, although it is deployed; 0: never",
    )
    low_space: Size = Field(
        default=0,
        description="bytes free in a pool below which unused replicas are deleted, the longest unused first; 0: never",
    )


class LogSettings(Section):
    """What is logged to standard error, and how."""

    format: Literal["auto", "text", "json"] = Field(
        default="auto", description="auto: text on a terminal and in the journal, else JSON"
    )
    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="least severity that is logged"
    )


def machine_name() -> str:
    """Give the machine's host name, with what a name may not hold replaced by dashes."""
    name = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())
    return name.lstrip("._-")[:63] or "localhost"


def _default_pools() -> dict[str, DirectoryPool | LibvirtPool]:
    return {"default": DirectoryPool(path=Path("/var/lib/libvirt/images"))}


class Settings(Section):
    """All settings of a host."""

    host: SettingName = Field(default_factory=machine_name, description="name of this host; default: the machine's")
    labels: dict[SettingName, Annotated[str, Field(min_length=1, max_length=128)]] = Field(
        default_factory=dict, description="labels that deployments select hosts by"
    )
    state_dir: AbsolutePath = Field(default=Path("/var/lib/kvmd"), description="folder of the journal")
    mqtt: MqttSettings = MqttSettings()
    pools: dict[SettingName, Pool] = Field(default_factory=_default_pools, min_length=1)
    transfer: TransferSettings = TransferSettings()
    policy: PolicySettings = PolicySettings()
    trust: TrustSettings = TrustSettings()
    protocols: dict[Protocol, dict[str, Any]] = Field(
        default_factory=dict,
        description="options of plug-ins, a table [protocols.SCHEME] each, as their documentation says",
    )
    inspector: InspectorSettings = InspectorSettings()
    machines: MachineSettings = MachineSettings()
    maintenance: MaintenanceSettings = MaintenanceSettings()
    metrics: MetricsSettings = MetricsSettings()
    log: LogSettings = LogSettings()

    @model_validator(mode="after")
    def _knows_keys(self) -> Self:
        if self.policy.require_signature and self.trust.keys is None:
            raise _unquoted(
                "policy.require_signature = true, and no trust.keys: every event would be refused; enroll the host, or name the file"
            )
        return self

    @model_validator(mode="after")
    def _one_pool_a_folder(self) -> Self:
        pools: dict[str, str] = {}
        for name, pool in self.pools.items():
            other = pools.setdefault(pool.place, name)
            if other != name:
                raise _unquoted(f"pools.{other} and pools.{name} have the same {pool.place}; that is one pool")
        return self


def _unquoted(text: str) -> PydanticCustomError:
    return PydanticCustomError(UNQUOTED, "{text}", {"text": text})
