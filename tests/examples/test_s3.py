"""The protocol plug-in in examples/s3: installed with pip as a user does, against a real store that checks signatures."""

from __future__ import annotations

import importlib
import ipaddress
import logging
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from blockbuster import blockbuster_ctx

from kvmd.core.addresses import AddressPolicy
from kvmd.core.ranges import ByteRange
from kvmd.errors import (
    ConfigError,
    ContentEncodingError,
    EntityChangedError,
    HeaderForbiddenError,
    SourceError,
    SourceStalledError,
    SourceStatusError,
    SourceUnreachableError,
    TlsVerifyError,
    UrlForbiddenError,
    UrlInvalidError,
)
from kvmd.fetch.protocols import load_plugins
from kvmd.plugin import Environment, Factory
from kvmd.ports import Access, Source, Sources
from kvmd.vault import Vault
from kvmwire.source import SourceUrl
from tests.kvmd.commands import Ran, kvmd, quick_config
from tests.kvmd.daemon.harness import LOOPBACK, Daemon, record, running, sha256, site, toml
from tests.kvmd.fetch.contract import CONTENT, SourceContract, fetch, put
from tests.support import images
from tests.support.brokers import Broker
from tests.support.credentials import opened
from tests.support.hostile import HostileServer
from tests.support.nginx import Nginx
from tests.support.ports import free_port
from tests.support.relay import Relay
from tests.support.seaweed import ACCESS_KEY, SECRET_KEY, STRANGERS_KEY, STRANGERS_SECRET, Seaweed
from tests.support.tls import Authority
from tests.support.waiting import eventually

PLUGIN = Path(__file__).parents[2] / "examples" / "s3"
IMAGE = images.qcow2(virtual_size=32 << 20, data_size=20 << 20)
DISK = "s3://images/linux/deb%2012.qcow2"
EVERYWHERE = AddressPolicy((), ())
SCRIPT = """
    location /images/ { proxy_pass STORE; proxy_set_header Host $http_host; proxy_buffering off; }
    location = /said/slow {
        default_type application/xml; add_header Retry-After 7 always; return 503 "<Error><Code>SlowDown</Code></Error>";
    }
    location = /said/away { return 307 http://127.0.0.1:1/elsewhere; }
    location = /said/mail { default_type text/html; return 502 "<html>AKOWNER a-made-up-secret</html>"; }
    location = /said/empty { return 416; }
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the plug-in into a folder of its own, which tests put on the path."""
    folder = tmp_path_factory.mktemp("installed")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index"]
    command += ["--no-deps", "--no-build-isolation", "--target", str(folder), str(PLUGIN)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
    return folder


@pytest.fixture(scope="module")
def factory(installed: Path) -> Iterator[Factory]:
    """Load the plug-in as kvmd does."""
    sys.path.insert(0, str(installed))
    importlib.invalidate_caches()
    plugin = load_plugins({"s3"})["s3"]
    assert not isinstance(plugin, str), plugin
    yield plugin
    sys.path.remove(str(installed))
    for name in [name for name in sys.modules if name.partition(".")[0] == "kvmd_s3"]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweed]:
    """Start a store with one image in it."""
    with Seaweed(tmp_path_factory.mktemp("store")) as running_store:
        running_store.put("images")
        running_store.put("contract")
        running_store.put("images", "linux/deb 12.qcow2", IMAGE)
        yield running_store


@pytest.fixture
def front(store: Seaweed, tmp_path: Path, authority: Authority) -> Iterator[Nginx]:
    """Put nginx before the store: it logs what is asked for, speaks TLS, and gives the answers of SCRIPT."""
    with Nginx(tmp_path / "front", authority=authority, directives=SCRIPT.replace("STORE", store.endpoint)) as nginx:
        yield nginx


def secret_file(folder: Path, secret: str = SECRET_KEY) -> Path:
    """Write a secret as a user should."""
    path = folder / "s3.secret"
    path.write_text(f"{secret}\n")
    path.chmod(0o640)
    return path


