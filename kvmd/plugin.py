"""What a protocol plug-in is given, and what it gives. The built-in protocols use nothing else.

A plug-in is a package with an entry point in the group ``kvmd.protocols``: its name is the URL scheme, its object a
``Factory``. It is used once the scheme is named in ``policy.allowed_protocols``. What it gives are sources as in
``kvmd.ports``; their errors are those of ``kvmd.errors``, and they reach no address that ``Environment.allows`` refuses.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kvmd.core.addresses import AddressPolicy
from kvmd.ports import Credentials, Sources
from kvmd.vault import Vault
from kvmwire.source import Origin

GROUP = "kvmd.protocols"


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Files for one origin: a CA to trust instead of the system's, and a client certificate. Empty: none."""

    ca: str = ""
    cert: str = ""
    key: str = ""

    def context(self) -> ssl.SSLContext:
        """Build the context. Raises OSError or ssl.SSLError where a file cannot be used."""
        context = ssl.create_default_context(cafile=self.ca or None)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self.cert:
            context.load_cert_chain(self.cert, self.key or None)
        return context


@dataclass(frozen=True, slots=True)
class Environment:
    """The host's rules and means. Times are seconds.

    ``schemes`` are the allowed protocols. ``typed`` holds the origins of URLs that a person typed: there any address and port is
    allowed, elsewhere none of ``denied_ports``. ``tls`` and ``proxies`` are for single origins and given to these only;
    ``credentials`` says itself what they are for. ``folders`` are those that ``file`` URLs may lead into. ``executor`` is for what
    blocks. ``options`` is the table ``[protocols.SCHEME]`` of the settings.
    """

    addresses: AddressPolicy
    executor: Executor
    schemes: frozenset[str] = frozenset({"http", "https"})
    typed: frozenset[Origin] = frozenset()
    denied_ports: frozenset[int] = frozenset()
    allow_http: bool = True
    connect_timeout_s: float = 10.0
    stall_timeout_s: float = 30.0
    tls: Mapping[Origin, TlsFiles] = field(default_factory=dict[Origin, TlsFiles])
    credentials: Credentials = field(default_factory=Vault)
    proxies: Mapping[Origin, str] = field(default_factory=dict[Origin, str])
    folders: tuple[Path, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def allows(self, address: str, origin: Origin) -> bool:
        """Whether this IP address may be connected to for a URL of this origin."""
        return origin in self.typed or self.addresses.allows(address)

    def allows_port(self, origin: Origin) -> bool:
        """Whether a URL of this origin may be asked for at all, whatever its address."""
        return origin in self.typed or origin.port not in self.denied_ports


Factory = Callable[[Environment], Sources]
