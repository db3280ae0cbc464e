"""Which origins a credential is for: ``https://host[:port]``, where the host may begin with ``*.``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from kvmwire.codes import FailureCode, WireError
from kvmwire.source import Origin, SourceUrl


@dataclass(frozen=True, slots=True)
class OriginPattern:
    """Scheme, host pattern and port. ``*.example.com`` covers every name below example.com, not example.com itself."""

    scheme: str
    host: str
    port: int | None

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}" + (f":{self.port}" if self.port is not None else "")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a pattern; without a port it is the scheme's own. Raises WireError with CREDENTIAL_INVALID."""
        prefix = "wildcard-label."
        scheme, separator, rest = text.removesuffix("/").partition("://")
        is_wild = rest.startswith("*.")
        try:
            url = SourceUrl.parse(f"{scheme}{separator}{prefix + rest[2:] if is_wild else rest}/")
        except WireError as exc:
            raise _unusable(text) from exc
        if url.path != "/" or url.raw.count("/") != 3 or not url.origin.host.removeprefix(prefix) or "?" in url.raw:  # noqa: PLR2004 - of ://host/
            raise _unusable(text)
        origin = url.origin
        return cls(origin.scheme, "*." + origin.host.removeprefix(prefix) if is_wild else origin.host, origin.port)

    def covers(self, origin: Origin) -> bool:
        """Whether the origin is one of these."""
        if (origin.scheme, origin.port) != (self.scheme, self.port):
            return False
        host = origin.host.removesuffix(".")
        return host.endswith(self.host[1:]) if self.host.startswith("*.") else host == self.host.removesuffix(".")


def _unusable(text: str) -> WireError:
    return WireError(
        FailureCode.CREDENTIAL_INVALID,
        f"origin {text[:200]!a}: expected scheme://host or scheme://host:port.",
        hint="Write for example https://images.example.com or https://*.example.com:8443.",
    )
