"""Brokers that run with exactly the files of ``kvmctl broker-config``, and a fleet's CA whose certificates say who is who."""

from __future__ import annotations

import asyncio
import io
import signal
import ssl
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from controller.keys.authority import Authority, Revoked, certificate_pem, key_pem, new_tls_key
from controller.output import Output
from controller.program import build_parser, run
from tests.support.mqtt import MqttClient
from tests.support.ports import free_port
from tests.support.processes import ChildProcess
from tests.support.programs import require_program
from tests.support.tls import CertificateFiles
from tests.support.waiting import eventually_blocking


class FleetCa:
    """A fleet's CA, and whose certificates it issued, as files and as contexts."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._authority = Authority.new(datetime.now(UTC))
        self._issued: dict[str, x509.Certificate] = {}
        self.ca_file = folder / "ca.pem"
        self.ca_file.write_bytes(certificate_pem(self._authority.certificate))
        key = new_tls_key()
        server = self._authority.server(["127.0.0.1"], key.public_key(), datetime.now(UTC))
        self.broker = self._written("broker", server, key)

    def files(self, name: str) -> CertificateFiles:
        """Give the certificate of a name, made at its first use."""
        if name not in self._issued:
            key = new_tls_key()
            self._issued[name] = self._authority.client(name, key.public_key(), datetime.now(UTC))
            self._written(name, self._issued[name], key)
        return CertificateFiles(self._folder / f"{name}.crt", self._folder / f"{name}.key")

    def context(self, name: str) -> ssl.SSLContext:
        """Context of a client that shows the certificate of this name."""
        files = self.files(name)
        context = ssl.create_default_context(cafile=self.ca_file)
        context.load_cert_chain(files.certificate, files.key)
        return context

    def revocation_list(self, path: Path, *names: str) -> None:
        """Write a list that revokes these names' certificates."""
        now = datetime.now(UTC)
        revoked = [Revoked(self._issued[name].serial_number, now) for name in names]
        crl = self._authority.revocation_list(revoked, number=1, now=now)
        path.write_bytes(crl.public_bytes(serialization.Encoding.PEM))

    def _written(self, name: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> CertificateFiles:
        files = CertificateFiles(self._folder / f"{name}.crt", self._folder / f"{name}.key")
        files.certificate.write_bytes(certificate_pem(certificate))
        files.key.write_bytes(key_pem(key))
        files.key.chmod(0o600)
        return files


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
