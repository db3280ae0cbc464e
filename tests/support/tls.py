"""A throw-away certificate authority, its server and client certificates, as files and as contexts."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

import trustme


@dataclass(frozen=True)
class CertificateFiles:
    """A PEM certificate chain and its private key."""

    certificate: Path
    key: Path


class Authority:
    """A CA (ECDSA) with a server certificate for loopback and a client certificate, all in one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ca = trustme.CA()
        self.ca_file = folder / "ca.pem"
        self._ca.cert_pem.write_to_path(self.ca_file)
        self.server = self.issue("127.0.0.1", "localhost", "::1")
        self.client = self.issue("client@kvmd.test", common_name="client")

    def issue(self, *identities: str, common_name: str | None = None) -> CertificateFiles:
        """Write a new certificate for host names, addresses or e-mail addresses."""
        issued = self._ca.issue_cert(*identities, common_name=common_name)
        stem = (common_name or identities[0]).replace(":", "_")
        files = CertificateFiles(self._folder / f"{stem}.crt", self._folder / f"{stem}.key")
        files.certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(files.key)
        files.key.chmod(0o600)
        return files

    def server_context(self, *, require_client_certificate: bool = False) -> ssl.SSLContext:
        """Context of a server on loopback; asked to, it refuses clients without our certificate."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=self.ca_file)
        context.load_cert_chain(self.server.certificate, self.server.key)
        if require_client_certificate:
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def client_context(self, *, certificate: bool = False) -> ssl.SSLContext:
        """Context of a client that trusts this CA, with or without a certificate of its own."""
        context = ssl.create_default_context(cafile=self.ca_file)
        if certificate:
            context.load_cert_chain(self.client.certificate, self.client.key)
        return context
