"""Streams that break, stall or trickle, and servers that want to be left alone for a while."""

from __future__ import annotations

import time
from itertools import pairwise
from pathlib import Path

import pytest

from kvmd.core.session import Ready, Waiting
from tests.kvmd.engine.fetching import STALL_S, Host, digest_of
from tests.support import images
from tests.support.hostile import GeneratedContent, HostileServer

MIB = 1 << 20
SMALL = images.raw(300 << 10)
DISK = GeneratedContent(6 * MIB, seed=1)
HEAD = 64 << 10


async def test_streams_cut_in_the_middle_are_gone_on_with_where_they_ended(host: Host, hostile: HostileServer) -> None:
    hostile.add("disk", DISK)
    outcome = await host.fetch(hostile.url("disk", cut_fraction="0.5@2-9"), expected=DISK)
    assert outcome.code == "ready"
    starts = [int((request.header("Range") or "bytes=0-").split("=")[1].split("-")[0]) for request in hostile.requests]
    assert len(set(starts[1:])) == len(starts[1:])
    assert hostile.bytes_sent("disk") <= DISK.size + HEAD + MIB


async def test_a_source_that_never_gives_a_byte_is_given_up(host: Host, hostile: HostileServer) -> None:
    hostile.add("disk", DISK)
    started = time.monotonic()
    outcome = await host.fetch(hostile.url("disk", cut="0@3-"), expected=DISK)
    assert outcome.code == "SOURCE_UNREACHABLE"
    assert isinstance(outcome.state, Waiting)
    assert time.monotonic() - started < 10
    assert len(hostile.requests) < 20


async def test_what_a_given_up_source_gave_is_kept_and_gone_on_from(host: Host, hostile: HostileServer) -> None:
    hostile.add("disk", DISK)
    broken = await host.fetch(hostile.url("disk", cut="0@3-"), expected=DISK)
    assert broken.code == "SOURCE_UNREACHABLE"
    assert len(host.partial_files()) == 2
    kept = max(progress.done for progress in broken.progress)
    assert kept >= 2 * MIB
    before = hostile.bytes_sent("disk")
    outcome = await host.fetch(hostile.url("disk"), expected=DISK)
    assert outcome.code == "ready"
    assert outcome.progress[-1].resumed_from == kept
    assert hostile.bytes_sent("disk") - before == DISK.size - kept + HEAD


async def test_connections_reset_every_100_kb_cost_next_to_nothing(host: Host, hostile: HostileServer) -> None:
    content = GeneratedContent(2 * MIB, seed=3)
    hostile.add("disk", content)
    outcome = await host.fetch(hostile.url("disk", reset="100000@2-"), expected=content)
    assert outcome.code == "ready"
    assert hostile.bytes_sent("disk") <= 1.05 * content.size + HEAD


async def test_a_presigned_url_that_expires_keeps_what_it_gave(host: Host, hostile: HostileServer) -> None:
    hostile.add("disk", DISK)
    expired = await host.fetch(hostile.url("disk", status="403@3-", token="old"), expected=DISK)
    assert expired.code == "SOURCE_EXPIRED"
    assert len(host.partial_files()) == 2
    before = hostile.bytes_sent("disk")
    outcome = await host.fetch(hostile.url("disk", token="new"), expected=DISK)
    assert outcome.code == "ready"
    assert hostile.bytes_sent("disk") - before < DISK.size - 2 * MIB


async def test_a_file_that_became_smaller_is_begun_anew(host: Host, hostile: HostileServer) -> None:
    hostile.add("disk", DISK)
    url = hostile.url("disk", status="403@3")
    assert (await host.fetch(url)).code == "SOURCE_EXPIRED"
    assert len(host.partial_files()) == 2
    smaller = GeneratedContent(3 * MIB, seed=4)
    hostile.add("disk", smaller)
    outcome = await host.fetch(url)
    assert isinstance(outcome.state, Ready)
    assert outcome.state.placement.digest == digest_of(smaller)


async def test_ranges_refused_in_the_middle_are_no_endless_loop(host: Host, hostile: HostileServer) -> None:
    hostile.add("disk", DISK)
    outcome = await host.fetch(hostile.url("disk", status="416@2-"), expected=DISK)
    assert outcome.code == "RANGE_MISMATCH"
    assert len(hostile.requests) < 10


