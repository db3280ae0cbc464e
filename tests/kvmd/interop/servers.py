"""Web servers and a proxy as people run them, each on loopback with the smallest configuration that serves a folder."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

from tests.support.ports import free_port
from tests.support.processes import ChildProcess
from tests.support.programs import require_program
from tests.support.tls import Authority

_APACHE_MODULES = Path("/usr/lib/apache2/modules")


class WebServer:
    """One program that serves the files in ``root``; a kind of it says with which command."""

    scheme = "http"
    has_ranges = True
    keeps_connections = True

    def __init__(self, folder: Path, *, authority: Authority) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self.authority = authority
        self.root = folder / "root"
        self.root.mkdir()
        self.port = free_port()
        self.process = ChildProcess(
            self.command(), log=folder / "server.log", port=self.port, env={"HOME": str(folder)}, cwd=folder
        )

    def command(self) -> Sequence[str | Path]:
        """Write the configuration and give the command."""
        raise NotImplementedError

    def url(self, name: str, *, port: int | None = None) -> str:
        """URL of a file below ``root``; the port is the one of something in front."""
        return f"{self.scheme}://127.0.0.1:{port or self.port}/{quote(name)}"

    def configured(self, text: str) -> Path:
        """Write a configuration file."""
        path = self.folder / "server.conf"
        path.write_text(text)
        return path

    def __enter__(self) -> Self:
        self.process.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.__exit__(kind, error, trace)


class PythonOld(WebServer):
    """``python -m http.server``: HTTP/1.0, no ranges."""

    has_ranges = False
    keeps_connections = False
    protocol = "HTTP/1.0"

    def command(self) -> Sequence[str | Path]:
        options = ["--bind", "127.0.0.1", "--protocol", self.protocol, "--directory", self.root]
        return [sys.executable, "-m", "http.server", *options, str(self.port)]


class PythonNew(PythonOld):
    """The same with HTTP/1.1: it ignores ranges and keeps connections."""

    keeps_connections = True
    protocol = "HTTP/1.1"


class Lighttpd(WebServer):
    """lighttpd as it comes, but for the number of requests of a connection."""

    def command(self) -> Sequence[str | Path]:
        config = self.configured(f"""
            server.bind = "127.0.0.1"
            server.port = {self.port}
            server.document-root = "{self.root}"
            server.max-keep-alive-requests = 1000
            mimetype.assign = ("" => "application/octet-stream")
            """)
        return [require_program("lighttpd"), "-D", "-f", config]


class Apache(WebServer):
    """Apache's httpd; as root it must not read what only root may, so it is left without a user to become."""

    def command(self) -> Sequence[str | Path]:
        config = self.configured(f"""
            ServerRoot {self.folder}
            ServerName 127.0.0.1
            LoadModule mpm_event_module {_APACHE_MODULES}/mod_mpm_event.so
            LoadModule authz_core_module {_APACHE_MODULES}/mod_authz_core.so
            Listen 127.0.0.1:{self.port}
            PidFile {self.folder}/apache.pid
            ErrorLog {self.folder}/error.log
            Mutex posixsem
            DocumentRoot {self.root}
            MaxKeepAliveRequests 0
            """)
        return [require_program("apache2"), "-DFOREGROUND", "-f", config]


class Caddy(WebServer):
    """Caddy's file server: what Go's own library makes of ranges."""

    def command(self) -> Sequence[str | Path]:
        config = self.configured(f"""
            {{
                admin off
                auto_https off
            }}
            http://127.0.0.1:{self.port} {{
                bind 127.0.0.1
                root * {self.root}
                file_server
            }}
            """)
        return [require_program("caddy"), "run", "--adapter", "caddyfile", "--config", config]


