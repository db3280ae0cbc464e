"""Images for a pool of raw volumes: downloaded, verified, converted, and known again."""

from __future__ import annotations

import asyncio
import gzip
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from kvmd.core.session import Converting, Ready
from kvmwire.images import ChecksumOf, ImageFormat
from tests.kvmd.engine.fetching import Host, digest_of
from tests.kvmd.image import zoo
from tests.support import bootable, images
from tests.support.hostile import HostileServer
from tests.support.packed import PACKERS
from tests.support.programs import require_program
from tests.support.waiting import eventually

MIB = 1 << 20
SIZE = 16 * MIB
IMAGE = images.qcow2(SIZE, data_size=MIB)
RAW = images.payload(MIB).ljust(SIZE, b"\0")
HEAD = 64 << 10


@pytest.fixture(autouse=True)
def qemu_img() -> Path:
    """All of these need the real one."""
    return require_program("qemu-img")


def converted(folder: Path, content: bytes, *options: str, source: str = "raw") -> bytes:
    """Give the content in another format."""
    (folder / "from").write_bytes(content)
    words = ["qemu-img", "convert", "-f", source, "-O", *options, folder / "from", folder / "to"]
    subprocess.run(words, check=True, timeout=20)
    return (folder / "to").read_bytes()


async def test_the_volume_is_raw_and_known_as_what_it_holds(host: Host, hostile: HostileServer) -> None:
    hostile.add("disk", IMAGE)
    outcome = await host.fetch(hostile.url("disk"), expected=IMAGE, content=RAW, format=ImageFormat.QCOW2, is_raw=True)
    assert outcome.code == "ready"
    assert any(isinstance(state, Converting) for state in outcome.states)
    assert isinstance(outcome.state, Ready)
    assert outcome.state.image is not None
    assert (outcome.state.image.format, outcome.state.image.virtual_size) == ("raw", SIZE)
    assert outcome.path.stat().st_blocks * 512 < 2 * MIB


@pytest.mark.parametrize("options", [("qcow2", "-c"), ("vmdk",), ("vhdx",)], ids=" ".join)
async def test_every_format_that_is_accepted_becomes_raw(
    host: Host, hostile: HostileServer, tmp_path: Path, options: tuple[str, ...]
) -> None:
    image = await asyncio.to_thread(converted, tmp_path, images.raw(4 * MIB), *options)
    hostile.add("disk", image)
    outcome = await host.fetch(hostile.url("disk"), expected=image, content=images.raw(4 * MIB), is_raw=True)
    assert outcome.code == "ready"


@pytest.mark.parametrize("content", [images.raw(), images.iso(), images.iso(hybrid=True)], ids=["raw", "iso", "hybrid"])
async def test_what_is_raw_or_an_iso_stays_as_it_is(host: Host, hostile: HostileServer, content: bytes) -> None:
    hostile.add("disk", content)
    outcome = await host.fetch(hostile.url("disk"), expected=content, is_raw=True)
    assert outcome.code == "ready"
    assert list((host.pool / ".kvmd").iterdir()) == []


async def test_a_disc_in_a_qcow2_is_a_disk(host: Host, hostile: HostileServer) -> None:
    image = await asyncio.to_thread(bootable.qcow2, "hello")
    hostile.add("disk", image)
    for _ in range(2):  # made, and known again
        outcome = await host.fetch(hostile.url("disk"), expected=image, content=_hello(), is_raw=True)
        assert isinstance(outcome.state, Ready)
        assert outcome.state.image is not None
        assert outcome.state.image.format == "raw"


def _hello() -> bytes:
    return bootable.iso("hello", bootable.Then.WAITS).ljust(4 << 20, b"\0")


@pytest.mark.parametrize("kind", ["gzip", "zstd", "zip"])
async def test_compressed_images_are_unpacked_first(host: Host, hostile: HostileServer, kind: str) -> None:
    packed = PACKERS[kind](IMAGE)
    hostile.add("disk", packed)
    outcome = await host.fetch(hostile.url("disk"), expected=packed, content=RAW, is_raw=True)
    assert outcome.code == "ready"


@pytest.mark.parametrize(("packs", "of"), [(False, "served"), (True, "served"), (True, "content"), (False, "content")])
async def test_a_volume_is_adopted_by_what_it_was_made_of_though_nobody_remembers(
    host: Host, hostile: HostileServer, *, packs: bool, of: str
) -> None:
    served = gzip.compress(IMAGE) if packs else IMAGE
    promised, of_what = (IMAGE if of == "content" else served), ChecksumOf(of)
    hostile.add("disk", served)
    first = await host.fetch(hostile.url("disk"), expected=promised, content=RAW, checksum_of=of_what, is_raw=True)
    assert first.code == "ready"
    sent = hostile.bytes_sent("disk")
    again = await host.fetch(hostile.url("disk"), expected=promised, content=RAW, checksum_of=of_what, is_raw=True)
    assert isinstance(again.state, Ready)
    assert again.state.is_adopted
    assert hostile.bytes_sent("disk") == sent


