"""Several sources of one image: the slow, the dead, the lying, and those that disagree."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from kvmd.core.session import Ready
from kvmwire.status import SourceState
from tests.kvmd.engine.fetching import Host, digest_of
from tests.support import images
from tests.support.hostile import GeneratedContent, HostileServer

MIB = 1 << 20
DISK = GeneratedContent(12 * MIB, seed=1)
HEAD = 64 << 10


def served(hostile: HostileServer, mirror: str) -> int:
    """Count the bytes that one mirror sent after its probe."""
    return sum(one.body_sent for one in hostile.requests if f"mirror={mirror}" in one.query and one.number > 1)


async def test_all_mirrors_take_part(host: Host, hostile: HostileServer) -> None:
    hostile.add("disk", DISK)
    urls = [hostile.url("disk", mirror=name, rate=16 * MIB) for name in "ab"]
    outcome = await host.fetch(*urls, expected=DISK)
    assert outcome.code == "ready"
    assert served(hostile, "a") > MIB
    assert served(hostile, "b") > MIB


async def test_a_slow_mirrors_bytes_are_taken_over(host: Host, hostile: HostileServer) -> None:
    hostile.add("disk", DISK)
    slow = hostile.url("disk", mirror="slow", rate="30000@2-")
    fast = hostile.url("disk", mirror="fast")
    started = time.monotonic()
    outcome = await host.fetch(slow, fast, expected=DISK)
    assert outcome.code == "ready"
    assert time.monotonic() - started < 5
    assert served(hostile, "slow") < MIB
    assert served(hostile, "fast") <= DISK.size + HEAD


async def test_a_stalled_mirrors_bytes_are_taken_over_before_the_stall_timeout(
    tmp_path: Path, hostile: HostileServer
) -> None:
    host = Host(tmp_path, transfer={"stall_timeout_s": 15.0})
    hostile.add("disk", DISK)
    stuck = hostile.url("disk", mirror="stuck", stall="100000@2-")
    started = time.monotonic()
    outcome = await host.fetch(stuck, hostile.url("disk", mirror="good"), expected=DISK)
    assert outcome.code == "ready"
    assert time.monotonic() - started < 6


async def test_a_late_wrong_byte_of_a_slow_mirror_never_replaces_a_verified_one(
    tmp_path: Path, hostile: HostileServer
) -> None:
    """The slow stream's bytes arrive after the same bytes came from elsewhere and were hashed."""
    host = Host(tmp_path, transfer={"stall_timeout_s": 15.0})
    content = GeneratedContent(8 * MIB, seed=7)
    hostile.add("disk", content)
    lying = hostile.url("disk", mirror="lying", rate="600000@2-", corrupt=f"{100_000}:{6 * MIB}")
    outcome = await host.fetch(lying, hostile.url("disk", mirror="good"), expected=content)
    assert isinstance(outcome.state, Ready)


@pytest.mark.parametrize("lying_first", [True, False])
async def test_a_lying_mirror_is_named_and_the_image_comes_from_the_other(
    host: Host, hostile: HostileServer, *, lying_first: bool
) -> None:
    hostile.add("disk", DISK)
    lying = hostile.url("disk", mirror="lying", corrupt=f"{HEAD}:{11 * MIB}", rate=16 * MIB)
    good = hostile.url("disk", mirror="good", rate=16 * MIB)
    outcome = await host.fetch(*((lying, good) if lying_first else (good, lying)), expected=DISK)
    assert outcome.code == "ready"
    banned = [source for source in outcome.sources if source.state is SourceState.BANNED]
    assert ["lying" in source.url or source.code for source in banned] == ["CHECKSUM_MISMATCH"]
    assert banned[0].message


async def test_when_every_mirror_lies_each_is_tried_alone_once(host: Host, hostile: HostileServer) -> None:
    hostile.add("disk", DISK)
    urls = [hostile.url("disk", mirror=name, corrupt=f"{HEAD}:{11 * MIB}", rate=32 * MIB) for name in "ab"]
    outcome = await host.fetch(*urls, expected=DISK)
    assert outcome.code == "CHECKSUM_MISMATCH"
    assert host.partial_files() == {}
    assert hostile.bytes_sent("disk") <= 3 * DISK.size + 8 * HEAD


