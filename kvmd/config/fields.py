"""Types of single settings: how a value may be written, and what is said when it may not."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, ValidationInfo
from pydantic_core import PydanticCustomError

from kvmwire.codes import WireError
from kvmwire.names import is_name
from kvmwire.source import SourceUrl
from kvmwire.topics import Topics

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

UNQUOTED = "unquoted"
"""Type of an error whose text is complete: the value is not repeated after it."""

_UNITS: dict[str, int] = {"": 1, "B": 1} | {
    prefix + suffix: base**power
    for base, suffix in ((1000, "B"), (1024, "iB"))
    for power, prefix in enumerate("KMGTPE", start=1)
}
_UNITS["kB"] = _UNITS["KB"]
_MAX_SIZE = (1 << 63) - 1
_DEFAULT_MQTT_PORTS = {"mqtt": 1883, "mqtts": 8883}
_BROKER_URL = re.compile(r"(mqtts?)://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?/?")
_LISTEN = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})")
_PROXY = re.compile(r"https?://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?/?")
_PROTOCOL = re.compile(r"[a-z][a-z0-9+.-]*")


@dataclass(frozen=True, slots=True)
class BrokerAddress:
    """Where the MQTT broker listens; an IPv6 ``host`` has no brackets."""

    host: str
    port: int
    tls: bool


@dataclass(frozen=True, slots=True)
class KeyFiles:
    """Where files with secrets are: beside the settings file, or handed over by systemd (LoadCredential=).

    A path is relative to ``folder``, that of the settings file. Of a path inside of it systemd's copy is taken where there is one: as
    LoadCredential= names the files of a folder, ``keys/mqtt.key`` is the credential ``keys_mqtt.key``.
    """

    folder: Path
    credentials: Path | None = None

    def resolve(self, path: Path) -> Path:
        """Give the file to read."""
        whole = self.folder / path
        if self.credentials is not None and whole.is_relative_to(self.folder):
            copy = self.credentials / "_".join(whole.relative_to(self.folder).parts)
            if copy.exists():
                return copy
        return whole


def parse_broker_url(text: str) -> BrokerAddress:
    """Read ``mqtt://host[:port]`` or ``mqtts://host[:port]``; ValueError for anything else."""
    match = _BROKER_URL.fullmatch(text)
    if match is None:
        raise ValueError("expected mqtt://host:port or mqtts://host:port, with the user's name in mqtt.username")
    scheme, host, port = match[1], match[2], match[3]
    return BrokerAddress(
        _host(host), _port(port) if port is not None else _DEFAULT_MQTT_PORTS[scheme], tls=scheme == "mqtts"
    )


def parse_listen(text: str) -> tuple[str, int]:
    """Read ``host:port``; ValueError for anything else."""
    match = _LISTEN.fullmatch(text)
    if match is None:
        raise ValueError("expected host:port such as 127.0.0.1:9105, or nothing")
    return _host(match[1]), _port(match[2])


def parse_size(text: str) -> int:
    """Read a number of bytes such as ``1048576``, ``10GiB`` or ``500MB``; ValueError for anything else."""
    match = re.fullmatch(r"([0-9]{1,20}) ?([A-Za-z]*)", text.strip())
    if match is None or match[2] not in _UNITS:
        raise ValueError("expected a whole number of bytes, or text such as '10GiB' or '500MB'")
    return int(match[1]) * _UNITS[match[2]]


def _host(text: str) -> str:
    if text.startswith("["):
        try:
            return ipaddress.IPv6Address(text[1:-1]).compressed
        except ValueError as exc:
            raise ValueError("expected an IPv6 address between the brackets") from exc
    return text


def _port(text: str) -> int:
    port = int(text)
    if not 0 < port < 65536:  # noqa: PLR2004 - ports have 16 bits
        raise ValueError("expected a port from 1 to 65535")
    return port


def _size(value: Any) -> Any:
    return parse_size(value) if isinstance(value, str) else value


def _broker_url(text: str) -> str:
    parse_broker_url(text)
    return text


def _listen(text: str) -> str:
    if text:
        parse_listen(text)
    return text


def _absolute(path: Path) -> Path:
    if not path.is_absolute() or ".." in path.parts:
        raise ValueError("expected an absolute path without '..'")
    return path


def _key_file(path: Path, info: ValidationInfo) -> Path:
    files: object = info.context
    if not isinstance(files, KeyFiles):
        return _absolute(path)
    if ".." in path.parts:
        raise ValueError("expected a path without '..'")
    return files.resolve(path)


def _optional(value: Any) -> Any:
    return None if value == "" else value


def _prefix(text: str) -> str:
    try:
        Topics(text)
    except WireError as exc:
        raise ValueError("expected names separated by single slashes, such as 'kvmd/v1'") from exc
    return text


def _name(text: str) -> str:
    if not is_name(text):
        raise ValueError(
            "expected a name: at most 63 letters, digits, '.', '_' and '-', beginning with a letter or digit"
        )
    return text


def _protocol(text: str) -> str:
    if not _PROTOCOL.fullmatch(text):
        raise ValueError("expected a protocol such as 'https'")
    return text


def _origin(text: str) -> str:
    try:
        url = SourceUrl.parse(text)
    except WireError as exc:
        raise ValueError(f"expected an origin such as 'https://cloud.example': {exc.message}") from exc
    if url.path not in {"", "/"} or "?" in text:
        raise ValueError("expected an origin such as 'https://cloud.example', without a path")
    return text


def _proxy(text: str) -> str:
    if not _PROXY.fullmatch(text):
        raise ValueError("expected a proxy such as 'http://proxy:3128'")
    return text


def _network(value: Any) -> Network:
    if isinstance(value, Network):
        return value
    try:
        return ipaddress.ip_network(value if isinstance(value, str) else "")
    except ValueError as exc:
        raise PydanticCustomError("network", "{expected}", {"expected": _expected_network(str(value))}) from exc


def _expected_network(text: str) -> str:
    try:
        return f"expected a network without host bits, such as '{ipaddress.ip_network(text, strict=False)}'"
    except ValueError:
        return "expected a network such as '10.0.0.0/8' or '2001:db8::/32'"


SettingName = Annotated[str, AfterValidator(_name)]
AbsolutePath = Annotated[Path, AfterValidator(_absolute)]
KeyPath = Annotated[Annotated[Path, AfterValidator(_key_file)] | None, BeforeValidator(_optional)]
"""A file with a secret, or one that belongs to it: see KeyFiles."""
OptionalPath = Annotated[AbsolutePath | None, BeforeValidator(_optional)]
Size = Annotated[int, Field(ge=0, le=_MAX_SIZE), BeforeValidator(_size)]
Port = Annotated[int, Field(ge=1, le=65535)]
Seconds = Annotated[float, Field(gt=0, le=86400, allow_inf_nan=False)]
LeaseSeconds = Annotated[float, Field(ge=1, le=3600, allow_inf_nan=False)]
BrokerUrl = Annotated[str, AfterValidator(_broker_url)]
Listen = Annotated[str, AfterValidator(_listen)]
TopicPrefix = Annotated[str, AfterValidator(_prefix)]
Protocol = Annotated[str, AfterValidator(_protocol)]
OriginSetting = Annotated[str, AfterValidator(_origin)]
ProxyUrl = Annotated[str, AfterValidator(_proxy)]
NetworkSetting = Annotated[Network, PlainValidator(_network, json_schema_input_type=str)]
