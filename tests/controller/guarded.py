"""Brokers that run with exactly the files of ``kvmctl broker-config``, and the CA whose certificates name who is who."""

from __future__ import annotations

import asyncio
import datetime as dt
import io
import ipaddress
import signal
import ssl
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from controller.output import Output
from controller.program import build_parser, run
from tests.support.mqtt import MqttClient
from tests.support.ports import free_port
from tests.support.processes import ChildProcess
from tests.support.programs import require_program
from tests.support.tls import CertificateFiles
from tests.support.waiting import eventually_blocking

_DAY = dt.timedelta(days=1)


class FleetCa:
    """A CA whose certificates say nothing but a common name, as a fleet's do (trustme's always say more)."""

    def __init__(self, folder: Path, name: str = "fleet") -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _common_name(name)
        self._serials: dict[str, int] = {}
        usage = x509.KeyUsage(**dict.fromkeys(_USAGES, False) | {"key_cert_sign": True, "crl_sign": True})
        certificate = (
            self._builder(self._name, self._key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.ca_file = folder / f"{name}.ca.pem"
        self.ca_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        loopback = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        self.broker = self.issue("broker.test", loopback)

    def issue(self, name: str, *extensions: x509.ExtensionType) -> CertificateFiles:
        """Write a certificate of this common name and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        builder = self._builder(_common_name(name), key.public_key())
        for extension in extensions:
            builder = builder.add_extension(extension, critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        self._serials[name] = certificate.serial_number
        files = CertificateFiles(self._folder / f"{name}.crt", self._folder / f"{name}.key")
        files.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        files.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        files.key.chmod(0o600)
        return files

    def files(self, name: str) -> CertificateFiles:
        """Give the certificate of a name, made at its first use."""
        if name not in self._serials:
            self.issue(name)
        return CertificateFiles(self._folder / f"{name}.crt", self._folder / f"{name}.key")

    def context(self, name: str) -> ssl.SSLContext:
        """Context of a client that shows the certificate of this name."""
        files = self.files(name)
        context = ssl.create_default_context(cafile=self.ca_file)
        context.load_cert_chain(files.certificate, files.key)
        return context

    def revocation_list(self, path: Path, *names: str) -> None:
        """Write a list that revokes these names' certificates."""
        now = dt.datetime.now(dt.UTC)
        builder = x509.CertificateRevocationListBuilder().issuer_name(self._name)
        builder = builder.last_update(now - _DAY).next_update(now + 30 * _DAY)
        for name in names:
            revoked = x509.RevokedCertificateBuilder().serial_number(self._serials[name]).revocation_date(now - _DAY)
            builder = builder.add_revoked_certificate(revoked.build())
        signed = builder.sign(self._key, hashes.SHA256())
        path.write_bytes(signed.public_bytes(serialization.Encoding.PEM))

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        now = dt.datetime.now(dt.UTC)
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _DAY)
            .not_valid_after(now + 30 * _DAY)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(authority, critical=False)
        )


_USAGES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)


def _common_name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


class GuardedBroker:
    """``mosquitto`` or ``nats`` as configured by the command alone; all methods block for some milliseconds.

    ``version5`` is what its clients speak unless told otherwise.
    """

    def __init__(self, kind: str, folder: Path, ca: FleetCa, *, version5: bool = False) -> None:
        self.kind = kind
        self.version5 = version5
        self.ca = ca
        self.port = free_port()
        self.folder = folder
        self.store = folder / "store"
        self.store.mkdir(parents=True)
        self.config = folder / "nats-server.conf" if kind == "nats" else self._debian_configuration()
        program = "nats-server" if kind == "nats" else "mosquitto"
        option = "--config" if kind == "nats" else "-c"
        self.process = ChildProcess(
            [require_program(program), option, self.config], log=folder / "broker.log", port=self.port
        )

    def __enter__(self) -> Self:
        self.process.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.__exit__(kind, error, trace)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"mqtts://127.0.0.1:{self.port}"

    def configure(
        self, hosts: Sequence[str], publishers: Sequence[str], *, prefix: str = "kvmd/v1", crl: Path | None = None
    ) -> None:
        """Run ``kvmctl broker-config``, which writes to where the broker reads."""
        words = ["broker-config", self.kind, "--listen", f"127.0.0.1:{self.port}"]
        words += ["--ca", str(self.ca.ca_file)]
        words += ["--cert", str(self.ca.broker.certificate), "--key", str(self.ca.broker.key)]
        for host in hosts:
            words += ["--host", host]
        for publisher in publishers:
            words += ["--publisher", publisher]
        if self.kind == "nats":
            words += ["--out", str(self.folder), "--store", str(self.store)]
        else:
            out = self.folder / "conf.d"
            words += ["--out", str(out), "--acl", str(out / "kvmd.acl"), *(["--crl", str(crl)] if crl else [])]
        output = Output(is_json=False, stdout=io.StringIO(), stderr=io.StringIO())
        environ = {"KVMCTL_MQTT_PREFIX": prefix, "KVMCTL_STATE_DIR": str(self.folder)}
        assert asyncio.run(run(build_parser().parse_args(words), output, environ=environ)) == 0

    def reload(self) -> None:
        """SIGHUP, and wait until it has read its files again."""
        line = "Reloaded server configuration" if self.kind == "nats" else "Reloading config."
        before = self.process.log_text().count(line)
        self.process.signal(signal.SIGHUP)
        eventually_blocking(lambda: self.process.log_text().count(line) > before, what="the broker reloads")

    def client(self, name: str, *, ca: FleetCa | None = None, **options: Any) -> MqttClient:
        """Return a test client that shows the certificate of this name; the options are MqttClient's."""
        options.setdefault("version5", self.version5)
        context = (ca or self.ca).context(name)
        if ca is not None:
            context.load_verify_locations(self.ca.ca_file)
        return MqttClient(options.pop("url", self.url), tls=context, **options)

    def _debian_configuration(self) -> Path:
        """Write what Debian's mosquitto.conf says, with the test's folders."""
        (self.folder / "conf.d").mkdir()
        config = self.folder / "mosquitto.conf"
        config.write_text(
            "user root\n"  # else it changes to a user who cannot write into the test's folder
            f"persistence true\npersistence_location {self.store}/\nlog_dest stderr\n"
            f"include_dir {self.folder / 'conf.d'}\n"
        )
        return config