def signing(folder: Path, endpoint: str, **options: Any) -> dict[str, Any]:
    """Give options that work."""
    return {"endpoint": endpoint, "access_key": ACCESS_KEY, "secret_key_file": str(secret_file(folder)), **options}


@dataclass
class Opener:
    """Makes sources in this process, and closes all that it made."""

    factory: Factory
    environment: Environment
    made: list[Sources]

    def sources(self, options: Mapping[str, Any], **environment: Any) -> Sources:
        """Call the factory."""
        self.made.append(self.factory(replace(self.environment, options=options, **environment)))
        return self.made[-1]

    def open(self, url: str, options: Mapping[str, Any], **environment: Any) -> Source:
        """Open one URL."""
        return self.sources(options, **environment).open(SourceUrl.parse(url), Access())


@pytest.fixture
async def opener(factory: Factory) -> AsyncIterator[Opener]:
    """Give sources that may dial any address; the test in which they block the event loop fails."""
    with ThreadPoolExecutor(2) as executor, blockbuster_ctx("kvmd_s3"):
        environment = Environment(EVERYWHERE, executor, connect_timeout_s=2.0, stall_timeout_s=2.0)
        one = Opener(factory, environment, [])
        yield one
        for sources in one.made:
            await sources.close()


class _Bucket:
    """A bucket as the contract wants it: what was written below ``root`` is uploaded when a source of it is opened."""

    def __init__(self, root: Path, store: Seaweed, sources: Sources) -> None:
        self.root = root
        self._store = store
        self._sources = sources

    def open(self, name: str) -> Source:
        path = self.root / name
        if path.exists():
            self._store.put("contract", name, path.read_bytes())
        return self._sources.open(SourceUrl.parse(f"s3://contract/{quote(name)}"), Access())

    async def close(self) -> None:
        await self._sources.close()


class TestContract(SourceContract):
    """What holds for every source."""

    @pytest.fixture
    async def origin(self, store: Seaweed, opener: Opener, tmp_path: Path) -> _Bucket:
        root = tmp_path / "root"
        root.mkdir()
        return _Bucket(root, store, opener.sources(signing(tmp_path, store.endpoint)))

    async def test_a_rewritten_file_of_the_same_size_is_another_entity(self, origin: _Bucket) -> None:  # type: ignore[override]  # in a store, writing is uploading
        before = (await put(origin, "disk", CONTENT).probe()).entity
        source = put(origin, "disk", CONTENT[::-1])
        with pytest.raises(EntityChangedError, match="412 PreconditionFailed"):
            await fetch(source, ByteRange(0, 100), before)


