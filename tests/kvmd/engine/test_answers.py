"""What servers say about ranges, sizes and validators, and what a session makes of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvmd.core.session import Ready
from tests.kvmd.engine.fetching import Host, digest_of
from tests.support import images
from tests.support.hostile import GeneratedContent, HostileServer

MIB = 1 << 20
SMALL = images.raw(300 << 10)
DISK = GeneratedContent(6 * MIB, seed=1)
HEAD = 64 << 10


async def test_an_honest_server_is_asked_by_ranges_under_one_validator(host: Host, hostile: HostileServer) -> None:
    hostile.add("disk", DISK)
    outcome = await host.fetch(hostile.url("disk"), expected=DISK)
    assert outcome.code == "ready"
    probe, *rest = hostile.requests
    assert probe.header("Range") == f"bytes=0-{HEAD - 1}"
    assert {request.header("If-Range") for request in rest} == {'"disk-1"'}
    assert {request.header("Accept-Encoding") for request in hostile.requests} == {"identity"}
    assert {request.method for request in hostile.requests} == {"GET"}
    assert hostile.bytes_sent("disk") == DISK.size + HEAD


async def test_a_server_without_ranges_gives_one_stream(host: Host, hostile: HostileServer) -> None:
    hostile.add("disk", DISK)
    outcome = await host.fetch(hostile.url("disk", ranges="off"), expected=DISK)
    assert outcome.code == "ready"
    assert hostile.max_active("disk") == 1
    assert len(hostile.requests) == 2
    assert hostile.requests[1].header("Range") is None


async def test_another_total_length_in_the_middle_is_a_changed_entity(host: Host, hostile: HostileServer) -> None:
    hostile.add("disk", DISK)
    url = hostile.url("disk", total=f"{DISK.size + 4096}@2-")
    outcome = await host.fetch(url, expected=DISK)
    assert outcome.code != "ready"
    assert not outcome.path.exists()


async def test_an_entity_that_changes_once_is_fetched_anew_and_never_mixed(host: Host, hostile: HostileServer) -> None:
    other = GeneratedContent(DISK.size, seed=2)
    hostile.add("disk", DISK, swapped=other)
    outcome = await host.fetch(hostile.url("disk", entity="swapped@3-"), expected=other)
    assert outcome.code == "ready"


async def test_an_entity_that_changes_again_and_again_is_given_up(host: Host, hostile: HostileServer) -> None:
    hostile.add("disk", DISK)
    url = f"{hostile.url('disk')}?entity=swapped@3-4&entity=swapped@6&entity=swapped@8-"
    outcome = await host.fetch(url, expected=DISK)
    assert outcome.code == "ENTITY_CHANGED"
    assert host.partial_files() == {}


@pytest.mark.parametrize("validators", ["weak", "none"])
async def test_without_a_strong_validator_a_checksum_allows_ranges(
    host: Host, hostile: HostileServer, validators: str
) -> None:
    hostile.add("disk", DISK)
    outcome = await host.fetch(hostile.url("disk", validators=validators), expected=DISK)
    assert outcome.code == "ready"
    assert all(request.header("If-Range") is None for request in hostile.requests)
    assert any(request.status == 206 for request in hostile.requests[1:])


@pytest.mark.parametrize("validators", ["weak", "none"])
async def test_without_validator_and_checksum_a_broken_stream_begins_anew(
    host: Host, hostile: HostileServer, validators: str
) -> None:
    hostile.add("disk", SMALL)
    outcome = await host.fetch(hostile.url("disk", validators=validators, cut=f"{200 << 10}@2"))
    assert isinstance(outcome.state, Ready)
    assert outcome.state.placement.digest == digest_of(SMALL)
    streams = [request for request in hostile.requests if request.name == "disk"]
    assert [request.header("Range") for request in streams[1:]] == [None, None]
    assert all(request.header("If-Range") is None for request in streams)


async def test_a_date_alone_is_a_validator_when_it_is_old_enough(host: Host, hostile: HostileServer) -> None:
    hostile.add("disk", DISK)
    outcome = await host.fetch(hostile.url("disk", validators="date"), expected=DISK)
    assert outcome.code == "ready"


@pytest.mark.parametrize("size", [10 << 60, 1 << 60])
@pytest.mark.parametrize("claim", ["length", "total"])
async def test_an_absurd_size_is_no_space_before_anything_is_written(
    host: Host, hostile: HostileServer, claim: str, size: int
) -> None:
    hostile.add("disk", SMALL)
    url = hostile.url("disk", ranges="off", length=size) if claim == "length" else hostile.url("disk", total=size)
    outcome = await host.fetch(url, expected=SMALL)
    assert outcome.code == "NO_SPACE"
    assert len(hostile.requests) == 1
    assert host.partial_files() == {}


@pytest.mark.parametrize("parameters", [{}, {"ranges": "off"}, {"ranges": "off", "framing": "chunked"}])
async def test_an_empty_file_is_refused(host: Host, hostile: HostileServer, parameters: dict[str, str]) -> None:
    hostile.add("disk", b"")
    outcome = await host.fetch(hostile.url("disk", **parameters))
    assert outcome.code == "EMPTY"


async def test_an_encoded_body_is_refused_although_it_would_unpack_to_the_file(
    host: Host, hostile: HostileServer
) -> None:
    hostile.add("disk", SMALL)
    outcome = await host.fetch(hostile.url("disk", encoding="gzip"), expected=SMALL)
    assert outcome.code == "CONTENT_ENCODING"
    assert len(hostile.requests) == 1


async def test_a_body_that_becomes_encoded_in_the_middle_is_refused(host: Host, hostile: HostileServer) -> None:
    hostile.add("disk", DISK)
    outcome = await host.fetch(hostile.url("disk", encoding="gzip@2-"), expected=DISK)
    assert outcome.code == "CONTENT_ENCODING"


@pytest.mark.parametrize("status", [405, 501, 403])
async def test_head_is_never_asked(host: Host, hostile: HostileServer, status: int) -> None:
    hostile.add("disk", SMALL)
    assert (await host.fetch(hostile.url("disk", head=status), expected=SMALL)).code == "ready"


@pytest.mark.parametrize("status", [401, 403, 404, 410])
async def test_a_final_status_is_asked_once(host: Host, hostile: HostileServer, status: int) -> None:
    hostile.add("disk", SMALL)
    outcome = await host.fetch(hostile.url("disk", status=status), expected=SMALL)
    assert outcome.code == "SOURCE_STATUS"
    assert str(status) in outcome.failure.message
    assert len(hostile.requests) == 1


async def test_a_web_page_instead_of_an_image_is_recognised_at_once(host: Host, hostile: HostileServer) -> None:
    hostile.add("disk.qcow2", images.qcow2())
    outcome = await host.fetch(hostile.url("disk.qcow2", html=1), expected=images.qcow2())
    assert outcome.code == "FORMAT_MISMATCH"
    assert hostile.bytes_sent("disk.qcow2") < MIB
    assert host.partial_files() == {}


async def test_multipart_answers_are_not_used_but_the_whole_is(host: Host, hostile: HostileServer) -> None:
    hostile.add("disk", DISK)
    outcome = await host.fetch(hostile.url("disk", range_reply="multipart"), expected=DISK)
    assert outcome.code == "ready"


async def test_capped_ranges_are_not_used_but_the_whole_is(host: Host, hostile: HostileServer) -> None:
    hostile.add("disk", DISK)
    outcome = await host.fetch(hostile.url("disk", range_cap=10_000), expected=DISK)
    assert outcome.code == "ready"


async def test_another_range_than_asked_is_never_stored(host: Host, hostile: HostileServer) -> None:
    hostile.add("disk", DISK)
    outcome = await host.fetch(hostile.url("disk", shift="512@2-"), expected=DISK)
    assert outcome.code == "RANGE_MISMATCH"
    assert not outcome.path.exists()


@pytest.mark.parametrize("parameters", [{}, {"ranges": "off"}])
async def test_extra_bytes_after_the_body_go_nowhere(
    host: Host, hostile: HostileServer, parameters: dict[str, str]
) -> None:
    hostile.add("disk", DISK)
    outcome = await host.fetch(hostile.url("disk", extra=5000, **parameters), expected=DISK)
    assert outcome.code in {"ready", "PROTOCOL"}
    assert all(request.method == "GET" for request in hostile.requests)


@pytest.mark.parametrize(
    "parameters",
    [
        {"header_bytes": 20_000},
        {"header_count": 100_000},
        {"framing": "badchunk", "ranges": "off"},
        {"framing": "both"},
    ],
    ids=["long", "many", "badchunk", "both"],
)
async def test_broken_http_is_refused(host: Host, hostile: HostileServer, parameters: dict[str, object]) -> None:
    hostile.add("disk", SMALL)
    outcome = await host.fetch(hostile.url("disk", **parameters), expected=SMALL)
    assert outcome.code == "PROTOCOL"
    assert not outcome.path.exists()


async def test_without_an_end_and_a_checksum_nothing_is_fetched(host: Host, hostile: HostileServer) -> None:
    hostile.add("disk", SMALL)
    url = hostile.url("disk", ranges="off", framing="close")
    assert (await host.fetch(url)).code == "PROTOCOL"
    assert (await host.fetch(url, expected=SMALL)).code == "ready"


async def test_a_chunked_body_without_a_size_is_fetched(host: Host, hostile: HostileServer) -> None:
    hostile.add("disk", SMALL)
    assert (await host.fetch(hostile.url("disk", ranges="off", framing="chunked"))).code == "ready"


async def test_more_than_the_policy_allows_is_refused(tmp_path: Path, hostile: HostileServer) -> None:
    hostile.add("disk", SMALL)
    host = Host(tmp_path, policy={"max_size": len(SMALL) - 1})
    assert (await host.fetch(hostile.url("disk"), expected=SMALL)).code == "TOO_LARGE"
    endless = await host.fetch(hostile.url("disk", ranges="off", framing="chunked"), expected=SMALL)
    assert endless.code == "TOO_LARGE"
    assert host.partial_files() == {}


@pytest.mark.parametrize(("difference", "code"), [(-1, "TOO_LARGE"), (1, "PROTOCOL"), (0, "ready")])
async def test_a_body_without_a_length_is_held_to_the_promised_size(
    host: Host, hostile: HostileServer, difference: int, code: str
) -> None:
    hostile.add("disk", SMALL)
    url = hostile.url("disk", ranges="off", framing="chunked")
    outcome = await host.fetch(url, size=len(SMALL) + difference)
    assert outcome.code == code


async def test_another_size_than_promised_is_refused(host: Host, hostile: HostileServer) -> None:
    hostile.add("disk", SMALL)
    outcome = await host.fetch(hostile.url("disk"), expected=SMALL, size=len(SMALL) + 1)
    assert outcome.code == "TOO_LARGE"


async def test_a_wrong_checksum_of_one_source_is_final_and_leaves_nothing(host: Host, hostile: HostileServer) -> None:
    hostile.add("disk", SMALL)
    outcome = await host.fetch(hostile.url("disk", corrupt=200_000), expected=SMALL)
    assert outcome.code == "CHECKSUM_MISMATCH"
    assert host.partial_files() == {}
    assert hostile.bytes_sent("disk") <= 2 * len(SMALL) + 2 * HEAD
