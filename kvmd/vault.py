"""The credentials that are in force on this host, and the TLS settings made of them."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvmd.errors import CredentialMissingError
from kvmwire.source import Origin

if TYPE_CHECKING:  # opening them takes cryptography, which `kvmd fetch` starts sooner without
    from kvmd.core.credential import Opened


@dataclass(frozen=True, slots=True)
class _Identity:
    """What makes the TLS settings for an origin: whose CA certificates are believed, and whose client certificate is shown."""

    anchors: tuple[Opened, ...]
    certificate: Opened | None


class Vault:
    """Implements the port ``Credentials``. It lives in memory: who installs a credential keeps it, too."""

    def __init__(self) -> None:
        self._opened: dict[str, Opened] = {}
        self._contexts: dict[_Identity, ssl.SSLContext] = {}

    def __repr__(self) -> str:
        return f"Vault({', '.join(sorted(self._opened))})"

    def put(self, opened: Opened) -> None:
        """Use this credential from the next request on, instead of an earlier one of its name."""
        self.drop(opened.name)
        self._opened[opened.name] = opened

    def drop(self, name: str) -> None:
        """Use it no more; requests under way finish with it."""
        self._opened.pop(name, None)
        for identity in [one for one in self._contexts if not self._is_current(one)]:
            del self._contexts[identity]

    def has(self, name: str) -> bool:
        """See the port."""
        return name in self._opened

    def headers(self, origin: Origin, names: Sequence[str]) -> Mapping[str, str]:
        """See the port; of two credentials with the same header the one named first gives it."""
        found = dict[str, tuple[str, str]]()
        for one in self._named(origin, names):
            for name, value in one.headers.items():
                found.setdefault(name.lower(), (name, value.get_secret_value()))
        return dict(found.values())

    async def tls(self, origin: Origin, names: Sequence[str]) -> ssl.SSLContext | None:
        """See the port; of two credentials with a client certificate the one named first shows its own."""
        identity = self._identity(origin, names)
        if not identity.anchors and identity.certificate is None:
            return None
        known = self._contexts.get(identity)
        if known is not None:
            return known
        context = await asyncio.to_thread(_context, identity)
        return self._contexts.setdefault(identity, context) if self._is_current(identity) else context

    def presented(self, origin: Origin, names: Sequence[str]) -> str | None:
        """See the port."""
        certificate = self._identity(origin, names).certificate
        return certificate.name if certificate is not None else None

    def _identity(self, origin: Origin, names: Sequence[str]) -> _Identity:
        return _Identity(
            anchors=tuple(one for one in self._opened.values() if one.anchors and one.covers(origin)),
            certificate=next((one for one in self._named(origin, names) if one.certificate), None),
        )

    def _named(self, origin: Origin, names: Sequence[str]) -> list[Opened]:
        missing = next((name for name in names if name not in self._opened), None)
        if missing is not None:
            raise CredentialMissingError(missing)
        return [one for one in (self._opened[name] for name in names) if one.covers(origin)]

    def _is_current(self, identity: _Identity) -> bool:
        return {*identity.anchors, identity.certificate} <= {None, *self._opened.values()}


def _context(identity: _Identity) -> ssl.SSLContext:
    """Build the settings: names are always verified. An anchor need not be a root: it was named, so the chain may end there."""
    context = ssl.create_default_context(cadata="".join(one.anchors for one in identity.anchors) or None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if identity.anchors:
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    if identity.certificate is not None:
        _load_pair(context, identity.certificate)
    return context


def _load_pair(context: ssl.SSLContext, credential: Opened) -> None:
    """Load certificate and key by way of memory that has a path for a moment: no disk sees the key."""
    with closing(os.fdopen(os.memfd_create("certificate"), "wb", buffering=0)) as pair:
        pair.write(f"{credential.certificate}\n{credential.key.get_secret_value()}\n".encode())
        context.load_cert_chain(f"/proc/self/fd/{pair.fileno()}")
