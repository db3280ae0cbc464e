"""Answers, redirects, identity and ranges of the hostile server."""

from __future__ import annotations

import asyncio
import gzip
import time
from email.utils import parsedate_to_datetime

import aiohttp
import pytest

from tests.support.hostile import GeneratedContent, HostileServer, hexdigest
from tests.support.rawhttp import ask
from tests.support.tls import Authority

DISK = GeneratedContent(300_000, seed=1)
WHOLE = DISK.read(0, DISK.size)
FIRST_HUNDRED = {"Range": "bytes=0-99"}


@pytest.fixture(autouse=True)
def disk(hostile: HostileServer) -> None:
    hostile.add("disk", DISK)


async def test_without_parameters_it_is_honest(hostile: HostileServer) -> None:
    whole = await ask(hostile.url("disk"))
    assert (whole.status, whole.body, whole.headers["accept-ranges"]) == (200, WHOLE, "bytes")
    assert {"etag", "last-modified"} < set(whole.headers)
    part = await ask(hostile.url("disk"), headers={"Range": "bytes=1000-1999", "If-Range": whole.headers["etag"]})
    assert (part.status, part.body) == (206, WHOLE[1000:2000])
    assert (part.headers["content-range"], part.headers["content-length"]) == ("bytes 1000-1999/300000", "1000")
    head = await ask(hostile.url("disk"), method="HEAD")
    assert (head.status, head.headers["content-length"], head.body) == (200, "300000", b"")
    assert (await ask(hostile.url("other"))).status == 404


@pytest.mark.parametrize(
    ("asked", "status", "content_range"),
    [
        ("bytes=299999-", 206, "bytes 299999-299999/300000"),
        ("bytes=-5", 206, "bytes 299995-299999/300000"),
        ("bytes=299000-999999", 206, "bytes 299000-299999/300000"),
        ("bytes=300000-", 416, "bytes */300000"),
        ("bytes=0-1,5-6", 200, None),
    ],
)
async def test_ranges_at_the_edges(hostile: HostileServer, asked: str, status: int, content_range: str | None) -> None:
    reply = await ask(hostile.url("disk"), headers={"Range": asked})
    assert (reply.status, reply.headers.get("content-range")) == (status, content_range)


async def test_an_empty_file_has_no_range(hostile: HostileServer) -> None:
    hostile.add("empty", b"")
    assert (await ask(hostile.url("empty"))).headers["content-length"] == "0"
    reply = await ask(hostile.url("empty"), headers=FIRST_HUNDRED)
    assert (reply.status, reply.headers["content-range"]) == (416, "bytes */0")


async def test_many_requests_share_a_connection_and_are_recorded(hostile: HostileServer) -> None:
    async with aiohttp.ClientSession() as session:
        for _ in range(3):
            async with session.get(hostile.url("disk", mirror="a"), headers=FIRST_HUNDRED) as reply:
                assert await reply.read() == WHOLE[:100]
    assert [(seen.number, seen.connection, seen.body_sent, seen.finished) for seen in hostile.requests] == [
        (1, 1, 100, True),
        (2, 1, 100, True),
        (3, 1, 100, True),
    ]
    seen = hostile.requests_for("disk")[0]
    assert (seen.method, seen.target, seen.status) == ("GET", "/disk?mirror=a", 206)
    assert ("Range", "bytes=0-99") in seen.headers
    assert hostile.bytes_sent("disk") == 300
    assert (hostile.connections, hostile.max_open_connections, hostile.max_active("disk")) == (1, 1, 1)


async def test_a_status_holds_in_its_window_only(hostile: HostileServer) -> None:
    url = hostile.url("disk", status="503@1-2", retry_after=2) + "&status=403@4-"
    assert [(await ask(url)).status for _ in range(5)] == [503, 503, 200, 403, 403]
    assert (await ask(hostile.url("disk", status="503@2"))).status == 200


