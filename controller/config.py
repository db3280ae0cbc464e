"""Settings of kvmctl: a TOML file, the environment over it, the command line over both."""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from controller.errors import UsageError
from kvmwire.codes import WireError
from kvmwire.topics import DEFAULT_PREFIX, Topics

SYSTEM_FILE = Path("/etc/kvmd/kvmctl.toml")
SYSTEM_STATE_DIR = Path("/var/lib/kvmd-controller")
_VARIABLE = "KVMCTL_"
_PORTS = {"mqtt": 1883, "mqtts": 8883}


class MqttSettings(BaseModel):
    """How the broker is reached."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str = Field(default="mqtt://127.0.0.1:1883", description="mqtt://host:port, or mqtts:// for TLS")
    ca: Path | None = Field(
        default=None, description="CA certificates (PEM) that the broker's certificate is signed by"
    )
    cert: Path | None = Field(default=None, description="client certificate (PEM)")
    key: Path | None = Field(default=None, description="key of the client certificate (PEM)")
    username: str = ""
    password_file: Path | None = Field(default=None, description="file whose first line is the password")
    prefix: str = Field(default=DEFAULT_PREFIX, description="first levels of every topic")
    version: Literal["auto", "5", "3.1.1"] = Field(default="auto", description="MQTT version; auto tries 5 first")

    @field_validator("ca", "cert", "key", "password_file", mode="before")
    @classmethod
    def _empty_is_none(cls, value: object) -> object:
        return None if value == "" else value

    @field_validator("url")
    @classmethod
    def _is_broker_url(cls, value: str) -> str:
        try:
            parts = urlsplit(value)
            port = parts.port
        except ValueError as exc:
            raise PydanticCustomError("url", "expected mqtt://host:port; {why}", {"why": str(exc)}) from exc
        if parts.scheme not in _PORTS or not parts.hostname or port == 0 or parts.path not in {"", "/"} or parts.query:
            raise PydanticCustomError("url", "expected mqtt://host:port or mqtts://host:port")
        if parts.username is not None:
            raise PydanticCustomError("url", "no user name belongs into the URL; use username and password_file")
        return value

    @field_validator("prefix")
    @classmethod
    def _is_prefix(cls, value: str) -> str:
        try:
            return Topics(value).prefix
        except WireError as exc:
            raise PydanticCustomError("prefix", "{why}", {"why": exc.message}) from exc

    @model_validator(mode="after")
    def _cert_has_key(self) -> MqttSettings:
        if (self.cert is None) != (self.key is None):
            raise PydanticCustomError("cert", "`cert` and `key` are only of use together")
        return self

    @property
    def host(self) -> str:
        """Name or address of the broker."""
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        """TCP port of the broker."""
        parts = urlsplit(self.url)
        return parts.port or _PORTS[parts.scheme]

    @property
    def is_tls(self) -> bool:
        """Whether the connection is encrypted."""
        return self.url.startswith("mqtts:")

    @property
    def topics(self) -> Topics:
        """The topics under the prefix."""
        return Topics(self.prefix)

    def read_password(self) -> SecretStr | None:
        """Read the password file. Raises UsageError, which names the file."""
        if self.password_file is None:
            return None
        try:
            return SecretStr(self.password_file.read_text().split("\n", 1)[0])
        except (OSError, UnicodeDecodeError) as exc:
            raise UsageError(
                f"mqtt.password_file {self.password_file}: it cannot be read: {_reason(exc)}.",
                hint="Correct the path, or let this user read the file.",
            ) from exc


class SigningSettings(BaseModel):
    """What signs the events."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: Path | None = Field(
        default=None, description="Ed25519 key (PKCS8 PEM) that signs; the fleet's, if there is one"
    )

    @field_validator("key", mode="before")
    @classmethod
    def _empty_is_none(cls, value: object) -> object:
        return None if value == "" else value


class Settings(BaseModel):
    """Everything that can be set."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mqtt: MqttSettings = MqttSettings()
    signing: SigningSettings = SigningSettings()
    state_dir: Path = Field(description="where the outbox is kept")
    fleet_dir: Path | None = Field(default=None, description="where the fleet's keys are kept; fleet in state_dir")

    @property
    def fleet(self) -> Path:
        """Folder of the fleet's keys."""
        return self.fleet_dir or self.state_dir / "fleet"


