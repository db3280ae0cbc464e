"""An honest origin for measurements: nginx on loopback serving one folder, plain and with TLS 1.3."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.processes import free_port, serving

_CONFIG = """
daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log; worker_processes 1;
events {{ worker_connections 256; }}
http {{
  log_format bytes '$body_bytes_sent'; access_log {folder}/access.log bytes; sendfile on; tcp_nopush on;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  ssl_certificate {folder}/server.pem; ssl_certificate_key {folder}/server.key; ssl_protocols TLSv1.3;
  server {{ listen 127.0.0.1:{port}; root {root}; }}
  server {{ listen 127.0.0.1:{tls_port} ssl; root {root}; }}
}}
"""


@dataclass(frozen=True)
class Origin:
    """Where the folder is served, who vouches for the TLS server, and the log of what was sent."""

    http: str
    https: str
    ca: Path
    access_log: Path

    def body_bytes_sent(self) -> int:
        """Bytes of all bodies since the start, those of aborted requests included; a request counts when it has ended."""
        return sum(int(line) for line in self.access_log.read_text().split())


@contextmanager
def origin(root: Path) -> Generator[Origin]:
    """Serve ``root``, whose parents everybody must be able to enter, until the context is left."""
    nginx = shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin")
    if nginx is None:
        raise SystemExit("nginx is missing: apt-get install nginx-light")
    with tempfile.TemporaryDirectory(prefix="kvmd-bench-") as text:
        folder = Path(text)
        folder.chmod(0o755)
        _make_certificate(folder)
        port, tls_port = free_port(), free_port()
        config = folder / "nginx.conf"
        config.write_text(_CONFIG.format(folder=folder, port=port, tls_port=tls_port, root=root))
        with serving([nginx, "-c", config, "-e", folder / "error.log"], tls_port):
            urls = f"http://127.0.0.1:{port}", f"https://127.0.0.1:{tls_port}"
            yield Origin(*urls, ca=folder / "server.pem", access_log=folder / "access.log")


def _make_certificate(folder: Path) -> None:
    """Write server.key and server.pem: an ECDSA key whose certificate vouches for itself."""
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=bench", "-addext", "subjectAltName=IP:127.0.0.1"]
    command += ["-addext", "keyUsage=critical,digitalSignature,keyCertSign"]
    command += ["-keyout", str(folder / "server.key"), "-out", str(folder / "server.pem")]
    subprocess.run(command, capture_output=True, check=True)


def make_image(path: Path, size: int) -> str:
    """Write ``size`` bytes that do not compress, and give their SHA-256 in hexadecimal digits."""
    with path.open("wb") as file:
        for _ in range(size // (1 << 20)):
            file.write(os.urandom(1 << 20))
    return sha256(path)


def sha256(path: Path) -> str:
    """Give a file's SHA-256 in hexadecimal digits."""
    done = subprocess.run(["openssl", "dgst", "-sha256", "-r", path], capture_output=True, text=True, check=True)
    return done.stdout.split()[0]
