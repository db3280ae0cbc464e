"""TLS: whom kvmd trusts, and what it shows of itself."""

from __future__ import annotations

import ssl
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme

from kvmd.plugin import TlsFiles
from tests.kvmd.engine.fetching import Host
from tests.support import images
from tests.support.credentials import opened
from tests.support.hostile import HostileServer
from tests.support.nginx import Nginx
from tests.support.ports import free_port
from tests.support.processes import ChildProcess
from tests.support.programs import require_program
from tests.support.tls import Authority

SMALL = images.raw(300 << 10)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """Make a host with the usual settings."""
    return Host(tmp_path / "host")


def trusting(authority: Authority, *, certificate: bool = False) -> TlsFiles:
    """Give the CA, and the client certificate where it is wanted."""
    client = authority.client
    shown = (str(client.certificate), str(client.key)) if certificate else ("", "")
    return TlsFiles(str(authority.ca_file), *shown)


async def test_a_server_of_the_given_ca_is_trusted(host: Host, authority: Authority) -> None:
    async with HostileServer(tls=authority.server_context()) as server:
        server.add("disk", SMALL)
        outcome = await host.fetch(server.url("disk"), expected=SMALL, tls=trusting(authority))
    assert outcome.code == "ready"


async def test_a_server_of_an_unknown_ca_is_not(host: Host, authority: Authority) -> None:
    async with HostileServer(tls=authority.server_context()) as server:
        server.add("disk", SMALL)
        outcome = await host.fetch(server.url("disk"), expected=SMALL)
        assert outcome.code == "TLS_VERIFY"
        assert "certificate is not trusted, self-signed certificate in certificate chain" in outcome.failure.message
        assert server.requests == []


async def test_a_certificate_of_another_name_is_refused(host: Host, authority: Authority) -> None:
    other = authority.issue("elsewhere.test")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(other.certificate, other.key)
    async with HostileServer(tls=context) as server:
        server.add("disk", SMALL)
        outcome = await host.fetch(server.url("disk"), expected=SMALL, tls=trusting(authority))
        assert outcome.code == "TLS_VERIFY"
        assert server.requests == []


@pytest.mark.parametrize("version", ["-tls1", "-tls1_1"])
async def test_an_old_tls_version_is_refused(host: Host, authority: Authority, tmp_path: Path, version: str) -> None:
    with _openssl_server(tmp_path, authority, version, "-cipher", "ALL:@SECLEVEL=0") as port:
        outcome = await host.fetch(f"https://127.0.0.1:{port}/disk", expected=SMALL, tls=trusting(authority))
    assert outcome.code == "TLS_VERIFY"
    assert "protocol" in outcome.failure.message
    assert "TLS 1.2 or newer" in outcome.failure.hint


async def test_plain_http_where_tls_is_expected_is_told(host: Host, nginx: Nginx) -> None:
    outcome = await host.fetch(nginx.url("disk").replace("http:", "https:"), expected=SMALL)
    assert outcome.code == "TLS_VERIFY"
    assert "does not speak TLS" in outcome.failure.hint


async def test_a_certificate_that_has_expired_is_told_as_such(host: Host) -> None:
    ca, context = trustme.CA(), ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    yesterday = datetime.now(UTC) - timedelta(days=1)
    ca.issue_cert("127.0.0.1", not_before=yesterday - timedelta(days=9), not_after=yesterday).configure_cert(context)
    async with HostileServer(tls=context) as server:
        with ca.cert_pem.tempfile() as ca_file:
            outcome = await host.fetch(server.url("disk"), expected=SMALL, tls=TlsFiles(ca_file))
        assert server.requests == []
    assert outcome.code == "TLS_VERIFY"
    assert "expired" in outcome.failure.message
    assert "Renew" in outcome.failure.hint


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
async def test_a_strict_server_wants_a_client_certificate(
    host: Host, authority: Authority, tmp_path: Path, version: str
) -> None:
    options = (version, "-Verify", "1", "-verify_return_error", "-CAfile", str(authority.ca_file))
    with _openssl_server(tmp_path, authority, *options) as port:
        outcome = await host.fetch(f"https://127.0.0.1:{port}/disk", expected=SMALL, tls=trusting(authority))
    assert outcome.code == "TLS_CLIENT_CERT"
    assert "none was shown" in outcome.failure.message
    assert "--client-cert" in outcome.failure.hint


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
async def test_a_certificate_that_the_server_refuses_is_named(
    host: Host, authority: Authority, tmp_path: Path, version: str
) -> None:
    (tmp_path / "other").mkdir()
    foreign = Authority(tmp_path / "other").client
    options = (version, "-Verify", "1", "-verify_return_error", "-CAfile", str(authority.ca_file))
    with _openssl_server(tmp_path, authority, *options) as port:
        here = f"https://127.0.0.1:{port}"
        host.vault.put(opened("ours", here, ca=authority.ca_file, pair=foreign))
        outcome = await host.fetch(f"{here}/disk", expected=SMALL, credentials=["ours"])
    assert outcome.code == "TLS_CLIENT_CERT"
    assert "does not accept the client certificate of credential ours" in outcome.failure.message


