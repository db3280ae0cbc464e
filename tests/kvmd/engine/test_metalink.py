"""Metalinks: a document names the mirrors, the size and the checksum, and is believed no further than that."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kvmd.core.session import Ready
from kvmwire.status import SourceProgress, SourceState
from tests.kvmd.engine.fetching import Host, Outcome
from tests.support.hostile import Exchange, GeneratedContent, HostileServer, hexdigest
from tests.support.metalinks import MetalinkFile, metalink3, metalink4

MIB = 1 << 20
KIB = 1 << 10
DISK = GeneratedContent(12 * MIB, seed=1)
SMALL = GeneratedContent(MIB, seed=2)
HEAD = 64 << 10
LOOPBACK = {"allowed_networks": ["127.0.0.0/8"]}
WRONG = {"sha-256": "0" * 64}


@pytest.fixture
async def elsewhere() -> AsyncIterator[HostileServer]:
    """Start another origin, which no URL of the event names."""
    async with HostileServer() as server:
        server.add("disk", DISK)
        server.add("small", SMALL)
        yield server


@pytest.fixture
def origin(hostile: HostileServer) -> HostileServer:
    """Serve the two images."""
    hostile.add("disk", DISK)
    hostile.add("small", SMALL)
    return hostile


def publish(origin: HostileServer, *files: MetalinkFile, name: str = "disk.img.meta4", **behaviour: object) -> str:
    origin.add(name, metalink4(*files))
    return origin.url(name, **behaviour)


def small(origin: HostileServer, *mirrors: str, name: str = "disk.img.meta4", **facts: object) -> str:
    urls = mirrors or (origin.url("small"),)
    return publish(origin, MetalinkFile(SMALL, urls, **facts), name=name)  # type: ignore[arg-type] # the builder's own fields


def served(server: HostileServer, mirror: str) -> int:
    """Count the bytes that one mirror sent after its probe."""
    return sum(one.body_sent for one in server.requests if f"mirror={mirror}" in one.query and one.number > 1)


def told(outcome: Outcome, mirror: str) -> SourceProgress:
    """Give the last that was told of the mirror with this name in its path; URLs are told without query."""
    return next(source for source in outcome.sources if source.url.endswith(f"/{mirror}"))


def asked(server: HostileServer, name: str) -> list[Exchange]:
    return server.requests_for(name)


@pytest.mark.parametrize("version", [metalink3, metalink4])
async def test_all_mirrors_take_part_and_the_checksum_proves(
    host: Host, origin: HostileServer, version: object
) -> None:
    urls = [origin.url("disk", mirror=name, rate=16 * MIB) for name in "abc"]
    make = metalink3 if version is metalink3 else metalink4
    origin.add("disk.metalink", make(MetalinkFile(DISK, urls)))
    outcome = await host.fetch(origin.url("disk.metalink"))
    assert outcome.code == "ready"
    assert isinstance(outcome.state, Ready)
    assert [one.hex for one in outcome.state.found.digests] == [hexdigest(DISK)]
    assert all(served(origin, name) > MIB for name in "abc")
    assert len(asked(origin, "disk.metalink")) == 1
    assert [source.state for source in outcome.sources] == [SourceState.STANDBY] * 3


async def test_the_content_type_tells_a_metalink_too(host: Host, origin: HostileServer) -> None:
    url = small(origin, name="download.php")
    outcome = await host.fetch(f"{url}?media_type=application/metalink4%2Bxml", expected=SMALL)
    assert outcome.code == "ready"


async def test_dead_mirrors_and_one_of_another_size_are_left_out(host: Host, origin: HostileServer) -> None:
    for name in ("dead", "gone", "odd"):
        origin.add(name, DISK)
    urls = [
        *(origin.url("dead", drop="fin"), origin.url("gone", status=404)),
        *(origin.url("odd", total=DISK.size + 512), origin.url("disk")),
    ]
    outcome = await host.fetch(publish(origin, MetalinkFile(DISK, urls)), expected=DISK)
    assert outcome.code == "ready"
    assert [told(outcome, name).code for name in ("dead", "gone", "odd", "disk")] == [
        *("SOURCE_UNREACHABLE", "SOURCE_STATUS", "TOO_LARGE", None)
    ]


async def test_the_documents_size_wins_over_most_sources(host: Host, origin: HostileServer) -> None:
    origin.add("odd", DISK)
    odd = [origin.url("odd", mirror=name, total=DISK.size + 512) for name in "ab"]
    url = publish(origin, MetalinkFile(DISK, [origin.url("disk")]))
    outcome = await host.fetch(*odd, url, expected=DISK)
    assert outcome.code == "ready"
    assert [source.code for source in outcome.sources] == ["ENTITY_CHANGED", "ENTITY_CHANGED", None]


async def test_the_best_mirror_is_asked_first(tmp_path: Path, origin: HostileServer) -> None:
    host = Host(tmp_path, transfer={"connections": 1})
    first, second = (origin.url("small", mirror=name) for name in "ab")
    outcome = await host.fetch(small(origin, first, second))
    assert outcome.code == "ready"
    assert (served(origin, "a"), served(origin, "b")) == (SMALL.size, 0)


async def test_mirrors_that_are_busy_at_first_are_asked_again(host: Host, origin: HostileServer) -> None:
    outcome = await host.fetch(small(origin, origin.url("small", status="503@1")))
    assert outcome.code == "ready"


async def test_a_wrong_checksum_of_the_document_is_a_mismatch(host: Host, origin: HostileServer) -> None:
    url = small(origin, hashes=(), false_hashes=WRONG)
    outcome = await host.fetch(url)
    assert outcome.code == "CHECKSUM_MISMATCH"
    assert "0" * 64 in outcome.failure.message
    assert host.partial_files() == {}
    assert origin.bytes_sent("small") <= 3 * (SMALL.size + HEAD)


@pytest.mark.parametrize("name", ["sha-256", "sha-512"])
async def test_a_checksum_that_contradicts_the_events_downloads_nothing(
    host: Host, origin: HostileServer, name: str
) -> None:
    false = {name: "0" * (64 if name == "sha-256" else 128)}
    outcome = await host.fetch(small(origin, hashes=(), false_hashes=false), expected=SMALL)
    # Of another algorithm only the bytes can tell.
    assert outcome.code == ("CHECKSUM_CONFLICT" if name == "sha-256" else "CHECKSUM_MISMATCH")
    assert (origin.bytes_sent("small") == 0) is (name == "sha-256")


async def test_beside_ordinary_sources_a_document_that_contradicts_the_event_is_left_out(
    host: Host, origin: HostileServer
) -> None:
    url = small(origin, origin.url("disk"), hashes=(), false_hashes=WRONG)
    outcome = await host.fetch(url, origin.url("small"), expected=SMALL)
    assert outcome.code == "ready"
    assert told(outcome, "disk.img.meta4").code == "CHECKSUM_CONFLICT"


async def test_of_two_documents_the_one_that_contradicts_the_first_is_left_out(
    host: Host, origin: HostileServer
) -> None:
    other = small(origin, origin.url("small", mirror="b"), hashes=(), false_hashes=WRONG, name="other.meta4")
    outcome = await host.fetch(small(origin, origin.url("small", mirror="a")), other)
    assert outcome.code == "ready"
    assert told(outcome, "other.meta4").code == "CHECKSUM_CONFLICT"
    assert isinstance(outcome.state, Ready)
    assert [one.hex for one in outcome.state.found.digests] == [hexdigest(SMALL)]


@pytest.mark.parametrize(("weak", "code"), [(False, "CHECKSUM_WEAK"), (True, "ready")])
async def test_md5_alone_counts_only_where_weak_checksums_are_accepted(
    tmp_path: Path, origin: HostileServer, *, weak: bool, code: str
) -> None:
    host = Host(tmp_path, policy={"weak_checksums": weak})
    outcome = await host.fetch(small(origin, hashes=("md5",)))
    assert outcome.code == code


async def test_with_a_strong_checksum_a_weak_one_does_not_matter(host: Host, origin: HostileServer) -> None:
    assert (await host.fetch(small(origin, hashes=("md5", "sha-256")))).code == "ready"


def several(origin: HostileServer) -> str:
    one = MetalinkFile(SMALL, [origin.url("small")], name="small.img")
    return publish(origin, one, MetalinkFile(DISK, [origin.url("disk")], name="large.img"), name="images.meta4")


async def test_of_several_files_nobody_can_choose_one(host: Host, origin: HostileServer) -> None:
    outcome = await host.fetch(several(origin))
    assert outcome.code == "METALINK_AMBIGUOUS"
    assert "small.img" in outcome.failure.message


@pytest.mark.parametrize("by", ["checksum", "size", "name"])
async def test_of_several_files_the_event_tells_which(host: Host, origin: HostileServer, by: str) -> None:
    match by:
        case "checksum":
            outcome = await host.fetch(several(origin), expected=SMALL)
        case "size":
            outcome = await host.fetch(several(origin), size=SMALL.size)
        case _:
            outcome = await host.fetch(several(origin), name="small.img")
    assert outcome.code == "ready"
    assert origin.bytes_sent("disk") == 0


async def test_an_event_of_another_size_refuses_the_document(host: Host, origin: HostileServer) -> None:
    outcome = await host.fetch(small(origin), expected=SMALL, size=SMALL.size + 1)
    assert outcome.code == "METALINK_INVALID"


@pytest.mark.parametrize(
    "document",
    [
        metalink4(MetalinkFile(SMALL, ["ftp://m.example/d", "rsync://m.example/d", "magnet:?xt=urn:btih:1"])),
        metalink4(MetalinkFile(SMALL, ["file:///etc/passwd"])),
        metalink4(MetalinkFile(SMALL, ["http://127.0.0.1:1/other.meta4"])),
        metalink4(),
        b"<!DOCTYPE html><html><body>Sign in</body></html>",
        b'<?xml version="1.0"?><!DOCTYPE m [<!ENTITY a "b">]><metalink xmlns="urn:ietf:params:xml:ns:metalink"/>',
        b"<metalink/>",
        b"\x00" * 100,
        b"<" * (2 * MIB),
    ],
)
async def test_what_names_no_mirror_is_refused(host: Host, origin: HostileServer, document: bytes) -> None:
    origin.add("bad.meta4", document)
    outcome = await host.fetch(origin.url("bad.meta4"), expected=SMALL)
    assert outcome.code in ({"METALINK_INVALID"} if len(document) < MIB else {"TOO_LARGE"})
    assert len(origin.requests) == 1


async def test_a_login_page_instead_of_the_document_is_refused(host: Host, origin: HostileServer) -> None:
    outcome = await host.fetch(origin.url("small", html=1).replace("/small", "/x.meta4"), expected=SMALL)
    assert outcome.code == "SOURCE_STATUS"
    origin.add("x.meta4", b"any")
    assert (await host.fetch(origin.url("x.meta4", html=1), expected=SMALL)).code == "METALINK_INVALID"


async def test_a_document_without_ranges_or_length_or_behind_redirects_is_read(
    tmp_path: Path, origin: HostileServer
) -> None:
    small(origin)
    for number, behaviour in enumerate(({"ranges": "off"}, {"framing": "chunked"}, {"redirect": 2})):
        host = Host(tmp_path / str(number), policy=LOOPBACK)
        outcome = await host.fetch(origin.url("disk.img.meta4", **behaviour), expected=SMALL)
        assert outcome.code == "ready"


async def test_a_large_document_is_read_whole(host: Host, origin: HostileServer) -> None:
    outcome = await host.fetch(small(origin, piece=512), expected=SMALL)
    assert asked(origin, "disk.img.meta4")[0].body_sent == HEAD
    assert outcome.code == "ready"


async def test_ten_thousand_urls_are_64_mirrors(host: Host, origin: HostileServer) -> None:
    urls = [origin.url("small", mirror=number) for number in range(10_000)]
    outcome = await host.fetch(small(origin, *urls), expected=SMALL)
    assert outcome.code == "ready"
    assert len(outcome.sources) == 64
    assert len({one.target for one in asked(origin, "small")}) == 64


async def test_a_mirror_at_a_denied_address_is_not_dialled(host: Host, origin: HostileServer) -> None:
    dialled = list[object]()

    async def on_connection(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        dialled.append(writer)
        writer.close()

    async with await asyncio.start_server(on_connection, "127.0.0.2", 0) as canary:
        port = canary.sockets[0].getsockname()[1]
        bad = f"http://127.0.0.2:{port}/canary"
        outcome = await host.fetch(small(origin, bad, origin.url("small")), expected=SMALL)
    assert outcome.code == "ready"
    assert told(outcome, "canary").code == "URL_FORBIDDEN"
    assert dialled == []


async def test_the_events_headers_go_to_the_document_and_not_to_mirrors(
    tmp_path: Path, origin: HostileServer, elsewhere: HostileServer
) -> None:
    host = Host(tmp_path, policy=LOOPBACK)
    headers = {"Authorization": "Bearer s3cret"}
    url = publish(origin, MetalinkFile(SMALL, [elsewhere.url("small"), origin.url("small")], hashes=()))
    outcome = await host.fetch(url, headers=headers)
    assert outcome.code == "ready"
    assert asked(origin, "disk.img.meta4")[0].header("Authorization") == "Bearer s3cret"
    assert elsewhere.requests
    assert all(one.header("Authorization") is None for one in (*elsewhere.requests, *asked(origin, "small")))


async def test_a_mirror_that_turns_out_to_be_a_metalink_is_not_followed(host: Host, origin: HostileServer) -> None:
    inner = small(origin, name="inner.php") + "?media_type=application/metalink%2Bxml"
    outcome = await host.fetch(small(origin, inner), expected=SMALL)
    assert outcome.code == "METALINK_INVALID"
    assert asked(origin, "small") == []


async def test_the_documents_own_headers_say_nothing_of_the_image(host: Host, origin: HostileServer) -> None:
    small(origin)
    digest = "Digest: sha-256=" + "A" * 43 + "="
    lines = f"{digest}|Link: <http://127.0.0.1:1/x>; rel=duplicate|Repr-Digest: sha-512=:{'A' * 86}==:"
    outcome = await host.fetch(origin.url("disk.img.meta4", header=lines))
    assert outcome.code == "ready"
    assert isinstance(outcome.state, Ready)
    assert [one.hex for one in outcome.state.found.digests] == [hexdigest(SMALL)]
    assert len(outcome.sources) == 1


async def test_an_ordinary_source_and_a_metalink_work_together(host: Host, origin: HostileServer) -> None:
    urls = [origin.url("disk", mirror=name, rate=16 * MIB) for name in "ab"]
    outcome = await host.fetch(urls[0], publish(origin, MetalinkFile(DISK, [urls[1]])), expected=DISK)
    assert outcome.code == "ready"
    assert served(origin, "a") > MIB
    assert served(origin, "b") > MIB


async def test_a_metalink_that_is_gone_beside_an_ordinary_source_is_no_loss(host: Host, origin: HostileServer) -> None:
    small(origin)
    url = origin.url("disk.img.meta4", status=404)
    outcome = await host.fetch(url, origin.url("small"), expected=SMALL)
    assert outcome.code == "ready"
    assert told(outcome, "disk.img.meta4").code == "SOURCE_STATUS"


@pytest.mark.parametrize("bad", [0, 1, 2])
async def test_without_pieces_a_liar_among_the_mirrors_is_isolated(host: Host, origin: HostileServer, bad: int) -> None:
    urls = [origin.url("disk", mirror=name, rate=24 * MIB) for name in "abc"]
    urls[bad] += f"&corrupt={HEAD}:{11 * MIB}"
    outcome = await host.fetch(publish(origin, MetalinkFile(DISK, urls)))
    assert outcome.code == "ready"
    assert outcome.path.stat().st_size == DISK.size


async def test_one_mirror_of_a_wrong_document_ends_bounded(host: Host, origin: HostileServer) -> None:
    url = small(origin, origin.url("small", corrupt=f"{HEAD}:5"))
    outcome = await host.fetch(url)
    assert outcome.code == "CHECKSUM_MISMATCH"
    assert hexdigest(SMALL) in outcome.failure.message
    assert origin.bytes_sent("small") <= 3 * (SMALL.size + HEAD)