class TestCommand:
    """``kvmd fetch`` and the daemon, with the plug-in installed."""

    @staticmethod
    def run(tmp_path: Path, installed: Path | None, options: Mapping[str, Any], *arguments: str) -> Ran:
        policy = {"allowed_protocols": ["http", "https", "s3"], "allowed_networks": [LOOPBACK]}
        config = quick_config(tmp_path, extra=toml({"policy": policy, "protocols": {"s3": options}}))
        environment = {"PYTHONPATH": str(installed)} if installed else {}
        return kvmd("fetch", *arguments, "--config", config, "--json", env=environment)

    def test_an_image_is_fetched_in_several_signed_ranges(
        self, front: Nginx, installed: Path, tmp_path: Path, authority: Authority
    ) -> None:
        options = signing(tmp_path, f"https://127.0.0.1:{front.tls_port}", ca_file=str(authority.ca_file))
        ran = self.run(
            tmp_path,
            installed,
            options,
            "s3://images/linux/deb%2012.qcow2",
            str(tmp_path / "disk"),
            "--checksum",
            sha256(IMAGE),
        )
        assert (ran.code, ran.result["format"]) == (0, "qcow2"), ran
        assert (tmp_path / "disk").read_bytes() == IMAGE
        asked = front.requests()
        assert {(one.method, one.target, one.status) for one in asked} == {("GET", "/images/linux/deb%2012.qcow2", 206)}
        assert len({one.range for one in asked}) == len(asked) > 3

    @pytest.mark.parametrize(
        ("key", "secret", "url", "s3_code"),
        [
            (ACCESS_KEY, SECRET_KEY, "s3://images/linux/deb13.qcow2", "404 NoSuchKey"),
            (ACCESS_KEY, SECRET_KEY, "s3://nowhere/deb12.qcow2", "404 NoSuchBucket"),
            (ACCESS_KEY, "wrong-secret", "s3://images/linux/deb%2012.qcow2", "403 SignatureDoesNotMatch"),
            ("AKNOBODY", "wrong-secret", "s3://images/linux/deb%2012.qcow2", "403 InvalidAccessKeyId"),
            (STRANGERS_KEY, STRANGERS_SECRET, "s3://images/linux/deb%2012.qcow2", "403 AccessDenied"),
        ],
    )
    def test_a_refusal_is_told_in_the_stores_words_and_without_the_secret(
        self, store: Seaweed, installed: Path, tmp_path: Path, key: str, secret: str, url: str, s3_code: str
    ) -> None:
        options = signing(tmp_path, store.endpoint, access_key=key)
        secret_file(tmp_path, secret)
        ran = self.run(tmp_path, installed, options, url, str(tmp_path / "disk"))
        assert (ran.code, ran.result["code"]) == (4, "SOURCE_STATUS")
        assert s3_code in ran.result["message"]
        assert ran.result["hint"]
        assert secret not in ran.stdout + ran.stderr
        assert not (tmp_path / "disk").exists()

    def test_without_the_plug_in_the_protocol_is_unsupported(self, tmp_path: Path) -> None:
        ran = self.run(tmp_path, None, {}, "s3://images/disk", str(tmp_path / "disk"))
        assert ran.result["code"] == "UNSUPPORTED"
        assert "there is http, https" in ran.result["message"]

    def test_an_unknown_option_is_named_and_its_value_is_not(self, installed: Path, tmp_path: Path) -> None:
        ran = self.run(tmp_path, installed, {"secret_key": SECRET_KEY}, "s3://images/disk", str(tmp_path / "disk"))
        assert ran.result["code"] == "POLICY"
        assert "[protocols.s3] secret_key: there is no such option" in ran.result["message"]
        assert SECRET_KEY not in ran.stdout + ran.stderr

    async def test_a_daemon_deploys_from_the_store(
        self, store: Seaweed, broker: Broker, installed: Path, tmp_path: Path
    ) -> None:
        tables = {
            "policy": {"allowed_protocols": ["http", "s3"]},
            "protocols": {"s3": signing(tmp_path, store.endpoint)},
        }
        daemon = Daemon(tmp_path / "kvm01", broker.url, tables=tables, env={"PYTHONPATH": str(installed)})
        async with site(broker) as lab, running(daemon):
            await lab.deploy(record("deb12", "s3://images/linux/deb%2012.qcow2", IMAGE))
            ready = await lab.watch.replica("deb12", "ready")
            assert (ready.size, ready.trust) == (len(IMAGE), "checksum")
            assert daemon.volume("deb12").read_bytes() == IMAGE
            await lab.deploy(record("deb13", "s3://images/linux/deb13.qcow2", IMAGE))
            failed = await lab.watch.until_code("deb13", "SOURCE_STATUS")
            assert "404 NoSuchKey" in (failed.message or "")
        assert SECRET_KEY not in daemon.process.log_text()

    async def test_a_plug_in_that_cannot_be_imported_is_told_and_http_goes_on(
        self, broker: Broker, hostile: HostileServer, tmp_path: Path
    ) -> None:
        package = tmp_path / "broken" / "kvmd_broken-1.0.dist-info"
        package.mkdir(parents=True)
        (package / "METADATA").write_text("Metadata-Version: 2.1\nName: kvmd-broken\nVersion: 1.0\n")
        (package / "entry_points.txt").write_text("[kvmd.protocols]\ns3 = kvmd_broken:sources\n")
        (package.parent / "kvmd_broken.py").write_text("import a_library_that_is_not_there\n")
        small = images.raw(300 << 10)
        hostile.add("disk", small)
        tables = {"policy": {"allowed_protocols": ["http", "s3"]}}
        daemon = Daemon(tmp_path / "kvm01", broker.url, tables=tables, env={"PYTHONPATH": str(package.parent)})
        async with site(broker) as lab, running(daemon):
            await lab.deploy(record("deb12", "s3://images/disk", small))
            failed = await lab.watch.until_code("deb12", "UNSUPPORTED")
            assert "No module named 'a_library_that_is_not_there'" in (failed.message or "")
            await lab.deploy(record("deb13", hostile.url("disk"), small))
            await lab.watch.replica("deb13", "ready")
        [logged] = daemon.logged("plug-in not loaded")
        assert (logged["scheme"], logged["plugin"]) == ("s3", "kvmd_broken:sources")


