"""Images that are served compressed become volumes of their content."""

from __future__ import annotations

import asyncio
import bz2
import gzip
from pathlib import Path

import pytest

from kvmd.core import plan
from kvmd.core.session import Ready
from kvmd.engine import landing
from kvmwire.images import ChecksumOf, ImageFormat
from tests.kvmd.engine.fetching import Host, digest_of
from tests.support.hostile import HostileServer
from tests.support.images import payload, qcow2, raw
from tests.support.packed import PACKERS
from tests.support.waiting import eventually

MIB, KIB = 1 << 20, 1 << 10
IMAGE = qcow2(data_size=512 * KIB)
DISK = raw(MIB) + bytes(8 * MIB) + payload(300 * KIB, seed=7)
PACKED = gzip.compress(IMAGE)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let small downloads have many steps."""
    for name in ("FIRST_SEGMENT", "MIN_SEGMENT", "MAX_SEGMENT"):
        monkeypatch.setattr(plan, name, 128 * KIB)
    monkeypatch.setattr(plan, "MAX_BLOCK", 64 * KIB)
    monkeypatch.setattr(landing, "WINDOW", 128 * KIB)


@pytest.mark.parametrize("kind", PACKERS)
async def test_the_volume_is_the_content_whatever_the_name_says(host: Host, hostile: HostileServer, kind: str) -> None:
    packed = PACKERS[kind](IMAGE)
    hostile.add("disk.qcow2", packed)
    outcome = await host.fetch(
        hostile.url("disk.qcow2"), expected=packed, content=IMAGE, size=len(packed), format=ImageFormat.QCOW2
    )
    assert outcome.code == "ready"
    assert outcome.path.read_bytes() == IMAGE
    assert isinstance(outcome.state, Ready)
    assert outcome.state.image is not None
    assert outcome.state.image.format == "qcow2"


@pytest.mark.parametrize("query", [{"ranges": "off"}, {"framing": "chunked"}])
async def test_in_one_stream_it_is_the_same(host: Host, hostile: HostileServer, query: dict[str, str]) -> None:
    hostile.add("disk", PACKED)
    outcome = await host.fetch(hostile.url("disk", **query), expected=PACKED, content=IMAGE)
    assert outcome.code == "ready"


async def test_without_a_checksum_the_content_is_known_by_its_own(host: Host, hostile: HostileServer) -> None:
    hostile.add("disk", PACKED)
    outcome = await host.fetch(hostile.url("disk"), content=IMAGE)
    assert outcome.code == "ready"
    assert isinstance(outcome.state, Ready)
    assert outcome.state.placement.digest == digest_of(IMAGE)


async def test_runs_of_zeros_become_holes(host: Host, hostile: HostileServer) -> None:
    packed = gzip.compress(DISK)
    hostile.add("disk", packed)
    outcome = await host.fetch(hostile.url("disk"), expected=packed, content=DISK)
    assert outcome.code == "ready"
    assert outcome.path.stat().st_blocks * 512 < 2 * MIB


@pytest.mark.usefixtures("steps")
async def test_many_sources_in_small_steps(host: Host, hostile: HostileServer) -> None:
    hostile.add("a", PACKED)
    hostile.add("b", PACKED)
    outcome = await host.fetch(hostile.url("a"), hostile.url("b", rate=MIB), expected=PACKED, content=IMAGE)
    assert outcome.code == "ready"


async def test_the_checksum_may_be_of_the_content(host: Host, hostile: HostileServer) -> None:
    hostile.add("disk", PACKED)
    url = hostile.url("disk")
    outcome = await host.fetch(url, expected=IMAGE, content=IMAGE, checksum_of=ChecksumOf.CONTENT)
    assert outcome.code == "ready"
    again = await host.fetch(url, expected=IMAGE, content=IMAGE, checksum_of=ChecksumOf.CONTENT)
    assert isinstance(again.state, Ready)
    assert again.state.is_adopted
    wrong = await host.fetch(url, expected=b"other", name="disk2", checksum_of=ChecksumOf.CONTENT)
    assert wrong.code == "CHECKSUM_MISMATCH"
    assert "of content" in wrong.failure.message
    assert host.partial_files() == {}


async def test_a_checksum_of_the_content_holds_for_what_is_not_compressed(host: Host, hostile: HostileServer) -> None:
    hostile.add("disk", IMAGE)
    outcome = await host.fetch(hostile.url("disk"), expected=IMAGE, checksum_of=ChecksumOf.CONTENT)
    assert outcome.code == "ready"


async def test_the_checksum_of_the_served_file_is_not_that_of_the_content(host: Host, hostile: HostileServer) -> None:
    hostile.add("disk", PACKED)
    outcome = await host.fetch(hostile.url("disk"), expected=IMAGE)
    assert outcome.code == "CHECKSUM_MISMATCH"
    assert host.partial_files() == {}


@pytest.mark.parametrize("is_promised", [True, False])
@pytest.mark.parametrize(
    "packed",
    [PACKED[:-1], PACKED[: len(PACKED) // 2], PACKED + b"x", PACKED + bytes(512), PACKED[:-6] + b"oddsum"],
    ids=["cut by one", "cut in half", "garbage", "zeros", "wrong sum"],
)
async def test_what_is_damaged_is_discarded(
    host: Host, hostile: HostileServer, packed: bytes, *, is_promised: bool
) -> None:
    hostile.add("disk", packed)
    outcome = await host.fetch(hostile.url("disk"), expected=packed if is_promised else None)
    assert outcome.code == "DECOMPRESS"
    assert host.partial_files() == {}


@pytest.mark.usefixtures("steps")
async def test_one_source_that_lies_is_found_out(host: Host, hostile: HostileServer) -> None:
    bad = bytearray(PACKED)
    bad[len(bad) // 2 :] = bytes(len(bad) - len(bad) // 2)
    hostile.add("bad", bytes(bad))
    hostile.add("good", PACKED)
    outcome = await host.fetch(hostile.url("bad"), hostile.url("good"), expected=PACKED, content=IMAGE)
    assert outcome.code == "ready"
    by_content = await host.fetch(
        hostile.url("bad"), hostile.url("good"), expected=IMAGE, content=IMAGE, name="b", checksum_of=ChecksumOf.CONTENT
    )
    assert by_content.code == "ready"


async def test_a_file_packed_twice_is_refused_before_it_is_downloaded(host: Host, hostile: HostileServer) -> None:
    packed = gzip.compress(bz2.compress(payload(4 * MIB)))
    hostile.add("disk", packed)
    outcome = await host.fetch(hostile.url("disk"), expected=packed)
    assert outcome.code == "FORMAT_MISMATCH"
    assert hostile.bytes_sent("disk") < MIB


@pytest.mark.parametrize("kind", ["gzip", "xz", "zstd", "bzip2", "zip"])
async def test_a_backing_file_inside_is_refused_before_it_is_downloaded(
    host: Host, hostile: HostileServer, kind: str
) -> None:
    image = bytearray(qcow2(data_size=4 * MIB))
    image[8:20] = (1024).to_bytes(8) + (11).to_bytes(4)
    image[1024:1035] = b"/etc/passwd"
    packed = PACKERS[kind](bytes(image))
    hostile.add("disk", packed)
    outcome = await host.fetch(hostile.url("disk"), expected=packed)
    assert outcome.code == "IMAGE_UNSAFE"
    assert hostile.bytes_sent("disk") < 2 * MIB < len(packed)


async def test_the_policy_can_refuse_compressed_files(tmp_path: Path, hostile: HostileServer) -> None:
    hostile.add("disk", PACKED)
    outcome = await Host(tmp_path, policy={"decompress": False}).fetch(hostile.url("disk"), expected=PACKED)
    assert outcome.code == "FORMAT_MISMATCH"


async def test_a_bomb_of_data_stops_at_the_ratio(tmp_path: Path, hostile: HostileServer) -> None:
    bomb = gzip.compress(raw(64 * KIB) + (b"x" * 63 + b"\n") * (2 * MIB))
    hostile.add("disk", bomb)
    outcome = await Host(tmp_path).fetch(hostile.url("disk"))
    assert outcome.code == "TOO_LARGE"
    assert "max_compression_ratio" in outcome.failure.message


@pytest.mark.parametrize("limit", ["max_virtual_size", "max_size"])
async def test_a_bomb_of_zeros_stops_at_the_sizes_of_the_policy(
    tmp_path: Path, hostile: HostileServer, limit: str
) -> None:
    bomb = gzip.compress(raw(MIB) + bytes(200 * MIB))
    hostile.add("disk", bomb)
    host = Host(tmp_path, policy={limit: 20 * MIB})
    peak = 0

    async def watch() -> None:
        nonlocal peak
        while True:
            for path in (host.pool / ".kvmd").glob("*.part"):
                peak = max(peak, path.stat().st_size)
            await asyncio.sleep(0)

    watching = asyncio.create_task(watch())
    outcome = await host.fetch(hostile.url("disk"), expected=bomb)
    watching.cancel()
    assert outcome.code == "TOO_LARGE"
    assert peak < 60 * MIB
    assert host.partial_files() == {}


async def test_a_disk_of_many_zeros_is_no_bomb(host: Host, hostile: HostileServer) -> None:
    disk = raw(MIB) + bytes(100 * MIB)
    packed = PACKERS["zstd"](disk)
    hostile.add("disk", packed)
    outcome = await host.fetch(hostile.url("disk"), expected=packed, content=disk)
    assert outcome.code == "ready"
    assert outcome.path.stat().st_blocks * 512 < 3 * MIB


@pytest.mark.usefixtures("steps")
async def test_an_interrupted_download_goes_on_and_is_unpacked_anew(host: Host, hostile: HostileServer) -> None:
    image = qcow2(data_size=2 * MIB)
    packed = gzip.compress(image)
    hostile.add("disk", packed)
    task = asyncio.create_task(host.run(hostile.url("disk", rate=MIB // 2), expected=packed, content=image))
    await eventually(lambda: any(name.endswith(".json") for name in host.partial_files()), timeout_s=5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    kept = {name.rpartition(".")[2]: size for name, size in host.partial_files().items()}
    assert set(kept) == {"json", "packed", "part"}
    assert kept["part"] == 0
    outcome = await host.run(hostile.url("disk"), expected=packed, content=image)
    assert outcome.code == "ready"
    assert outcome.progress[-1].resumed_from >= 128 * KIB
    assert host.partial_files() == {}
