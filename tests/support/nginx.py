"""An honest HTTP origin: nginx on free loopback ports, plain and TLS, serving one folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

from tests.support.ports import free_port
from tests.support.processes import ChildProcess
from tests.support.programs import require_program
from tests.support.tls import Authority


@dataclass(frozen=True)
class LoggedRequest:
    """One line of the access log; ``body_sent`` is bytes, ``client_verified`` only with TLS."""

    method: str
    target: str
    status: int
    body_sent: int
    range: str
    client_verified: bool


class Nginx:
    """One nginx process in a folder; ``directives`` go into both servers (``limit_rate 1m;``)."""

    def __init__(
        self, folder: Path, *, authority: Authority, directives: str = "", require_client_certificate: bool = False
    ) -> None:
        self.root = folder / "root"
        self.root.mkdir(parents=True)
        self.port = free_port()
        self.tls_port = free_port()
        self._folder = folder
        self._access_log = folder / "access.log"
        if require_client_certificate:
            directives += f"ssl_client_certificate {authority.ca_file}; ssl_verify_client on;"
        config = folder / "nginx.conf"
        config.write_text(self._configuration(authority, directives))
        command: list[str | Path] = [require_program("nginx"), "-p", folder, "-c", config, "-e", "stderr"]
        self.process = ChildProcess(command, log=folder / "nginx.log", port=self.tls_port)

    def __enter__(self) -> Self:
        self.process.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.__exit__(kind, error, trace)

    def url(self, path: str) -> str:
        """Plain URL of a file below ``root``."""
        return f"http://127.0.0.1:{self.port}/{quote(path)}"

    def https_url(self, path: str) -> str:
        """TLS URL of a file below ``root``."""
        return f"https://127.0.0.1:{self.tls_port}/{quote(path)}"

    def requests(self) -> list[LoggedRequest]:
        """Return all requests that are answered; a line is written when the reply has ended."""
        if not self._access_log.exists():
            return []
        return [LoggedRequest(**json.loads(line)) for line in self._access_log.read_text().splitlines()]

    def _configuration(self, authority: Authority, directives: str) -> str:
        folder = self._folder
        line = (
            '{"method":"$request_method","target":"$request_uri","status":$status,"body_sent":$body_bytes_sent,'
            '"range":"$http_range","client_verified":$verified}'
        )
        return f"""
            daemon off; master_process off; user root;
            pid {folder}/nginx.pid;
            events {{ worker_connections 512; }}
            http {{
                map $ssl_client_verify $verified {{ default false; SUCCESS true; }}
                log_format facts escape=json '{line}';
                access_log {self._access_log} facts;
                default_type application/octet-stream;
                sendfile on;
                client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
                fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
                ssl_certificate {authority.server.certificate};
                ssl_certificate_key {authority.server.key};
                server {{ listen 127.0.0.1:{self.port}; root {self.root}; {directives} }}
                server {{ listen 127.0.0.1:{self.tls_port} ssl; root {self.root}; {directives} }}
            }}
            """
