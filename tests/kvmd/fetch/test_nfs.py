"""NFS sources against a real server: the contract of sources, and what is special about NFS."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Self

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmd.core.addresses import AddressPolicy
from kvmd.core.ranges import ByteRange
from kvmd.errors import (
    ConfigError,
    EntityChangedError,
    HeaderForbiddenError,
    SourceError,
    SourceStalledError,
    SourceUnreachableError,
    UrlForbiddenError,
    UrlInvalidError,
)
from kvmd.fetch.nfs import next_step, sources
from kvmd.plugin import Environment
from kvmd.ports import Access, Source
from kvmwire.source import SourceUrl
from tests.kvmd.fetch.contract import BLOCK, CONTENT, SourceContract, fetch, put
from tests.support.ganesha import NFS_3, Ganesha
from tests.support.ports import accepts, free_port
from tests.support.processes import ChildProcess
from tests.support.programs import require_program

EVERYWHERE = AddressPolicy((), ())
MIB = 1 << 20


@pytest.fixture
def environment() -> Iterator[Environment]:
    """Give rules with short timeouts."""
    with ThreadPoolExecutor(1) as executor:
        yield Environment(EVERYWHERE, executor, connect_timeout_s=3.0, stall_timeout_s=3.0)


class NfsOrigin:
    """An NFS server's files, and sources of them."""

    def __init__(self, server: Ganesha, environment: Environment) -> None:
        self.server = server
        self.root = server.root
        self.sources = sources(environment)

    def open(self, name: str) -> Source:
        return self.sources.open(SourceUrl.parse(self.server.url(name)), Access())

    async def close(self) -> None:
        await self.sources.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ganesha]:
    """Start one server for all tests that leave it alone."""
    with Ganesha(tmp_path_factory.mktemp("ganesha")) as running:
        yield running


@pytest.fixture(scope="module")
def server_41(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ganesha]:
    """Start one server that speaks no 4.0."""
    with Ganesha(tmp_path_factory.mktemp("ganesha41"), minor_versions="1") as running:
        yield running


@pytest.fixture(scope="module")
def server_3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ganesha]:
    """Start one server that speaks version 3 alone, and a portmapper where there is none."""
    folder = tmp_path_factory.mktemp("ganesha3")
    Path("/run/rpcbind").mkdir(exist_ok=True)
    portmapper = ChildProcess([require_program("rpcbind"), "-f", "-w"], log=folder / "rpcbind.log", port=111)
    with nullcontext() if accepts(111) else portmapper, Ganesha(folder / "server", protocols=NFS_3) as running:
        yield running


@pytest.fixture
async def origin(server: Ganesha, environment: Environment) -> AsyncIterator[NfsOrigin]:
    """Give the shared server's files."""
    made = NfsOrigin(server, environment)
    yield made
    await made.close()


@pytest.fixture
async def own(tmp_path: Path, environment: Environment) -> AsyncIterator[NfsOrigin]:
    """Give the files of a server that the test may stop and restart."""
    with Ganesha(tmp_path / "ganesha") as server:
        made = NfsOrigin(server, replace(environment, stall_timeout_s=1.0, connect_timeout_s=1.0))
        yield made
        await made.close()


class TestContract(SourceContract):
    """The contract, with version 4.0."""


class TestContractOf41(SourceContract):
    """The contract with a server that speaks 4.1 alone."""

    @pytest.fixture
    async def origin(self, server_41: Ganesha, environment: Environment) -> AsyncIterator[NfsOrigin]:
        made = NfsOrigin(server_41, environment)
        yield made
        await made.close()


class TestContractOf3(SourceContract):
    """The contract with a server that speaks version 3 alone."""

    @pytest.fixture
    async def origin(self, server_3: Ganesha, environment: Environment) -> AsyncIterator[NfsOrigin]:
        made = NfsOrigin(server_3, environment)
        yield made
        await made.close()

    async def test_what_is_in_no_export_is_forbidden(self, server_3: Ganesha, origin: NfsOrigin) -> None:
        outside = origin.sources.open(SourceUrl.parse(f"nfs://127.0.0.1:{server_3.port}/etc/passwd"), Access())
        assert (await _refusal(outside)).code == "URL_FORBIDDEN"


async def _refusal(source: Source) -> SourceError:
    with pytest.raises(SourceError) as caught:
        await source.probe()
    return caught.value


async def test_links_devices_and_folders_are_refused_by_their_kind(origin: NfsOrigin) -> None:
    put(origin, "folder/disk", CONTENT)
    root = origin.root
    (root / "link").symlink_to("folder/disk")
    (root / "out").symlink_to("/etc/passwd")
    (root / "folderlink").symlink_to("folder")
    os.mkfifo(root / "fifo")
    os.mknod(root / "null", 0o20600, os.makedev(1, 3))
    errors = {name: await _refusal(origin.open(name)) for name in ("link", "out", "fifo", "null", "folder")}
    errors["folderlink/disk"] = await _refusal(origin.open("folderlink/disk"))
    assert {error.code for error in errors.values()} == {"URL_FORBIDDEN"}
    assert "got a symlink" in errors["out"].message
    assert "got a fifo" in errors["fifo"].message