@pytest.mark.parametrize("end", ["fin", "rst"])
async def test_a_server_that_asks_for_a_certificate_and_breaks_off_wants_one(
    host: Host, authority: Authority, end: str
) -> None:
    async with HostileServer(tls=_asking(authority)) as server:
        server.add("disk", SMALL)
        outcome = await host.fetch(server.url("disk", drop=end), expected=SMALL, tls=trusting(authority))
        assert outcome.code == "TLS_CLIENT_CERT"
        shown = trusting(authority, certificate=True)
        outcome = await host.fetch(server.url("disk", drop=f"{end}@1"), expected=SMALL, tls=shown)
        assert outcome.code == "ready"


async def test_one_that_asks_not_or_has_answered_before_is_only_unreachable(host: Host, authority: Authority) -> None:
    async with HostileServer(tls=authority.server_context()) as server:
        server.add("disk", SMALL)
        outcome = await host.fetch(server.url("disk", drop="fin"), expected=SMALL, tls=trusting(authority))
        assert outcome.code == "SOURCE_UNREACHABLE"
    async with HostileServer(tls=_asking(authority)) as server:
        server.add("disk", SMALL)
        outcome = await host.fetch(server.url("disk", drop="fin@2"), expected=SMALL, tls=trusting(authority))
        assert outcome.code == "ready"


def _asking(authority: Authority) -> ssl.SSLContext:
    """Make the context of a server that asks for a client certificate and does without."""
    context = authority.server_context()
    context.verify_mode = ssl.CERT_OPTIONAL
    return context


async def test_a_strict_server_takes_our_client_certificate(host: Host, authority: Authority) -> None:
    async with HostileServer(tls=authority.server_context(require_client_certificate=True)) as server:
        server.add("disk", SMALL)
        outcome = await host.fetch(server.url("disk"), expected=SMALL, tls=trusting(authority, certificate=True))
        assert outcome.code == "ready"
        assert all(request.client_certificate for request in server.requests)


@contextmanager
def _openssl_server(folder: Path, authority: Authority, *options: str) -> Generator[int]:
    """Start the TLS library's own server: unlike asyncio's it tells the client why it refuses."""
    port = free_port()
    key = ("-cert", str(authority.server.certificate), "-key", str(authority.server.key))
    command = [str(require_program("openssl")), "s_server", "-accept", f"127.0.0.1:{port}", "-quiet", "-WWW", *key]
    with ChildProcess([*command, *options], log=folder / "openssl.log", port=port, cwd=folder):
        yield port


async def test_nginx_asks_for_the_certificate_with_status_400(host: Host, authority: Authority, tmp_path: Path) -> None:
    with Nginx(tmp_path / "nginx", authority=authority, require_client_certificate=True) as nginx:
        (nginx.root / "disk").write_bytes(SMALL)
        refused = await host.fetch(nginx.https_url("disk"), expected=SMALL, tls=trusting(authority))
        assert refused.code == "TLS_CLIENT_CERT"
        outcome = await host.fetch(nginx.https_url("disk"), expected=SMALL, tls=trusting(authority, certificate=True))
        assert outcome.code == "ready"


async def test_the_client_certificate_is_not_shown_to_another_origin(tmp_path: Path, authority: Authority) -> None:
    host = Host(tmp_path / "other", policy={"allowed_networks": ["127.0.0.0/8"]})
    asking = authority.server_context(require_client_certificate=True)
    asking.verify_mode = ssl.CERT_OPTIONAL
    async with HostileServer(tls=asking) as origin, HostileServer(tls=asking) as elsewhere:
        origin.add("disk", SMALL)
        elsewhere.add("disk", SMALL)
        url = origin.url("disk", redirect_to=elsewhere.url("disk"))
        outcome = await host.fetch(url, expected=SMALL, tls=trusting(authority, certificate=True))
        assert outcome.code == "TLS_VERIFY"  # nor is our CA for the other origin
        assert [request.client_certificate for request in origin.requests] == [True]
        assert elsewhere.requests == []