def load(path: Path | None, environ: Mapping[str, str], *, url: str | None = None) -> Settings:
    """Give the effective settings. Raises UsageError, which names file (or variable) and key, expected and got."""
    values, origin = _read_file(path, environ)
    origins = dict.fromkeys(_keys(values), origin)
    for key, (variable, value) in _from_environment(environ).items():
        _put(values, key, value)
        origins[key] = f"environment {variable}"
    if url is not None:
        _put(values, "mqtt.url", url)
        origins["mqtt.url"] = "--mqtt"
    values.setdefault("state_dir", default_state_dir(environ))
    try:
        return Settings.model_validate(values)
    except ValidationError as exc:
        raise _readable(exc, origins) from exc


def default_state_dir(environ: Mapping[str, str]) -> Path:
    """Root's state is the machine's; everybody else has one of their own."""
    if os.geteuid() == 0:
        return SYSTEM_STATE_DIR
    base = environ.get("XDG_STATE_HOME")
    return Path(base) / "kvmd" if base else Path.home() / ".local/state/kvmd"


def _read_file(path: Path | None, environ: Mapping[str, str]) -> tuple[dict[str, Any], str]:
    named = path or (Path(environ["KVMCTL_CONFIG"]) if environ.get("KVMCTL_CONFIG") else None)
    found = named or next((f for f in (Path.home() / ".config/kvmd/kvmctl.toml", SYSTEM_FILE) if f.is_file()), None)
    if found is None:
        return {}, ""
    try:
        return tomllib.loads(found.read_text()), str(found)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise UsageError(
            f"settings {found}: {_reason(exc)}.", hint="Correct the file, or name another one with --config."
        ) from exc


def _from_environment(environ: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Dotted key to variable and value. Raises UsageError for a KVMCTL_ variable that sets nothing."""
    variables = {_VARIABLE + key.replace(".", "_").upper(): key for key in _known_keys()}
    found = dict[str, tuple[str, str]]()
    for variable, value in environ.items():
        if not variable.startswith(_VARIABLE) or variable == "KVMCTL_CONFIG":
            continue
        if variable not in variables:
            raise UsageError(
                f"environment {variable}: there is no such setting.{_near(variable, variables)}",
                hint="Unset or correct the variable.",
            )
        found[variables[variable]] = (variable, value)
    return found


def _known_keys() -> list[str]:
    return [
        "state_dir",
        "fleet_dir",
        *(f"mqtt.{name}" for name in MqttSettings.model_fields),
        *(f"signing.{name}" for name in SigningSettings.model_fields),
    ]


def _keys(values: Mapping[str, Any], start: str = "") -> list[str]:
    keys = list[str]()
    for name, value in values.items():
        keys.append(start + name)
        if isinstance(value, dict):
            keys += _keys(cast("dict[str, Any]", value), f"{start}{name}.")
    return keys


def _put(values: dict[str, Any], key: str, value: object) -> None:
    *tables, last = key.split(".")
    for table in tables:
        inner = values.setdefault(table, {})
        if not isinstance(inner, dict):
            return  # validation names the wrong type at its origin
        values = cast("dict[str, Any]", inner)
    values[last] = value


def _readable(error: ValidationError, origins: Mapping[str, str]) -> UsageError:
    parts = list[str]()
    for one in error.errors(include_url=False):
        key = ".".join(str(part) for part in one["loc"])
        where = origins.get(key) or next((o for k, o in origins.items() if k.startswith(key)), "settings")
        if one["type"] == "extra_forbidden":
            parts.append(f"{where}: {key}: there is no such setting.{_near(key, _known_keys())}")
        else:
            parts.append(f"{where}: {key}: {one['msg']}, got {str(one['input'])[:80]!r}.")
    return UsageError(" ".join(parts), hint="Correct the settings named above.")


def _near(name: str, known: Mapping[str, str] | list[str]) -> str:
    match difflib.get_close_matches(name, list(known), n=1):
        case [best]:
            return f" Is {best} meant?"
        case _:
            return f" Known are {', '.join(known)}."


def _reason(exc: Exception) -> str:
    return exc.strerror or str(exc) if isinstance(exc, OSError) else str(exc)