async def test_a_file_below_a_file_is_refused(origin: NfsOrigin) -> None:
    put(origin, "disk", CONTENT)
    assert (await _refusal(origin.open("disk/inner"))).code == "URL_FORBIDDEN"


@pytest.mark.parametrize("path", ["/export/../etc/passwd", "/export/%2e%2e/etc/passwd", "/export/a/../b"])
def test_a_path_that_climbs_is_forbidden(environment: Environment, path: str) -> None:
    with pytest.raises(UrlForbiddenError):
        sources(environment).open(SourceUrl.parse(f"nfs://127.0.0.1{path}"), Access())


@pytest.mark.parametrize("path", ["", "/", "/export/", "/export/a%2Fb", "/export/disk?vers=3", "/export/%ff"])
def test_a_path_that_names_no_file_is_invalid(environment: Environment, path: str) -> None:
    with pytest.raises(UrlInvalidError):
        sources(environment).open(SourceUrl.parse(f"nfs://127.0.0.1{path}"), Access())


def test_headers_are_refused(environment: Environment) -> None:
    with pytest.raises(HeaderForbiddenError):
        sources(environment).open(SourceUrl.parse("nfs://127.0.0.1/export/disk"), Access({"X-Token": "1"}))


@pytest.mark.parametrize("options", [{"uid": "0"}, {"gid": -1}, {"vers": 3}, {"uid": True}])
def test_options_that_do_not_exist_are_refused(environment: Environment, options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"protocols\.nfs"):
        sources(replace(environment, options=options))


async def test_who_asks_decides_what_may_be_read(server: Ganesha, environment: Environment) -> None:
    stranger = NfsOrigin(server, replace(environment, options={"uid": 12345, "gid": 12345}))
    source = put(stranger, "secret", CONTENT)
    (server.root / "secret").chmod(0o600)
    assert (await _refusal(source)).code == "SOURCE_STATUS"
    (server.root / "secret").chmod(0o644)
    assert (await source.probe()).entity.size == len(CONTENT)
    await stranger.close()


async def test_a_denied_address_is_not_dialled(server: Ganesha, environment: Environment) -> None:
    loopback = AddressPolicy((), (ipaddress.ip_network("127.0.0.0/8"),))
    denied = NfsOrigin(server, replace(environment, addresses=loopback))
    error = await _refusal(denied.open("disk"))
    assert error.code == "URL_FORBIDDEN"
    assert "127.0.0.1" in error.message
    url = SourceUrl.parse(server.url("disk"))
    typed = NfsOrigin(server, replace(environment, addresses=loopback, typed=frozenset({url.origin})))
    put(typed, "disk", CONTENT)
    assert (await typed.open("disk").probe()).entity.size == len(CONTENT)
    await typed.close()


async def test_nobody_at_the_port_is_unreachable(environment: Environment) -> None:
    source = sources(environment).open(SourceUrl.parse(f"nfs://127.0.0.1:{free_port()}/export/disk"), Access())
    with pytest.raises(SourceUnreachableError, match="refused"):
        await source.probe()


async def test_a_server_that_would_send_us_on_to_others_is_not_used(tmp_path: Path, environment: Environment) -> None:
    with Ganesha(tmp_path / "ganesha", minor_versions="1", pnfs=True) as server:
        made = NfsOrigin(server, environment)
        error = await _refusal(put(made, "disk", CONTENT))
        assert error.code in {"PROTOCOL", "URL_FORBIDDEN"}  # there may be a portmapper that knows other exports
        assert "4.1: it offers pNFS" in error.message


async def test_a_sparse_file_of_more_than_4_gib(origin: NfsOrigin) -> None:
    size, tail = (5 << 30) + 3, b"the end"
    source = put(origin, "sparse", b"head")
    with (origin.root / "sparse").open("r+b") as file:
        file.seek(size - len(tail))
        file.write(tail)
    entity = (await source.probe()).entity
    assert entity.size == size
    assert await fetch(source, ByteRange(size - MIB, size), entity) == bytes(MIB - len(tail)) + tail


class Lag:
    """Measures by how much the event loop's timers come late."""

    def __init__(self) -> None:
        self.worst_s = 0.0
        self._loop = asyncio.get_running_loop()

    def __enter__(self) -> Self:
        self._wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    def _wait(self) -> None:
        due = self._loop.time() + 0.01
        self._timer = self._loop.call_at(due, self._note, due)

    def _note(self, due: float) -> None:
        self.worst_s = max(self.worst_s, self._loop.time() - due)
        self._wait()