async def test_retry_after_as_seconds_and_as_date(hostile: HostileServer) -> None:
    huge = await ask(hostile.url("disk", status=429, retry_after=10**9))
    assert (huge.status, huge.headers["retry-after"]) == (429, "1000000000")
    dated = await ask(hostile.url("disk", status=503, retry_after="date:60"))
    assert 55 < parsedate_to_datetime(dated.headers["retry-after"]).timestamp() - time.time() <= 60


async def test_single_answers(hostile: HostileServer) -> None:
    assert (await ask(hostile.url("disk", head=405), method="HEAD")).status == 405
    assert (await ask(hostile.url("disk", head=405))).status == 200
    assert (await ask(hostile.url("disk", status=416))).headers["content-range"] == "bytes */300000"
    login = await ask(hostile.url("disk", html=1), headers=FIRST_HUNDRED)
    assert (login.status, login.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert login.body.startswith(b"<!DOCTYPE html>")
    guarded = hostile.url("disk", require="X-Key:abc")
    assert (await ask(guarded)).status == 401
    assert (await ask(guarded, headers={"x-key": "abc"})).status == 200


@pytest.mark.parametrize(("how", "ended"), [("fin", "closed"), ("rst", "reset")])
async def test_a_dropped_request_gets_no_answer(hostile: HostileServer, how: str, ended: str) -> None:
    reply = await ask(hostile.url("disk", drop=how))
    assert (reply.status, reply.ended) == (0, ended)


async def test_redirect_chains_loops_and_locations(hostile: HostileServer) -> None:
    url = hostile.url("disk", redirect=3, redirect_status=307)
    async with aiohttp.ClientSession() as session, session.get(url) as reply:
        assert await reply.read() == WHOLE
        assert [hop.status for hop in reply.history] == [307, 307, 307]
    loop = hostile.url("disk", redirect="loop")
    assert loop.endswith((await ask(loop)).headers["location"])
    for location in ("file:///etc/shadow", "http://169.254.169.254/latest?a=b&c=d", "//other.test/x"):
        answer = await ask(hostile.url("disk", redirect_to=location))
        assert (answer.status, answer.headers["location"]) == (302, location)


@pytest.mark.parametrize(
    ("validators", "present"),
    [("both", {"etag", "last-modified"}), ("strong", {"etag"}), ("date", {"last-modified"}), ("none", set[str]())],
)
async def test_which_validators_are_told(hostile: HostileServer, validators: str, present: set[str]) -> None:
    reply = await ask(hostile.url("disk", validators=validators))
    assert {"etag", "last-modified"} & set(reply.headers) == present


async def test_a_weak_tag_never_allows_a_range(hostile: HostileServer) -> None:
    url = hostile.url("disk", validators="weak")
    tag = (await ask(url)).headers["etag"]
    assert tag.startswith('W/"')
    assert (await ask(url, headers={**FIRST_HUNDRED, "If-Range": tag})).status == 200


async def test_preconditions_are_heeded_or_ignored(hostile: HostileServer) -> None:
    old = {**FIRST_HUNDRED, "If-Range": '"old"'}
    assert (await ask(hostile.url("disk"), headers=old)).status == 200
    assert (await ask(hostile.url("disk"), headers={"If-Match": '"old"'})).status == 412
    ignoring = hostile.url("disk", preconditions="ignore")
    assert (await ask(ignoring, headers=old)).status == 206
    assert (await ask(ignoring, headers={"If-Match": '"old"'})).status == 200


@pytest.mark.parametrize(
    ("entity", "same_tag", "same_bytes"),
    [("retagged", False, True), ("swapped", False, False), ("swapped_silently", True, False)],
)
async def test_the_entity_changes(hostile: HostileServer, entity: str, *, same_tag: bool, same_bytes: bool) -> None:
    url = hostile.url("disk", entity=f"{entity}@2-")
    before, after = await ask(url), await ask(url)
    assert (before.headers["etag"] == after.headers["etag"]) is same_tag
    assert (before.body == after.body) is same_bytes
    assert len(after.body) == DISK.size


async def test_the_swapped_bytes_can_be_given(hostile: HostileServer) -> None:
    hostile.add("release", b"one", swapped=b"twotwo")
    reply = await ask(hostile.url("release", entity="swapped"))
    assert (reply.body, reply.headers["content-length"]) == (b"twotwo", "6")


async def test_wrong_bytes_are_wrong_in_every_range(hostile: HostileServer) -> None:
    reply = await ask(hostile.url("disk", corrupt="70000:2"), headers={"Range": "bytes=69999-70002"})
    assert reply.body == bytes([WHOLE[69999], WHOLE[70000] ^ 0xFF, WHOLE[70001] ^ 0xFF, WHOLE[70002]])


async def test_ranges_off_is_always_the_whole(hostile: HostileServer) -> None:
    reply = await ask(hostile.url("disk", ranges="off"), headers=FIRST_HUNDRED)
    assert (reply.status, reply.body) == (200, WHOLE)
    assert "accept-ranges" not in reply.headers


async def test_ranges_that_are_not_what_was_asked(hostile: HostileServer) -> None:
    shifted = await ask(hostile.url("disk", shift=10), headers=FIRST_HUNDRED)
    assert (shifted.headers["content-range"], shifted.body) == ("bytes 10-109/300000", WHOLE[10:110])
    capped = await ask(hostile.url("disk", range_cap=30), headers=FIRST_HUNDRED)
    assert (capped.headers["content-range"], capped.body) == ("bytes 0-29/300000", WHOLE[:30])
    multipart = await ask(hostile.url("disk", range_reply="multipart"), headers=FIRST_HUNDRED)
    assert multipart.status == 206
    assert multipart.headers["content-type"].startswith("multipart/byteranges; boundary=")
    assert int(multipart.headers["content-length"]) == len(multipart.body)
    assert b"Content-Range: bytes 0-99/300000\r\n\r\n" + WHOLE[:100] in multipart.body


async def test_another_total_from_the_second_request_on(hostile: HostileServer) -> None:
    url = hostile.url("disk", total="400000@2-")
    totals = [(await ask(url, headers=FIRST_HUNDRED)).headers["content-range"] for _ in range(2)]
    assert totals == ["bytes 0-99/300000", "bytes 0-99/400000"]
    absurd = await ask(hostile.url("disk", total=10 * 2**60))
    assert (absurd.headers["content-length"], absurd.body) == ("11529215046068469760", WHOLE)


async def test_encodings(hostile: HostileServer) -> None:
    packed = await ask(hostile.url("disk", encoding="gzip"))
    assert (packed.headers["content-encoding"], gzip.decompress(packed.body)) == ("gzip", WHOLE)
    assert int(packed.headers["content-length"]) == len(packed.body)
    assert (await ask(hostile.url("disk", encoding="br"))).body == WHOLE


async def test_tls_and_client_certificates(authority: Authority) -> None:
    context = authority.server_context(require_client_certificate=True)
    async with HostileServer(tls=context) as server:
        server.add("disk", DISK)
        assert server.url("disk").startswith("https://")
        reply = await ask(server.url("disk", host="localhost"), tls=authority.client_context(certificate=True))
        assert reply.body == WHOLE
        assert server.requests[0].client_certificate


def test_it_serves_from_its_own_thread(hostile_in_thread: HostileServer) -> None:
    hostile_in_thread.add("disk", DISK)
    reply = asyncio.run(ask(hostile_in_thread.url("disk")))
    assert hexdigest(reply.body) == hexdigest(DISK)
    assert hostile_in_thread.bytes_sent("disk") == DISK.size


async def test_a_parameter_that_does_not_exist_fails_the_test() -> None:
    server = await HostileServer().__aenter__()
    server.add("disk", DISK)
    assert (await ask(server.url("disk", stale=1))).status == 500
    assert (await ask(server.url("disk", framing="odd"))).status == 500
    with pytest.raises(AssertionError, match=r"unknown parameter 'stale'.*framing='odd': not one of"):
        await server.__aexit__(None, None, None)