class TestAnswers:
    """What becomes of answers that no store gives on demand."""

    @staticmethod
    async def error(source: Source) -> SourceError:
        with pytest.raises(SourceError) as caught:
            await source.probe()
        return caught.value

    async def test_a_request_to_slow_down_is_obeyed(self, opener: Opener, front: Nginx) -> None:
        error = await self.error(opener.open("s3://said/slow", {"endpoint": f"http://127.0.0.1:{front.port}"}))
        assert isinstance(error, SourceUnreachableError)
        assert (error.is_throttle, error.retry_after_s, error.status) == (True, 7.0, 503)
        assert "503 SlowDown" in error.message

    async def test_a_redirect_is_not_followed(self, opener: Opener, front: Nginx) -> None:
        error = await self.error(opener.open("s3://said/away", {"endpoint": f"http://127.0.0.1:{front.port}"}))
        assert isinstance(error, SourceStatusError)
        assert error.status == 307
        assert "region" in error.hint

    async def test_nothing_but_the_code_is_told_of_an_error_page(self, opener: Opener, front: Nginx) -> None:
        error = await self.error(opener.open("s3://said/mail", {"endpoint": f"http://127.0.0.1:{front.port}"}))
        assert error.message == "source s3://said/mail: the store answered HTTP 502; it is asked again later."

    async def test_an_object_without_a_first_range_is_empty(self, opener: Opener, front: Nginx) -> None:
        error = await self.error(opener.open("s3://said/empty", {"endpoint": f"http://127.0.0.1:{front.port}"}))
        assert error.code == "EMPTY"

    async def test_an_object_that_is_stored_encoded_is_refused(
        self, opener: Opener, store: Seaweed, tmp_path: Path
    ) -> None:
        store.put("images", "packed", b"x" * 1000, **{"Content-Encoding": "gzip"})
        error = await self.error(opener.open("s3://images/packed", signing(tmp_path, store.endpoint)))
        assert isinstance(error, ContentEncodingError)

    async def test_a_store_that_says_nothing_is_stalled(self, opener: Opener, store: Seaweed, tmp_path: Path) -> None:
        async with Relay(store.port) as relay:
            relay.freeze()
            source = opener.open(DISK, signing(tmp_path, f"http://127.0.0.1:{relay.port}"), stall_timeout_s=0.3)
            assert isinstance(await self.error(source), SourceStalledError)

    async def test_a_connection_that_breaks_off_is_tried_again_after_what_has_come(
        self, opener: Opener, store: Seaweed, tmp_path: Path
    ) -> None:
        async with Relay(store.port) as relay:
            source = opener.open(DISK, signing(tmp_path, f"http://127.0.0.1:{relay.port}"))
            entity = (await source.probe()).entity
            got = bytearray()
            async with source.read(None, entity, block=64 << 10) as blocks:
                got += await anext(blocks)
                relay.cut()
                with pytest.raises(SourceUnreachableError):
                    got += b"".join([bytes(block) async for block in blocks])
            assert 0 < len(got) < len(IMAGE)
            assert IMAGE.startswith(got)

    async def test_a_store_that_is_not_there_is_unreachable(self, opener: Opener) -> None:
        error = await self.error(opener.open(DISK, {"endpoint": f"http://127.0.0.1:{free_port()}"}))
        assert isinstance(error, SourceUnreachableError)
        assert "Connect call failed" in error.message

    async def test_a_certificate_that_is_not_trusted_is_refused(self, opener: Opener, front: Nginx) -> None:
        error = await self.error(opener.open(DISK, {"endpoint": f"https://127.0.0.1:{front.tls_port}"}))
        assert isinstance(error, TlsVerifyError)
        assert front.requests() == []

    async def test_a_ca_that_the_host_was_handed_for_the_endpoint_is_believed(
        self, opener: Opener, front: Nginx, authority: Authority
    ) -> None:
        endpoint, vault = f"https://127.0.0.1:{front.tls_port}", Vault()
        vault.put(opened("ca", endpoint, ca=authority.ca_file))
        error = await self.error(opener.open(DISK, {"endpoint": endpoint}, credentials=vault))
        assert isinstance(error, SourceStatusError)
        await eventually(lambda: len(front.requests()) == 1)


