"""The settings table ``[protocols.s3]``, and the secret that it names a file of."""

from __future__ import annotations

import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from kvmd.errors import ConfigError, SourceError
from kvmwire.codes import FailureCode, WireError
from kvmwire.source import SourceUrl

_MAX_SECRET_FILE = 4096
_PATTERNS = {
    "region": re.compile(r"[A-Za-z0-9-]{1,64}"),
    "access_key": re.compile(r"[!-+\-.0-~]{1,256}"),  # printable, without the comma and slash that delimit it
    "secret_key_file": re.compile(r"/.+"),
    "ca_file": re.compile(r"/.+"),
}


class SettingsError(SourceError):
    """What the settings name cannot be used now; told of the source, so that another one is used."""

    code = FailureCode.POLICY


@dataclass(frozen=True, slots=True)
class Options:
    """The table. ``path_style`` None: for endpoints of one's own. Without ``access_key`` requests are not signed."""

    endpoint: str = ""
    region: str = "us-east-1"
    access_key: str = ""
    secret_key_file: str = ""
    ca_file: str = ""
    path_style: bool | None = None

    @classmethod
    def of(cls, table: Mapping[str, Any]) -> Options:
        """Read the table. Raises ConfigError, which names the option and never repeats a value: it may be a secret."""
        known = {field.name for field in fields(cls)}
        for name, value in table.items():
            if name not in known:
                raise _error(name, f"there is no such option; expected one of {', '.join(sorted(known))}")
            if name == "path_style":
                if not isinstance(value, bool):
                    raise _error(name, "expected true or false")
            elif not isinstance(value, str):
                raise _error(name, "expected text")
            elif name in _PATTERNS and not _PATTERNS[name].fullmatch(value):
                raise _error(
                    name, "expected an absolute path" if name.endswith("_file") else "a character is not allowed"
                )
        options = cls(**table)
        if bool(options.access_key) != bool(options.secret_key_file):
            raise _error("access_key and secret_key_file", "each is only used with the other; set both, or none")
        _check_endpoint(options.endpoint)
        return options


def _check_endpoint(endpoint: str) -> None:
    if not endpoint:
        return
    try:
        url = SourceUrl.parse(endpoint)
    except WireError as exc:
        raise _error("endpoint", exc.message.rstrip(".")) from exc
    if url.origin.scheme not in {"http", "https"} or url.path not in {"", "/"} or "?" in url.raw:
        raise _error(
            "endpoint", "expected http:// or https://, a host, and perhaps a port, such as https://s3.example:9000"
        )


def read_secret(path: Path) -> str:
    """Read the first line. Blocking. Raises SettingsError, also for a file that every user of the machine can read."""
    what = f"[protocols.s3] secret_key_file: {path}"
    try:
        with path.open("rb") as file:
            mode, content = path.stat().st_mode, file.read(_MAX_SECRET_FILE)
        secret = content.partition(b"\n")[0].removesuffix(b"\r").decode("ascii")
    except OSError as exc:
        raise SettingsError(
            f"{what} cannot be read: {exc.strerror}.", hint="Create the file, or give the daemon the right to read it."
        ) from exc
    except UnicodeDecodeError:
        raise SettingsError(f"{what} is not ASCII text.", hint="Write it anew.") from None
    if mode & (stat.S_IROTH | stat.S_IWOTH):
        raise SettingsError(
            f"{what}: every user of this machine can read or write it; not used.", hint=f"chmod o-rw {path}"
        )
    if not secret:
        raise SettingsError(f"{what}: the first line is empty.", hint="Write the secret key into its first line.")
    return secret


def _error(option: str, why: str) -> ConfigError:
    return ConfigError(
        f"[protocols.s3] {option}: {why}; nothing is downloaded over s3.", hint="Correct the settings and restart."
    )
