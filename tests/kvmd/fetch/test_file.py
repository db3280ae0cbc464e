"""Sources of this host's files: the contract of sources, and what is special about files."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from kvmd.core.addresses import AddressPolicy
from kvmd.core.ranges import ByteRange
from kvmd.errors import (
    EntityChangedError,
    HeaderForbiddenError,
    SourceError,
    SourceStalledError,
    UrlForbiddenError,
    UrlInvalidError,
)
from kvmd.fetch.file import sources
from kvmd.plugin import Environment
from kvmd.ports import Access, Source
from kvmwire.source import SourceUrl
from tests.kvmd.fetch.contract import BLOCK, CONTENT, SourceContract, fetch, put

MIB = 1 << 20


class FileOrigin:
    """A folder that file URLs may lead into, and sources of its files."""

    def __init__(self, root: Path, environment: Environment) -> None:
        self.root = root
        self.sources = sources(environment)

    def open(self, name: str) -> Source:
        return self.sources.open(SourceUrl.parse((self.root / name).as_uri()), Access())

    async def close(self) -> None:
        await self.sources.close()


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[Environment]:
    """Allow one folder."""
    folder = tmp_path / "images"
    folder.mkdir()
    with ThreadPoolExecutor(4) as executor:
        yield Environment(AddressPolicy((), ()), executor, folders=(folder,), stall_timeout_s=3.0)


@pytest.fixture
async def origin(environment: Environment) -> AsyncIterator[FileOrigin]:
    """Give the allowed folder's files."""
    made = FileOrigin(environment.folders[0], environment)
    yield made
    await made.close()


class TestContract(SourceContract):
    """The contract."""


async def _refusal(source: Source) -> SourceError:
    with pytest.raises(SourceError) as caught:
        await source.probe()
    return caught.value


async def test_links_devices_and_folders_are_refused_by_their_kind(origin: FileOrigin) -> None:
    put(origin, "folder/disk", CONTENT)
    root = origin.root
    (root / "link").symlink_to("folder/disk")
    (root / "out").symlink_to("/etc/passwd")
    (root / "folderlink").symlink_to("folder")
    os.mkfifo(root / "fifo")
    names = ["link", "out", "fifo", "folder", "folderlink/disk", "folder/disk/inner"]
    if os.geteuid() == 0:
        os.mknod(root / "null", 0o20600, os.makedev(1, 3))
        names.append("null")
    errors = {name: await _refusal(origin.open(name)) for name in names}
    assert {error.code for error in errors.values()} == {"URL_FORBIDDEN"}
    assert "a symbolic link" in errors["out"].message
    assert "no regular file" in errors["fifo"].message


async def test_a_link_that_is_swapped_in_is_not_followed(origin: FileOrigin, tmp_path: Path) -> None:
    source = put(origin, "folder/disk", CONTENT)
    entity = (await source.probe()).entity
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/disk").write_bytes(CONTENT)
    (origin.root / "folder").rename(origin.root / "moved")
    (origin.root / "folder").symlink_to(tmp_path / "outside")
    with pytest.raises(UrlForbiddenError):
        await fetch(source, None, entity)


async def test_a_folder_that_is_reached_through_a_link_is_as_good(environment: Environment, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(environment.folders[0])
    origin = FileOrigin(tmp_path / "link", replace(environment, folders=(tmp_path / "link",)))
    assert (await put(origin, "disk", CONTENT).probe()).entity.size == len(CONTENT)


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "/images", "{folder}", "{folder}x/disk", "{folder}/../disk", "{folder}/%2e%2e/x"]
)
def test_what_is_outside_of_the_folders_is_forbidden(environment: Environment, path: str) -> None:
    url = SourceUrl.parse("file://" + path.format(folder=environment.folders[0]))
    with pytest.raises(UrlForbiddenError):
        sources(environment).open(url, Access())


def test_without_folders_everything_is_forbidden(environment: Environment) -> None:
    url = SourceUrl.parse(f"file://{environment.folders[0]}/disk")
    with pytest.raises(UrlForbiddenError):
        sources(replace(environment, folders=())).open(url, Access())


@pytest.mark.parametrize("rest", ["localhost/images/disk", "/images/", "/images/disk?x", "/images/a%2Fb"])
def test_hosts_queries_and_folders_are_invalid(environment: Environment, rest: str) -> None:
    with pytest.raises(UrlInvalidError):
        sources(environment).open(SourceUrl.parse(f"file://{rest}"), Access())


def test_headers_are_refused(environment: Environment) -> None:
    url = SourceUrl.parse(f"file://{environment.folders[0]}/disk")
    with pytest.raises(HeaderForbiddenError):
        sources(environment).open(url, Access({"X-Token": "1"}))


async def test_a_sparse_file_of_more_than_4_gib(origin: FileOrigin) -> None:
    size, tail = (5 << 30) + 3, b"the end"
    source = put(origin, "sparse", b"head")
    with (origin.root / "sparse").open("r+b") as file:
        file.seek(size - len(tail))
        file.write(tail)
    entity = (await source.probe()).entity
    assert entity.size == size
    assert await fetch(source, ByteRange(size - MIB, size), entity) == bytes(MIB - len(tail)) + tail


async def test_a_file_that_is_written_during_a_stream_is_noticed_before_its_end(origin: FileOrigin) -> None:
    source = put(origin, "disk", CONTENT)
    entity = (await source.probe()).entity
    async with source.read(None, entity, block=BLOCK) as chunks:
        await anext(chunks)
        (origin.root / "disk").write_bytes(CONTENT[::-1])
        with pytest.raises(EntityChangedError):
            assert [len(chunk) async for chunk in chunks]


async def test_a_file_that_is_replaced_during_a_stream_is_read_to_its_end(origin: FileOrigin) -> None:
    source = put(origin, "disk", CONTENT)
    entity = (await source.probe()).entity
    async with source.read(None, entity, block=BLOCK) as chunks:
        first = bytes(await anext(chunks))
        put(origin, "disk", CONTENT[::-1])
        assert first + b"".join([bytes(chunk) async for chunk in chunks]) == CONTENT


async def test_a_disk_that_hangs_is_a_stalled_source(environment: Environment) -> None:
    source = put(FileOrigin(environment.folders[0], environment), "disk", CONTENT)
    with ThreadPoolExecutor(1) as executor:
        hang = threading.Event()
        executor.submit(hang.wait, 10)
        hanging = FileOrigin(environment.folders[0], replace(environment, executor=executor, stall_timeout_s=0.1))
        started = time.monotonic()
        with pytest.raises(SourceStalledError):
            await hanging.open("disk").probe()
        assert time.monotonic() - started < 2
        hang.set()
    assert source.url == hanging.open("disk").url
