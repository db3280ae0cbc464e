"""Source URLs: parsed strictly, sent byte for byte as given, shown only redacted."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from kvmwire.codes import FailureCode, WireError

MAX_URL_LENGTH = 8192
DEFAULT_PORTS = {"http": 80, "https": 443, "nfs": 2049}

_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<authority>[^/?#]*)(?P<path>[^?#]*)(?P<query>\?[^#]*)?")
_PRINTABLE_ASCII = re.compile(r"[!-~]+")
_UNSAFE = re.compile(r"[\\<>\"^`]|%(?![0-9A-Fa-f]{2})|%00|%0[AaDd]")
_HOST_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_NUMERIC_LABEL = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*")
_SHOWABLE = re.compile(
    r"([A-Za-z][A-Za-z0-9+.-]*://)(?:[^/]*@)?((?:\[[^\]/@]*\]|[^/@:\[\]]+)(?::[0-9]+)?(?:/.*)?)", re.DOTALL
)


@dataclass(frozen=True, slots=True)
class Origin:
    """Scheme, host and port: what secrets are bound to (RFC 6454, 4)."""

    scheme: str
    host: str
    port: int | None


@dataclass(frozen=True, slots=True)
class SourceUrl:
    """A URL of a template. ``raw`` goes on the wire; ``str()`` is redacted, for people."""

    raw: str
    origin: Origin
    path: str

    def __str__(self) -> str:
        host = f"[{self.origin.host}]" if ":" in self.origin.host else self.origin.host
        default = DEFAULT_PORTS.get(self.origin.scheme)
        port = "" if self.origin.port in {None, default} else f":{self.origin.port}"
        return f"{self.origin.scheme}://{host}{port}{self.path}"

    def __repr__(self) -> str:
        return f"SourceUrl({self})"

    @classmethod
    def parse(cls, text: str) -> SourceUrl:
        """Read a URL and refuse every form that programs are known to disagree about.

        Refused with URL_INVALID: user information, fragments, backslashes, NUL and line breaks (encoded too), hosts
        that are not ASCII (write their punycode), and numbers as hosts in any other form than four decimal parts.
        """
        if len(text) > MAX_URL_LENGTH:
            raise _invalid(text, f"longer than {MAX_URL_LENGTH} characters")
        if not _PRINTABLE_ASCII.fullmatch(text):
            raise _invalid(
                text, "only printable ASCII is allowed; percent-encode the rest, write host names in punycode"
            )
        if _UNSAFE.search(text):
            raise _invalid(text, "a character that must be percent-encoded, or an encoded NUL or line break")
        if "#" in text:
            raise _invalid(text, "a fragment (#...) has no meaning for a source")
        match = _URL.fullmatch(text)
        if match is None:
            raise _invalid(text, "expected scheme://host/path")
        scheme = match["scheme"].lower()
        host, port = _parse_authority(text, match["authority"], DEFAULT_PORTS.get(scheme), needs_host=scheme != "file")
        return cls(raw=text, origin=Origin(scheme, host, port), path=match["path"])


def _parse_authority(url: str, authority: str, default_port: int | None, *, needs_host: bool) -> tuple[str, int | None]:
    if "@" in authority:
        raise _invalid(url, "user name and password do not belong into a URL; use `headers` or a credential")
    host, port = authority, default_port
    match = re.fullmatch(r"(\[[^\]]*\]|[^:]*)(?::([0-9]{1,5}))?", authority)
    if match is None:
        raise _invalid(url, "host or port cannot be read")
    host = match[1]
    if match[2] is not None:
        port = int(match[2])
        if not 0 < port < 65536:  # noqa: PLR2004 - ports have 16 bits
            raise _invalid(url, f"port {port} is not between 1 and 65535")
    if not host:
        if needs_host:
            raise _invalid(url, "the host is missing")
        return "", None
    return _check_host(url, host), port


def _check_host(url: str, host: str) -> str:
    if host.startswith("["):
        if "%" in host:
            raise _invalid(url, "an IPv6 address with a zone means another machine on each host")
        try:
            return ipaddress.IPv6Address(host[1:-1]).compressed
        except ValueError as exc:
            raise _invalid(url, f"{host} is not an IPv6 address") from exc
    labels = host.removesuffix(".").split(".")
    if _NUMERIC_LABEL.fullmatch(labels[-1]):
        try:
            return str(ipaddress.IPv4Address(host))
        except ValueError as exc:
            raise _invalid(url, f"{host} is a number; write IPv4 addresses as four decimal parts") from exc
    if len(host) > 253 or not all(_HOST_LABEL.fullmatch(label) for label in labels):  # noqa: PLR2004 - RFC 1035, 2.3.4
        raise _invalid(url, f"{host!a} is not a host name")
    return host.lower()


def redact(url: str) -> str:
    """Give the URL without user information, query and fragment; where an `@` leaves doubt what is secret, nothing."""
    shown = re.sub(r"[?#].*", "", url, flags=re.DOTALL)
    if "@" in url:
        match = _SHOWABLE.fullmatch(shown)
        shown = match[1] + match[2] if match else "(not shown)"
    return "".join(c if c.isprintable() and c.isascii() else "?" for c in shown[:200])


def _invalid(url: str, why: str) -> WireError:
    return WireError(FailureCode.URL_INVALID, f"source URL {redact(url)}: {why}.")