@pytest.mark.parametrize("at", ["1", "2-3"])
async def test_a_pause_that_the_server_asks_for_is_kept(host: Host, hostile: HostileServer, at: str) -> None:
    hostile.add("disk", SMALL)
    outcome = await host.fetch(hostile.url("disk", status=f"429@{at}", retry_after=f"1@{at}"), expected=SMALL)
    assert outcome.code == "ready"
    times = [request.time for request in hostile.requests]
    assert max(later - earlier for earlier, later in pairwise(times)) >= 0.95


async def test_a_pause_may_be_a_date(host: Host, hostile: HostileServer) -> None:
    hostile.add("disk", SMALL)
    started = time.monotonic()
    outcome = await host.fetch(hostile.url("disk", status="503@1", retry_after="date:2@1"), expected=SMALL)
    assert outcome.code == "ready"
    assert time.monotonic() - started >= 0.9


async def test_a_very_long_pause_ends_the_attempt_and_is_capped(host: Host, hostile: HostileServer) -> None:
    hostile.add("disk", SMALL)
    outcome = await host.fetch(hostile.url("disk", status=429, retry_after=10**9), expected=SMALL)
    assert isinstance(outcome.state, Waiting)
    assert outcome.code == "SOURCE_UNREACHABLE"
    assert len(hostile.requests) == 1
    pause_s = outcome.state.until.timestamp() - time.time()
    assert 590 < pause_s <= 600


async def test_a_short_outage_is_sat_out(host: Host, hostile: HostileServer) -> None:
    hostile.add("disk", SMALL)
    outcome = await host.fetch(hostile.url("disk", status="503@1-2"), expected=SMALL)
    assert outcome.code == "ready"
    assert [request.status for request in hostile.requests[:3]] == [503, 503, 206]


@pytest.mark.parametrize("drop", ["fin", "rst"])
async def test_a_server_that_hangs_up_is_asked_a_few_times(host: Host, hostile: HostileServer, drop: str) -> None:
    hostile.add("disk", SMALL)
    outcome = await host.fetch(hostile.url("disk", drop=drop), expected=SMALL)
    assert outcome.code == "SOURCE_UNREACHABLE"
    assert isinstance(outcome.state, Waiting)
    assert 3 <= len(hostile.requests) <= 6


async def test_a_limit_of_connections_is_found_and_kept(host: Host, hostile: HostileServer) -> None:
    content = GeneratedContent(24 * MIB, seed=5)
    hostile.add("disk", content)
    outcome = await host.fetch(hostile.url("disk", connections="2", rate=8 * MIB), expected=content)
    assert outcome.code == "ready"
    refused = [request for request in hostile.requests if request.status == 503]
    assert len(refused) < 10


async def test_headers_that_trickle_are_cut_at_the_deadline(host: Host, hostile: HostileServer) -> None:
    hostile.add("disk", SMALL)
    started = time.monotonic()
    outcome = await host.fetch(hostile.url("disk", header_trickle=0.1), expected=SMALL)
    assert outcome.code == "SOURCE_STALLED"
    assert time.monotonic() - started < 5 * STALL_S + 2


@pytest.mark.parametrize("at", ["1-", "2-"])
async def test_a_body_that_trickles_is_cut_although_bytes_keep_coming(
    host: Host, hostile: HostileServer, at: str
) -> None:
    hostile.add("disk", SMALL)
    started = time.monotonic()
    outcome = await host.fetch(hostile.url("disk", trickle=f"0.05@{at}"), expected=SMALL)
    assert outcome.code == "SOURCE_STALLED"
    assert time.monotonic() - started < 10


async def test_a_stalled_stream_is_cut_and_its_bytes_are_asked_for_again(host: Host, hostile: HostileServer) -> None:
    hostile.add("disk", DISK)
    outcome = await host.fetch(hostile.url("disk", stall=f"{2 * MIB}@2"), expected=DISK)
    assert outcome.code == "ready"
    assert hostile.bytes_sent("disk") <= DISK.size + HEAD + 64 * 1024


async def test_a_download_longer_than_any_timeout_succeeds_while_it_moves(
    tmp_path: Path, hostile: HostileServer
) -> None:
    host = Host(tmp_path, transfer={"connections": 1})
    hostile.add("disk", SMALL)
    started = time.monotonic()
    outcome = await host.fetch(hostile.url("disk", rate=200_000), expected=SMALL)
    assert outcome.code == "ready"
    assert time.monotonic() - started > 3 * STALL_S
