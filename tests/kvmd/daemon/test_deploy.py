"""A deploy event ends in a verified volume and tells every step on its way."""

from __future__ import annotations

import asyncio
import gzip
from itertools import pairwise

import pytest

from tests.kvmd.daemon.harness import HOST, Daemon, Site, record, sha256
from tests.kvmd.image.zoo import snapshotted
from tests.support import images
from tests.support.hostile import HostileServer
from tests.support.waiting import eventually

IMAGE = images.qcow2(data_size=512 << 10)
WAY = ["queued", "probing", "downloading", "verifying", "committing", "ready"]


@pytest.fixture
def url(hostile: HostileServer) -> str:
    hostile.add("disk.qcow2", IMAGE)
    return hostile.url("disk.qcow2")


async def test_a_registered_name_becomes_ready_and_tells_every_state_in_order(
    kvmd: Daemon, lab: Site, url: str
) -> None:
    await lab.register("deb12", url, checksum=sha256(IMAGE))

    event = await lab.deploy("deb12")

    ready = await lab.watch.replica("deb12", "ready")
    assert lab.watch.states("deb12") == WAY
    assert ready.path == str(kvmd.volume("deb12"))
    assert (ready.size, ready.virtual_size, ready.format) == (len(IMAGE), 16 << 20, "qcow2")
    assert (ready.checksum, ready.trust) == (sha256(IMAGE), "checksum")
    assert (ready.code, ready.message) == (None, "")
    assert kvmd.volume("deb12").read_bytes() == IMAGE
    assert kvmd.leftovers() == []
    assert lab.watch.receipts(event) == ["accepted"]
    assert len({one.session for one in lab.watch.replicas("deb12")} - {None}) == 1


async def test_the_whole_record_needs_no_register_event(kvmd: Daemon, lab: Site, url: str) -> None:
    await lab.deploy(record("deb12", url, IMAGE), pool="default", name="debian.img")

    ready = await lab.watch.replica("deb12", "ready")
    assert ready.path == str(kvmd.volume("debian.img"))
    assert kvmd.volume("debian.img").read_bytes() == IMAGE


@pytest.mark.usefixtures("kvmd")
async def test_without_a_checksum_there_is_no_trust_but_a_digest(lab: Site, url: str) -> None:
    await lab.deploy(record("deb12", url))

    ready = await lab.watch.replica("deb12", "ready")
    assert (ready.trust, ready.checksum) == ("none", sha256(IMAGE))


@pytest.mark.usefixtures("kvmd")
async def test_an_unknown_template_waits_until_it_is_registered(lab: Site, url: str) -> None:
    await lab.deploy("deb12")
    waiting = await lab.watch.replica("deb12", "waiting")
    assert (waiting.code, waiting.path) == ("TEMPLATE_UNKNOWN", None)
    assert waiting.next_attempt is not None
    assert waiting.hint

    await lab.register("deb12", url, checksum=sha256(IMAGE))

    await lab.watch.replica("deb12", "ready")


@pytest.mark.usefixtures("kvmd")
async def test_a_new_registration_of_a_deployed_name_is_followed(lab: Site, hostile: HostileServer) -> None:
    newer = images.qcow2(data_size=64 << 10, seed=7)
    hostile.add("old", IMAGE)
    hostile.add("new", newer)
    await lab.event("register/deb12", record("deb12", hostile.url("nowhere", status=404)), generation=1)
    await lab.deploy("deb12")
    assert (await lab.watch.replica("deb12", "failed")).code == "SOURCE_STATUS"

    await lab.event("register/deb12", record("deb12", hostile.url("new"), newer), generation=2)

    assert (await lab.watch.replica("deb12", "ready")).checksum == sha256(newer)


@pytest.mark.usefixtures("kvmd")
async def test_progress_is_told_once_a_second_at_most(lab: Site, hostile: HostileServer) -> None:
    image = images.raw(3 << 20)
    hostile.add("disk.raw", image)

    await lab.deploy(record("slow", hostile.url("disk.raw"), image), rate_limit=1 << 20)

    await lab.watch.replica("slow", "ready")
    told = lab.watch.progress("slow")
    assert 1 <= len(told) <= 5
    assert all(before.done <= after.done <= len(image) for before, after in pairwise(told))
    assert (told[-1].done, told[-1].size) == (len(image), len(image))
    assert told[-1].sources[0].bytes == len(image)


async def test_a_removal_deletes_what_kvmd_put_there(kvmd: Daemon, lab: Site, url: str) -> None:
    await lab.deploy(record("deb12", url, IMAGE))
    await lab.watch.replica("deb12", "ready")

    await lab.deploy(record("deb12", url, IMAGE), ensure="absent")

    await lab.watch.replica("deb12", "absent")
    assert lab.watch.states("deb12") == [*WAY, "removing", "absent"]
    assert not kvmd.volume("deb12").exists()


async def test_a_removal_leaves_a_file_that_was_there_before(kvmd: Daemon, lab: Site, url: str) -> None:
    kvmd.volume("deb12").write_bytes(IMAGE)
    await lab.deploy(record("deb12", url, IMAGE))
    assert "already" in (await lab.watch.replica("deb12", "ready")).message

    await lab.deploy("deb12", ensure="absent")

    assert "left in place" in (await lab.watch.replica("deb12", "absent")).message
    assert kvmd.volume("deb12").read_bytes() == IMAGE