async def _rest(chunks: AsyncIterator[bytes | memoryview]) -> bytes:
    return b"".join([bytes(chunk) async for chunk in chunks])


async def test_a_stopped_server_stalls_the_stream_and_not_the_loop(own: NfsOrigin) -> None:
    source = put(own, "disk", CONTENT)
    entity = (await source.probe()).entity
    started = time.monotonic()
    with Lag() as lag:
        async with source.read(None, entity, block=BLOCK) as chunks:
            await anext(chunks)
            own.server.process.signal(signal.SIGSTOP)
            with pytest.raises(SourceStalledError, match="1 s"):
                await _rest(chunks)
    assert time.monotonic() - started < 4
    assert lag.worst_s < 0.5
    own.server.process.signal(signal.SIGCONT)
    assert await fetch(source, None, entity) == CONTENT


async def test_a_server_that_accepts_and_is_silent_is_unreachable_in_time(own: NfsOrigin) -> None:
    source = put(own, "disk", CONTENT)
    own.server.process.signal(signal.SIGSTOP)
    started = time.monotonic()
    expected = (SourceUnreachableError, SourceStalledError)  # it may still take the connection before it stops
    with Lag() as lag, pytest.raises(expected, match=r"(within|for) 1 s"):
        await source.probe()
    assert time.monotonic() - started < 3
    assert lag.worst_s < 0.5


async def test_after_a_restart_of_the_server_the_rest_can_be_read(own: NfsOrigin) -> None:
    source = put(own, "disk", CONTENT)
    entity = (await source.probe()).entity
    async with source.read(None, entity, block=BLOCK) as chunks:
        first = bytes(await anext(chunks))
        await asyncio.to_thread(own.server.process.restart)
        with pytest.raises((SourceStalledError, SourceUnreachableError)):
            await _rest(chunks)
    assert first + await fetch(source, ByteRange(len(first), len(CONTENT)), entity) == CONTENT


async def test_a_stale_handle_is_opened_anew_and_the_stream_goes_on(own: NfsOrigin) -> None:
    source = put(own, "disk", CONTENT)
    entity = (await source.probe()).entity
    async with source.read(None, entity, block=BLOCK) as chunks:
        first = bytes(await anext(chunks))
        await own.server.export_anew(export_id=2)
        assert first + await _rest(chunks) == CONTENT


async def test_a_stale_handle_of_a_replaced_file_is_another_entity(own: NfsOrigin) -> None:
    source = put(own, "disk", CONTENT)
    entity = (await source.probe()).entity
    async with source.read(None, entity, block=BLOCK) as chunks:
        await anext(chunks)
        put(own, "disk", CONTENT[::-1])
        await own.server.export_anew(export_id=2)
        with pytest.raises(EntityChangedError):
            await _rest(chunks)


async def test_a_file_that_is_written_during_a_stream_is_noticed_before_its_end(own: NfsOrigin) -> None:
    source = put(own, "disk", CONTENT)
    entity = (await source.probe()).entity
    async with source.read(None, entity, block=BLOCK) as chunks:
        await anext(chunks)
        (own.root / "disk").write_bytes(CONTENT[::-1])
        with pytest.raises(EntityChangedError):
            await _rest(chunks)


async def test_a_file_that_shrinks_during_a_stream_is_noticed(own: NfsOrigin) -> None:
    source = put(own, "disk", CONTENT)
    entity = (await source.probe()).entity
    async with source.read(None, entity, block=BLOCK) as chunks:
        await anext(chunks)
        os.truncate(own.root / "disk", 1000)
        with pytest.raises(EntityChangedError):
            await _rest(chunks)


@given(st.integers(16 << 10, 4 << 20), st.floats(0, 60), st.integers(64 << 10, 4 << 20))
def test_a_step_stays_between_the_smallest_and_a_block(step: int, seconds: float, block: int) -> None:
    assert 16 << 10 <= next_step(step, seconds, block) <= max(block, step // 2)


def test_slow_answers_make_smaller_steps_and_quick_ones_larger() -> None:
    assert next_step(64 << 10, 0.01, MIB) == 128 << 10
    assert next_step(MIB, 0.01, MIB) == MIB
    assert next_step(MIB, 1.0, MIB) == MIB
    assert next_step(MIB, 3.0, MIB) == MIB // 2
    assert next_step(16 << 10, 30.0, MIB) == 16 << 10


def test_without_the_library_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nfs_rs", None)
    monkeypatch.delitem(sys.modules, "kvmd.fetch.nfsclients")
    with pytest.raises(ImportError, match=r"kvmd\[nfs\]"):
        import_module("kvmd.fetch.nfsclients")
