"""A register event makes every host probe the sources once and say what it found."""

from __future__ import annotations

import pytest

from tests.kvmd.daemon.harness import HOST, Daemon, Site, sha256
from tests.support import images
from tests.support.hostile import HostileServer
from tests.support.waiting import eventually

IMAGE = images.qcow2(data_size=128 << 10)


@pytest.mark.usefixtures("kvmd")
async def test_a_good_source_is_described_with_one_request(lab: Site, hostile: HostileServer) -> None:
    hostile.add("disk.qcow2", IMAGE)

    event = await lab.register("deb12", hostile.url("disk.qcow2", token="hush"), checksum=sha256(IMAGE))

    probe = await lab.watch.probe("deb12")
    assert (await lab.watch.receipt(event)).outcome == "accepted"
    (source,) = probe.sources
    assert probe.verdict == "good"
    assert (source.reachable, source.status, source.ranges, source.size) == (True, 206, True, len(IMAGE))
    assert (source.format, source.virtual_size) == ("qcow2", 16 << 20)
    assert "hush" not in source.url
    (request,) = hostile.requests
    assert (request.method, request.header("Range")) == ("GET", "bytes=0-65535")


@pytest.mark.usefixtures("kvmd")
async def test_one_bad_mirror_of_two_is_degraded(lab: Site, hostile: HostileServer) -> None:
    hostile.add("disk.qcow2", IMAGE)
    good, bad = hostile.url("disk.qcow2"), hostile.url("disk.qcow2", status=404)

    await lab.bare("register/deb12", {"sources": [good, bad]})

    probe = await lab.watch.probe("deb12")
    assert (probe.verdict, probe.code) == ("degraded", "SOURCE_STATUS")
    assert [one.code for one in probe.sources] == [None, "SOURCE_STATUS"]


@pytest.mark.usefixtures("kvmd")
async def test_without_a_usable_source_the_verdict_says_why_and_what_to_do(lab: Site, hostile: HostileServer) -> None:
    await lab.register("deb12", hostile.url("nothing.qcow2"))

    probe = await lab.watch.probe("deb12")
    assert (probe.verdict, probe.code) == ("bad", "SOURCE_STATUS")
    assert "404" in probe.message
    assert probe.hint


@pytest.mark.usefixtures("kvmd")
async def test_only_the_hosts_that_are_asked_to_check_do(lab: Site, hostile: HostileServer) -> None:
    hostile.add("disk.qcow2", IMAGE)
    url = hostile.url("disk.qcow2")

    for name, check in {"nobody": "none", "others": ["kvm99"], "me": ["kvm99", HOST]}.items():
        await lab.register(name, url, check=check)

    await lab.watch.probe("me")
    assert len(hostile.requests) == 1
    assert not [one for one in lab.client.messages if one.topic.endswith(("probe/nobody", "probe/others"))]


@pytest.mark.usefixtures("kvmd")
async def test_a_newer_register_event_is_probed_again(lab: Site, hostile: HostileServer) -> None:
    hostile.add("disk.qcow2", IMAGE)
    await lab.register("deb12", hostile.url("nothing"))
    assert (await lab.watch.probe("deb12")).verdict == "bad"

    await lab.register("deb12", hostile.url("disk.qcow2"))

    assert (await lab.watch.probe("deb12", generation=2)).verdict == "good"


async def test_unregistering_clears_the_probe_and_keeps_the_tombstone(
    kvmd: Daemon, lab: Site, hostile: HostileServer
) -> None:
    hostile.add("disk.qcow2", IMAGE)
    await lab.event("register/deb12", {"url": hostile.url("disk.qcow2")}, generation=5)
    await lab.watch.probe("deb12")

    await lab.event("register/deb12", {"ensure": "absent"}, generation=6)

    topic = f"kvmd/v1/status/{HOST}/probe/deb12"
    await eventually(
        lambda: [one.payload for one in lab.client.messages if one.topic == topic][-1] == b"",
        what="the probe is cleared",
    )
    late = await lab.event("register/deb12", {"url": hostile.url("disk.qcow2")}, generation=5)
    assert (await lab.watch.receipt(late)).outcome == "stale"
    await kvmd.restart()
    await kvmd.has_logged("broker connected", times=2)
    await lab.event("register/other", {"url": hostile.url("disk.qcow2")})
    await lab.watch.probe("other")
    assert [one.payload for one in lab.client.messages if one.topic == topic][-1] == b""


async def test_unregistering_leaves_a_ready_replica_ready(kvmd: Daemon, lab: Site, hostile: HostileServer) -> None:
    hostile.add("disk.qcow2", IMAGE)
    data = {"url": hostile.url("disk.qcow2"), "checksum": sha256(IMAGE)}
    await lab.event("register/deb12", data, generation=1)
    await lab.deploy("deb12")
    await lab.watch.replica("deb12", "ready")

    gone = await lab.event("register/deb12", {"ensure": "absent"}, generation=2)
    again = await lab.event("register/deb12", data, generation=3)

    await lab.watch.receipt(gone)
    await lab.watch.receipt(again)
    await lab.watch.probe("deb12", generation=3)
    assert lab.watch.states("deb12").count("ready") == 1
    assert lab.watch.states("deb12")[-1] == "ready"
    assert kvmd.volume("deb12").read_bytes() == IMAGE
    await lab.deploy("deb12", ensure="absent")
    await lab.watch.replica("deb12", "absent")
    assert not kvmd.volume("deb12").exists()