class TestRules:
    """What the host's rules and the options forbid."""

    async def test_only_allowed_addresses_are_dialled(self, opener: Opener, store: Seaweed) -> None:
        loopback = ipaddress.ip_network(LOOPBACK)
        source = opener.open(DISK, {"endpoint": store.endpoint}, addresses=AddressPolicy((), (loopback,)))
        with pytest.raises(UrlForbiddenError, match=r"127\.0\.0\.1"):
            await source.probe()

    def test_a_plain_endpoint_needs_allow_http(self, opener: Opener) -> None:
        with pytest.raises(UrlForbiddenError, match="allow_http"):
            opener.open(DISK, {"endpoint": "http://s3.test"}, allow_http=False)

    def test_headers_are_refused(self, opener: Opener) -> None:
        with pytest.raises(HeaderForbiddenError, match="x-amz-acl"):
            opener.sources({}).open(SourceUrl.parse(DISK), Access({"x-amz-acl": "private"}))

    @pytest.mark.parametrize(
        "url",
        [
            "s3://images",
            "s3://images/",
            "s3://images/linux/",
            "s3://images:80/disk",
            "s3://images/disk?versionId=1",
            "s3://images/../disk",
            "s3://images/%2e%2e/disk",
            "s3://i/disk",
            f"s3://images/{'%20' * 2700}",
        ],
    )
    def test_urls_that_name_no_object_are_refused(self, opener: Opener, url: str) -> None:
        with pytest.raises(UrlInvalidError):
            opener.open(url, {"endpoint": f"https://{'s3.' * 60}example"})

    @pytest.mark.parametrize(
        ("options", "what"),
        [
            ({"endpoint": "s3.example"}, "endpoint"),
            ({"endpoint": "ftp://s3.example"}, "endpoint"),
            ({"endpoint": "https://s3.example/path"}, "endpoint"),
            ({"endpoint": "https://key:a-made-up-secret@s3.example"}, "endpoint"),
            ({"endpoint": 9000}, "endpoint"),
            ({"region": "eu central"}, "region"),
            ({"path_style": "yes"}, "path_style"),
            ({"access_key": "AK/1", "secret_key_file": "/s"}, "access_key"),
            ({"access_key": "AK"}, "access_key and secret_key_file"),
            ({"secret_key_file": "/s"}, "access_key and secret_key_file"),
            ({"access_key": "AK", "secret_key_file": "s"}, "secret_key_file: expected an absolute path"),
        ],
    )
    def test_an_option_that_cannot_be_used_is_named(
        self, opener: Opener, options: Mapping[str, Any], what: str
    ) -> None:
        with pytest.raises(ConfigError) as caught:
            opener.sources(options)
        assert caught.value.message.startswith(f"[protocols.s3] {what}")
        assert SECRET_KEY not in caught.value.message

    @pytest.mark.parametrize(
        ("content", "mode", "why"),
        [
            (None, 0, "No such file"),
            (b"", 0o600, "first line is empty"),
            (b"\xff", 0o600, "not ASCII"),
            (b"secret", 0o604, "every user"),
        ],
    )
    async def test_a_secret_that_cannot_be_used_is_told_of_the_source(
        self, opener: Opener, tmp_path: Path, content: bytes | None, mode: int, why: str
    ) -> None:
        path = tmp_path / "secret"
        if content is not None:
            path.write_bytes(content)
            path.chmod(mode)
        source = opener.open(DISK, {"access_key": "AK", "secret_key_file": str(path)})
        with pytest.raises(SourceError, match=why) as caught:
            await source.probe()
        assert caught.value.code == "POLICY"

    async def test_a_new_secret_holds_from_the_next_probe_on(
        self, opener: Opener, store: Seaweed, tmp_path: Path
    ) -> None:
        source = opener.open(DISK, signing(tmp_path, store.endpoint))
        secret_file(tmp_path, "expired")
        with pytest.raises(SourceStatusError, match="SignatureDoesNotMatch"):
            await source.probe()
        secret_file(tmp_path)
        assert (await source.probe()).entity.size == len(IMAGE)

    async def test_no_signature_is_logged(
        self, opener: Opener, store: Seaweed, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        await opener.open(DISK, signing(tmp_path, store.endpoint)).probe()
        assert "signature" not in caplog.text.lower()

    async def test_the_proxy_of_the_endpoint_is_used_whatever_its_address(
        self, opener: Opener, store: Seaweed, tmp_path: Path
    ) -> None:
        nobody = SourceUrl.parse(f"http://s3.test:{store.port}")
        loopback = ipaddress.ip_network(LOOPBACK)
        rules = {"proxies": {nobody.origin: store.endpoint}, "addresses": AddressPolicy((), (loopback,))}
        source = opener.open(DISK, signing(tmp_path, nobody.raw), **rules)
        assert (await source.probe()).entity.size == len(IMAGE)

    @pytest.mark.parametrize(
        ("url", "options", "target"),
        [
            ("s3://b01/k", {}, "https://b01.s3.us-east-1.amazonaws.com/k"),
            ("s3://b01/k", {"region": "eu-west-1"}, "https://b01.s3.eu-west-1.amazonaws.com/k"),
            ("s3://b.01x/k", {}, "https://s3.us-east-1.amazonaws.com/b.01x/k"),
            ("s3://b01/k", {"path_style": True}, "https://s3.us-east-1.amazonaws.com/b01/k"),
            ("s3://b01/k", {"endpoint": "https://s3.test:9000/"}, "https://s3.test:9000/b01/k"),
            ("s3://b01/k", {"endpoint": "https://s3.test:9000", "path_style": False}, "https://b01.s3.test:9000/k"),
            ("s3://b01/a//b%2Fc+d%20'", {"endpoint": "http://[::1]:9"}, "http://[::1]:9/b01/a//b/c%2Bd%20%27"),
        ],
    )
    def test_where_an_object_is_asked_for(
        self, opener: Opener, url: str, options: Mapping[str, Any], target: str
    ) -> None:
        opener.open(url, options)
        location, settings = (importlib.import_module(f"kvmd_s3.{name}") for name in ("location", "options"))
        assert location.locate(SourceUrl.parse(url), settings.Options.of(options)).target == target