async def test_a_removal_leaves_a_file_that_somebody_put_in_its_place(kvmd: Daemon, lab: Site, url: str) -> None:
    await lab.deploy(record("deb12", url, IMAGE))
    await lab.watch.replica("deb12", "ready")
    kvmd.volume("deb12").unlink()
    kvmd.volume("deb12").write_bytes(b"precious")

    await lab.deploy("deb12", ensure="absent")

    await lab.watch.replica("deb12", "absent")
    assert kvmd.volume("deb12").read_bytes() == b"precious"


async def test_a_removal_in_mid_download_leaves_nothing(kvmd: Daemon, lab: Site, hostile: HostileServer) -> None:
    hostile.add("disk.qcow2", IMAGE)
    await lab.deploy(record("deb12", hostile.url("disk.qcow2", hold="200000@2-"), IMAGE))
    await eventually(lambda: hostile.holding("disk.qcow2"), what="the download is under way")

    await lab.deploy("deb12", ensure="absent")

    await lab.watch.replica("deb12", "absent")
    assert kvmd.leftovers() == []
    assert not kvmd.volume("deb12").exists()


@pytest.mark.usefixtures("kvmd")
async def test_a_removal_of_what_never_was_is_done_at_once(lab: Site) -> None:
    await lab.deploy("deb12", ensure="absent")

    await lab.watch.replica("deb12", "absent")


async def test_a_good_file_is_adopted_without_a_download(
    kvmd: Daemon, lab: Site, url: str, hostile: HostileServer
) -> None:
    kvmd.volume("deb12").write_bytes(IMAGE)

    await lab.deploy(record("deb12", url, IMAGE))

    ready = await lab.watch.replica("deb12", "ready")
    assert (ready.checksum, ready.format) == (sha256(IMAGE), "qcow2")
    assert hostile.requests == []


async def test_other_content_under_the_name_is_left_alone(kvmd: Daemon, lab: Site, url: str) -> None:
    kvmd.volume("deb12").write_bytes(b"precious")

    await lab.deploy(record("deb12", url, IMAGE))

    failed = await lab.watch.replica("deb12", "failed")
    assert failed.code == "EXISTS"
    assert failed.hint
    assert kvmd.volume("deb12").read_bytes() == b"precious"


async def test_a_wrong_checksum_leaves_nothing_behind(kvmd: Daemon, lab: Site, url: str) -> None:
    await lab.deploy(record("deb12", url, b"something else"))

    failed = await lab.watch.replica("deb12", "failed")
    assert failed.code == "CHECKSUM_MISMATCH"
    assert sha256(IMAGE) in failed.message
    assert not kvmd.volume("deb12").exists()
    await eventually(lambda: not kvmd.leftovers(), what="the partial data is deleted")


@pytest.mark.usefixtures("kvmd")
async def test_an_unknown_pool_is_named_beside_the_known_ones(lab: Site, url: str) -> None:
    await lab.deploy(record("deb12", url, IMAGE), pool="fast")

    waiting = await lab.watch.replica("deb12", "waiting", pool="fast")
    assert waiting.code == "POOL_MISSING"
    assert "fast" in waiting.message
    assert "default" in waiting.message


async def test_hosts_are_selected_by_name_and_topic(kvmd: Daemon, lab: Site, url: str) -> None:
    mine = {
        "by-name": await lab.deploy(record("by-name", url, IMAGE), hosts=["kvm99", HOST]),
        "by-topic": await lab.bare(f"deploy/host/{HOST}/by-topic", {"template": record("by-topic", url, IMAGE)}),
    }
    others = {
        "other-name": await lab.deploy(record("other-name", url, IMAGE), hosts=["kvm99"]),
        "other-topic": await lab.bare("deploy/host/kvm99/other-topic", {"template": record("other-topic", url, IMAGE)}),
        "other-label": await lab.deploy(record("other-label", url, IMAGE), hosts={"labels": {"zone": "lab"}}),
    }

    for template in mine:
        await lab.watch.replica(template, "ready")
    assert [lab.watch.receipts(event) for event in others.values()] == [[], [], []]
    assert sorted(path.name for path in kvmd.pool.iterdir() if path.is_file()) == sorted(mine)


async def test_a_compressed_image_becomes_a_volume_that_is_recognised_later(
    kvmd: Daemon, lab: Site, hostile: HostileServer
) -> None:
    packed = gzip.compress(IMAGE)
    hostile.add("disk.gz", packed)
    await lab.register("deb12", hostile.url("disk.gz"), checksum=sha256(packed))
    await lab.deploy("deb12")
    ready = await lab.watch.replica("deb12", "ready")
    assert (ready.size, ready.format, ready.checksum) == (len(IMAGE), "qcow2", sha256(packed))
    assert kvmd.volume("deb12").read_bytes() == IMAGE
    assert kvmd.leftovers() == []

    fetched = len(hostile.requests_for("disk.gz"))
    await lab.deploy("deb12", priority=7)
    await eventually(lambda: lab.watch.states("deb12").count("ready") > 1, timeout_s=5)
    assert lab.watch.states("deb12")[len(WAY) :] == ["queued", "probing", "ready"]
    assert len(hostile.requests_for("disk.gz")) == fetched


async def test_what_is_accepted_and_worth_knowing_is_told(kvmd: Daemon, lab: Site, hostile: HostileServer) -> None:
    path = kvmd.folder / "snapshotted.qcow2"
    await asyncio.to_thread(snapshotted, path)
    image = path.read_bytes()
    hostile.add("disk", image)
    await lab.deploy(record("deb12", hostile.url("disk"), image))

    ready = await lab.watch.replica("deb12", "ready")

    assert ["1 snapshots and 1 bitmaps" in one for one in ready.warnings] == [True]