async def test_mirrors_that_disagree_in_size_are_outvoted(host: Host, hostile: HostileServer) -> None:
    hostile.add("disk", DISK)
    odd = hostile.url("disk", mirror="odd", total=DISK.size + 512)
    urls = [odd, *(hostile.url("disk", mirror=name) for name in "ab")]
    outcome = await host.fetch(*urls, expected=DISK)
    assert outcome.code == "ready"
    assert served(hostile, "odd") == 0
    assert [source.code for source in outcome.sources] == ["ENTITY_CHANGED", None, None]


async def test_the_promised_size_decides_between_two_mirrors(host: Host, hostile: HostileServer) -> None:
    hostile.add("disk", DISK)
    odd, good = hostile.url("disk", mirror="odd", total=DISK.size + 512), hostile.url("disk", mirror="good")
    outcome = await host.fetch(odd, good, expected=DISK, size=DISK.size)
    assert outcome.code == "ready"
    assert served(hostile, "odd") == 0


async def test_all_dead_but_one_slow_still_finishes(host: Host, hostile: HostileServer) -> None:
    content = GeneratedContent(MIB, seed=8)
    hostile.add("disk", content)
    dead = [hostile.url("disk", mirror=f"d{i}", drop=kind) for i, kind in enumerate(("fin", "rst"))]
    gone = hostile.url("disk", mirror="gone", status=404)
    outcome = await host.fetch(*dead, gone, hostile.url("disk", mirror="slow", rate=600_000), expected=content)
    assert outcome.code == "ready"
    assert {source.code for source in outcome.sources} == {"SOURCE_UNREACHABLE", "SOURCE_STATUS", None}


async def test_a_web_page_on_one_mirror_is_left_out(host: Host, hostile: HostileServer) -> None:
    image = images.qcow2(data_size=2 * MIB)
    hostile.add("disk", image)
    outcome = await host.fetch(
        hostile.url("disk", mirror="portal", html=1), hostile.url("disk", mirror="good"), expected=image
    )
    assert outcome.code == "ready"
    assert outcome.sources[0].code == "FORMAT_MISMATCH"
    assert outcome.sources[0].state is SourceState.BANNED


async def test_a_mirror_that_was_busy_at_first_helps_later(host: Host, hostile: HostileServer) -> None:
    hostile.add("disk", DISK)
    late = hostile.url("disk", mirror="late", status="503@1")
    outcome = await host.fetch(late, hostile.url("disk", mirror="good", rate=MIB // 2), expected=DISK)
    assert outcome.code == "ready"
    assert served(hostile, "late") > 0


async def test_a_mirror_that_answers_late_helps_later(host: Host, hostile: HostileServer, tmp_path: Path) -> None:
    host = Host(tmp_path / "patient", transfer={"stall_timeout_s": 5.0})
    hostile.add("disk", DISK)
    late = hostile.url("disk", mirror="late", delay="3@1")
    outcome = await host.fetch(late, hostile.url("disk", mirror="good", rate=1 * MIB), expected=DISK)
    assert outcome.code == "ready"
    assert served(hostile, "late") > 0


async def test_without_a_checksum_mirrors_are_not_mixed_unless_they_show_to_be_the_same(
    host: Host, hostile: HostileServer
) -> None:
    other = GeneratedContent(DISK.size, seed=9)
    hostile.add("disk", DISK)
    hostile.add("copy", other)
    outcome = await host.fetch(hostile.url("disk"), hostile.url("copy"))
    assert isinstance(outcome.state, Ready)
    assert outcome.state.placement.digest in {digest_of(DISK), digest_of(other)}


@pytest.mark.parametrize("good_first", [True, False])
async def test_a_broken_stream_without_ranges_goes_on_with_the_other_mirror(
    host: Host, hostile: HostileServer, *, good_first: bool
) -> None:
    hostile.add("disk", DISK)
    good = hostile.url("disk", mirror="good", ranges="off")
    bad = hostile.url("disk", mirror="bad", ranges="off", cut=f"{5 * MIB}@2-")
    outcome = await host.fetch(*((good, bad) if good_first else (bad, good)), expected=DISK)
    assert outcome.code == "ready"
    assert served(hostile, "bad") <= 5 * MIB


async def test_a_mirror_without_ranges_beside_one_with_is_left_out_and_named(
    host: Host, hostile: HostileServer
) -> None:
    hostile.add("disk", DISK)
    outcome = await host.fetch(
        hostile.url("disk", mirror="plain", ranges="off"), hostile.url("disk", mirror="good"), expected=DISK
    )
    assert outcome.code == "ready"
    assert outcome.sources[0].code == "RANGE_MISMATCH"