async def test_an_unpacked_volume_is_adopted_by_the_served_checksum(host: Host, hostile: HostileServer) -> None:
    packed = gzip.compress(IMAGE)
    hostile.add("disk", packed)
    await host.fetch(hostile.url("disk"), expected=packed, content=IMAGE)
    again = await host.fetch(hostile.url("disk"), expected=packed, content=IMAGE)
    assert isinstance(again.state, Ready)
    assert again.state.is_adopted


async def test_without_its_record_the_volume_is_somebodys(host: Host, hostile: HostileServer) -> None:
    hostile.add("disk", IMAGE)
    await host.fetch(hostile.url("disk"), expected=IMAGE, content=RAW, is_raw=True)
    await asyncio.to_thread(shutil.rmtree, host.pool / ".kvmd")
    again = await host.fetch(hostile.url("disk"), expected=IMAGE, is_raw=True)
    assert again.code == "EXISTS"
    assert again.path.read_bytes() == RAW


async def test_an_image_in_its_own_format_that_nobody_made_is_left_alone(host: Host, hostile: HostileServer) -> None:
    (host.pool / "disk.img").write_bytes(IMAGE)
    hostile.add("disk", IMAGE)
    outcome = await host.fetch(hostile.url("disk"), expected=IMAGE, is_raw=True)
    assert outcome.code == "EXISTS"
    assert "the pool's format is raw" in outcome.failure.message


async def test_a_guest_that_wrote_the_head_of_a_qcow2_to_its_disk_is_refused(
    host: Host, hostile: HostileServer, tmp_path: Path
) -> None:
    inner = bytearray(images.qcow2(SIZE).ljust(SIZE, b"\0"))
    inner[8:20] = (1024).to_bytes(8) + (11).to_bytes(4)
    inner[1024:1035] = b"/etc/passwd"
    image = await asyncio.to_thread(converted, tmp_path, bytes(inner), "qcow2")
    hostile.add("disk", image)
    kept = await host.fetch(hostile.url("disk"), expected=image, name="kept")
    assert kept.code == "ready"
    outcome = await host.fetch(hostile.url("disk"), expected=image, is_raw=True)
    assert outcome.code == "FORMAT_AMBIGUOUS"
    assert host.partial_files() == {}


async def test_an_encrypted_image_is_not_converted(tmp_path: Path, hostile: HostileServer) -> None:
    make = zoo.created("qcow2", "--object", "secret,id=s,data=x", "-o", zoo.LUKS_IN_QCOW2)
    await asyncio.to_thread(make, tmp_path / "image")
    image = (tmp_path / "image").read_bytes()
    hostile.add("disk", image)
    host = Host(tmp_path / "host", policy={"allow_encrypted": True})
    outcome = await host.fetch(hostile.url("disk"), expected=image, is_raw=True)
    assert outcome.code == "CONVERT"
    assert "encrypted" in outcome.failure.message
    assert host.partial_files() == {}


async def test_a_virtual_size_over_the_limit_is_refused_before_the_download(
    tmp_path: Path, hostile: HostileServer
) -> None:
    image = images.qcow2(64 * MIB, data_size=4 * MIB)
    hostile.add("disk", image)
    host = Host(tmp_path, policy={"max_virtual_size": 32 * MIB})
    outcome = await host.fetch(hostile.url("disk"), expected=image, is_raw=True)
    assert outcome.code == "VIRTUAL_SIZE"
    assert hostile.bytes_sent("disk") < MIB


async def test_a_qemu_img_that_fails_at_it_is_told(
    host: Host, hostile: HostileServer, fake: Callable[[str], Path], qemu_img: Path
) -> None:
    fake(f'[ $1 = convert ] && echo broken inside >&2 && exit 3\nexec {qemu_img} "$@"')
    hostile.add("disk", IMAGE)
    outcome = await host.fetch(hostile.url("disk"), expected=IMAGE, is_raw=True)
    assert outcome.code == "CONVERT"
    assert "qemu-img convert ended with 3: broken inside" in outcome.failure.message
    assert host.partial_files() == {}


async def test_a_cancelled_conversion_keeps_the_download(
    host: Host, hostile: HostileServer, fake: Callable[[str], Path], qemu_img: Path
) -> None:
    program = fake(f'[ $1 = convert ] && exec sleep 60\nexec {qemu_img} "$@"')
    hostile.add("disk", IMAGE)
    task = asyncio.create_task(host.run(hostile.url("disk"), expected=IMAGE, content=RAW, is_raw=True))
    await eventually(lambda: any(name.endswith(".raw") for name in host.partial_files()), what="it is converted")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert {name.rpartition(".")[2] for name in host.partial_files()} == {"json", "part"}
    program.write_text(f'#!/bin/sh\nexec {qemu_img} "$@"\n')
    sent = hostile.bytes_sent("disk")
    outcome = await host.fetch(hostile.url("disk"), expected=IMAGE, content=RAW, is_raw=True)
    assert outcome.code == "ready"
    assert hostile.bytes_sent("disk") - sent <= HEAD


async def test_without_a_checksum_it_is_known_by_what_it_holds(host: Host, hostile: HostileServer) -> None:
    hostile.add("disk", IMAGE)
    outcome = await host.fetch(hostile.url("disk"), content=RAW, is_raw=True)
    assert isinstance(outcome.state, Ready)
    assert outcome.state.placement.digest == digest_of(RAW)