class Nginx(WebServer):
    """nginx; ``around`` goes into ``http``, ``inside`` into ``server``; the log has a line ``connection status`` a request."""

    around = ""
    inside = ""

    def command(self) -> Sequence[str | Path]:
        folder, server = self.folder, self.authority.server
        temporary = "".join(
            f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        config = self.configured(f"""
            daemon off; master_process off; user root;
            pid {folder}/nginx.pid;
            events {{ worker_connections 512; }}
            http {{
                log_format facts '$connection $status';
                access_log {folder}/access.log facts;
                default_type application/octet-stream;
                {temporary}
                ssl_certificate {server.certificate};
                ssl_certificate_key {server.key};
                {self.around}
                server {{ listen {self.address()}; {self.inside} root {self.root}; }}
            }}
            """)
        return [require_program("nginx"), "-p", folder, "-c", config, "-e", "stderr"]

    def address(self) -> str:
        """Value of ``listen``."""
        return f"127.0.0.1:{self.port}{' ssl' if self.scheme == 'https' else ''}"

    def requests(self) -> list[tuple[int, int]]:
        """Give connection and status of each request that is answered."""
        lines = (self.folder / "access.log").read_text().splitlines()
        return [(int(connection), int(status)) for connection, status in map(str.split, lines)]


class NginxTls(Nginx):
    """nginx with TLS."""

    scheme = "https"


class NginxBrief(Nginx):
    """nginx that closes after each answer."""

    keeps_connections = False
    inside = "keepalive_timeout 0;"


class NginxTlsBrief(NginxTls):
    """nginx with TLS that closes after each answer."""

    keeps_connections = False
    inside = "keepalive_timeout 0;"


class NginxGzip(Nginx):
    """nginx that compresses everything for those who want it."""

    inside = "gzip on; gzip_types *; gzip_min_length 0; gzip_proxied any; gzip_http_version 1.0;"


class NginxWhole(Nginx):
    """nginx that gives no ranges."""

    has_ranges = False
    inside = "max_ranges 0;"


class NginxLimited(Nginx):
    """nginx that answers two requests at a time, slowly, and the others with 503."""

    around = "limit_conn_zone $server_name zone=all:1m;"
    inside = "limit_conn all 2; limit_rate 8m;"


class Haproxy(WebServer):
    """haproxy in front of an nginx."""

    def __init__(self, folder: Path, *, authority: Authority) -> None:
        self.backend = Nginx(folder / "backend", authority=authority)
        super().__init__(folder / "front", authority=authority)
        self.root = self.backend.root

    def command(self) -> Sequence[str | Path]:
        config = self.configured(f"""
global
    maxconn 256
defaults
    mode http
    timeout connect 5s
    timeout client 20s
    timeout server 20s
frontend front
    bind 127.0.0.1:{self.port}
    default_backend back
backend back
    server nginx 127.0.0.1:{self.backend.port}
""")
        return [require_program("haproxy"), "-db", "-f", config]

    def __enter__(self) -> Self:
        self.backend.__enter__()
        return super().__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        self.backend.__exit__(kind, error, trace)


SERVERS: Sequence[type[WebServer]] = (
    PythonOld,
    PythonNew,
    Lighttpd,
    Apache,
    Caddy,
    Nginx,
    NginxTls,
    NginxBrief,
    NginxTlsBrief,
    NginxGzip,
    NginxWhole,
    Haproxy,
)


@dataclass(frozen=True)
class ProxyRules:
    """What a proxy allows: a login, the ports of CONNECT, and names (expressions) of hosts; empty: everything."""

    login: str = ""
    connect_ports: Sequence[int] = ()
    hosts: Sequence[str] = ()


class Tinyproxy:
    """An HTTP proxy, with CONNECT."""

    def __init__(self, folder: Path, rules: ProxyRules = ProxyRules()) -> None:
        folder.mkdir(parents=True)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        config = folder / "tinyproxy.conf"
        config.write_text("\n".join([*self._lines(folder, rules), ""]))
        command = [require_program("tinyproxy"), "-d", "-c", config]
        self.process = ChildProcess(command, log=folder / "tinyproxy.log", port=self.port, cwd=folder)

    def log(self) -> str:
        """Everything that it said: a line for each request among it."""
        return self.process.log_text()

    def __enter__(self) -> Self:
        self.process.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.__exit__(kind, error, trace)

    def _lines(self, folder: Path, rules: ProxyRules) -> Iterable[str]:
        yield from (f"Port {self.port}", "Listen 127.0.0.1", "Timeout 10", "MaxClients 100", "LogLevel Connect")
        yield from (f"ConnectPort {port}" for port in rules.connect_ports)
        if rules.login:
            yield f"BasicAuth {rules.login}"
        if rules.hosts:
            names = folder / "names"
            names.write_text("\n".join([*rules.hosts, ""]))
            yield from (f'Filter "{names}"', "FilterDefaultDeny Yes")
