"""A checksum that the event does not have is looked for beside the image, and a signed one is proof."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvmd.core.session import Found, Ready
from kvmd.core.sums import candidates
from kvmd.engine import discovery
from kvmd.fetch import gpg
from kvmwire.source import SourceUrl
from tests.kvmd.engine.fetching import Host, Outcome
from tests.support.hostile import GeneratedContent, HostileServer, hexdigest
from tests.support.keys import Keys
from tests.support.metalinks import MetalinkFile, metalink4

IMAGE = GeneratedContent(300 << 10, seed=1)
NAME = "disk.img"
SHA_256 = hexdigest(IMAGE)
LINE = f"{SHA_256}  {NAME}\n"
OTHERS = f"{'1' * 64}  other.img\n{'2' * 64} *./more/{NAME}\n"
WRONG = f"{'0' * 64}  {NAME}\n"
PAGE = b"<!DOCTYPE html><html><body>Nothing here</body></html>"
PLACES = [place.url.path.lstrip("/") for place in candidates(SourceUrl.parse(f"http://h/{NAME}"))]


@pytest.fixture
def origin(hostile: HostileServer) -> HostileServer:
    """Serve the image."""
    hostile.add(NAME, IMAGE)
    return hostile


@pytest.fixture(scope="module")
def keys() -> Iterator[Keys]:
    """Make keys: the publisher's, a stranger's, and an expired one."""
    with Keys() as made:
        made.make("publisher")
        made.make("stranger")
        made.make("expired", is_expired=True)
        yield made


@pytest.fixture
def trusting(tmp_path: Path, keys: Keys) -> Host:
    """Make a host that knows the publisher's and the expired key."""
    return host_with_keys(tmp_path, keys)


def host_with_keys(folder: Path, keys: Keys, **policy: object) -> Host:
    folder.mkdir(exist_ok=True)
    ring = keys.export(folder / "keyring.gpg", "publisher", "expired")
    return Host(folder / "host", policy={"keyring": str(ring), **policy})


def found(outcome: Outcome) -> Found:
    assert outcome.code == "ready"
    assert isinstance(outcome.state, Ready)
    return outcome.state.found


@pytest.mark.parametrize(
    ("place", "text"),
    [
        (f"{NAME}.sha256", SHA_256),
        (f"{NAME}.sha256", LINE),
        (f"{NAME}.sha512", hexdigest(IMAGE, "sha512")),
        (f"{NAME}.CHECKSUM", f"SHA256 ({NAME}) = {SHA_256}\n"),
        ("SHA256SUMS", OTHERS + LINE),
        ("CHECKSUM", f"# {NAME}: 307200 bytes\nSHA256 ({NAME}) = {SHA_256}\n"),
        ("sha256sum.txt", f"{SHA_256} *{NAME}\r\n"),
    ],
)
async def test_a_checksum_beside_the_image_is_found_and_proves(
    host: Host, origin: HostileServer, place: str, text: str
) -> None:
    origin.add(place, text.encode())
    it = found(await host.fetch(origin.url(NAME)))
    assert [one.hex in text for one in it.digests] == [True]
    assert it.where.endswith(f"/{place}")
    assert not it.is_vouched


async def test_where_there_is_none_there_is_no_trust(host: Host, origin: HostileServer) -> None:
    assert found(await host.fetch(origin.url(NAME))).digests == ()
    assert [one.name for one in origin.requests if one.status == 404] == PLACES


async def test_the_search_can_be_switched_off(tmp_path: Path, origin: HostileServer) -> None:
    host = Host(tmp_path, policy={"discover_checksums": False})
    assert found(await host.fetch(origin.url(NAME))).digests == ()
    assert {one.name for one in origin.requests} == {NAME}


async def test_with_a_checksum_in_the_event_nothing_is_looked_for(host: Host, origin: HostileServer) -> None:
    origin.add("SHA256SUMS", WRONG.encode())
    assert found(await host.fetch(origin.url(NAME), expected=IMAGE)).digests == ()
    assert {one.name for one in origin.requests} == {NAME}


async def test_a_wrong_checksum_is_a_mismatch(host: Host, origin: HostileServer) -> None:
    origin.add("SHA256SUMS", WRONG.encode())
    outcome = await host.fetch(origin.url(NAME))
    assert outcome.code == "CHECKSUM_MISMATCH"
    assert "SHA256SUMS" in outcome.failure.message
    assert host.partial_files() == {}


async def test_it_is_looked_for_beside_a_source_that_works(host: Host, origin: HostileServer) -> None:
    origin.add("gone/disk.img", IMAGE)
    origin.add("SHA256SUMS", LINE.encode())
    gone = origin.url("gone/disk.img", status=404)
    assert found(await host.fetch(gone, origin.url(NAME))).where.endswith("/SHA256SUMS")


async def test_of_a_metalink_without_checksum_it_is_looked_for_beside_the_mirror(
    host: Host, origin: HostileServer
) -> None:
    origin.add("meta/x.meta4", metalink4(MetalinkFile(IMAGE, [origin.url(NAME)], hashes=())))
    origin.add("meta/x.meta4.sha256", b"0" * 64)
    origin.add("SHA256SUMS", LINE.encode())
    it = found(await host.fetch(origin.url("meta/x.meta4"), headers={"Authorization": "Bearer s3cret"}))
    assert it.where.endswith("/SHA256SUMS")


# --- signatures ---


def publish(origin: HostileServer, keys: Keys, *by: str, text: str = OTHERS + LINE, place: str = "SHA256SUMS") -> None:
    origin.add(place, text.encode())
    origin.add(f"{place}.gpg", keys.sign(text.encode(), *by))


async def test_a_good_signature_vouches(trusting: Host, origin: HostileServer, keys: Keys) -> None:
    publish(origin, keys, "publisher")
    it = found(await trusting.fetch(origin.url(NAME)))
    assert (it.is_vouched, [one.hex for one in it.digests]) == (True, [SHA_256])


@pytest.mark.parametrize("suffix", [".asc", ".sign"])
async def test_an_armored_signature_vouches(trusting: Host, origin: HostileServer, keys: Keys, suffix: str) -> None:
    origin.add("SHA256SUMS", LINE.encode())
    origin.add(f"SHA256SUMS{suffix}", keys.sign(LINE.encode(), "publisher", is_armored=True))
    assert found(await trusting.fetch(origin.url(NAME))).is_vouched


async def test_a_signed_list_counts_more_than_an_unsigned_file(
    trusting: Host, origin: HostileServer, keys: Keys
) -> None:
    origin.add(f"{NAME}.sha256", b"0" * 64)
    publish(origin, keys, "publisher")
    it = found(await trusting.fetch(origin.url(NAME)))
    assert it.is_vouched
    assert [one.hex for one in it.digests] == [SHA_256]


@pytest.mark.parametrize("by", [("stranger",), ("publisher", "stranger")])
async def test_a_signature_of_an_unknown_key_is_refused(
    trusting: Host, origin: HostileServer, keys: Keys, by: tuple[str, ...]
) -> None:
    publish(origin, keys, *by)
    outcome = await trusting.fetch(origin.url(NAME))
    assert outcome.code == "EVENT_SIGNATURE"
    assert "SHA256SUMS" in outcome.failure.message
    assert origin.bytes_sent(NAME) <= 64 << 10


async def test_a_signature_of_an_expired_key_is_refused(trusting: Host, origin: HostileServer, keys: Keys) -> None:
    origin.add("SHA256SUMS", LINE.encode())
    origin.add("SHA256SUMS.gpg", keys.sign(LINE.encode(), "expired", is_past=True))
    assert (await trusting.fetch(origin.url(NAME))).code == "EVENT_SIGNATURE"


@pytest.mark.parametrize("change", ["text", "signature", "other"])
async def test_what_was_tampered_with_is_refused(
    trusting: Host, origin: HostileServer, keys: Keys, change: str
) -> None:
    publish(origin, keys, "publisher", text=WRONG if change == "text" else LINE)
    match change:
        case "text":
            origin.add("SHA256SUMS", LINE.encode())
        case "signature":
            signature = bytearray(keys.sign(LINE.encode(), "publisher"))
            signature[-1] ^= 1
            origin.add("SHA256SUMS.gpg", bytes(signature))
        case _:
            origin.add("SHA256SUMS.gpg", keys.sign(OTHERS.encode(), "publisher"))
    assert (await trusting.fetch(origin.url(NAME))).code == "EVENT_SIGNATURE"


async def test_a_name_that_is_there_twice_is_refused(trusting: Host, origin: HostileServer, keys: Keys) -> None:
    publish(origin, keys, "publisher", text=LINE + WRONG)
    outcome = await trusting.fetch(origin.url(NAME))
    assert outcome.code == "EVENT_SIGNATURE"
    assert "two values" in outcome.failure.message


async def test_a_web_page_for_the_signature_is_no_signature(trusting: Host, origin: HostileServer) -> None:
    origin.add("SHA256SUMS", LINE.encode())
    origin.add("SHA256SUMS.gpg", PAGE)
    assert not found(await trusting.fetch(origin.url(NAME))).is_vouched


async def test_a_keyring_that_is_not_there_refuses(tmp_path: Path, origin: HostileServer, keys: Keys) -> None:
    host = Host(tmp_path, policy={"keyring": str(tmp_path / "none.gpg")})
    publish(origin, keys, "publisher")
    assert (await host.fetch(origin.url(NAME))).code == "EVENT_SIGNATURE"


async def test_a_required_checksum_may_be_a_signed_one(tmp_path: Path, origin: HostileServer, keys: Keys) -> None:
    host = host_with_keys(tmp_path, keys, require_checksum=True)
    assert (await host.fetch(origin.url(NAME))).code == "POLICY"
    origin.add("SHA256SUMS", LINE.encode())
    assert (await host.fetch(origin.url(NAME))).code == "POLICY"
    publish(origin, keys, "publisher")
    assert found(await host.fetch(origin.url(NAME))).is_vouched


async def test_a_required_checksum_is_looked_for_although_a_metalink_has_one(
    tmp_path: Path, origin: HostileServer, keys: Keys
) -> None:
    host = host_with_keys(tmp_path, keys, require_checksum=True)
    origin.add("x.meta4", metalink4(MetalinkFile(IMAGE, [origin.url(NAME)])))
    assert (await host.fetch(origin.url("x.meta4"))).code == "POLICY"
    publish(origin, keys, "publisher", text=WRONG)
    assert (await host.fetch(origin.url("x.meta4"))).code == "CHECKSUM_CONFLICT"
    publish(origin, keys, "publisher")
    assert found(await host.fetch(origin.url("x.meta4"))).is_vouched


async def test_a_required_checksum_that_cannot_be_asked_for_now_is_waited_for(
    tmp_path: Path, origin: HostileServer, keys: Keys
) -> None:
    host = host_with_keys(tmp_path, keys, require_checksum=True)
    origin.add("SHA256SUMS", b"", status=503)
    outcome = await host.fetch(origin.url(NAME))
    assert outcome.code == "SOURCE_UNREACHABLE"
    assert type(outcome.state).__name__ == "Waiting"


def fake_gpgv(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program = folder / "bin" / "gpgv"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")


async def test_without_gpgv_nothing_is_believed(
    trusting: Host, origin: HostileServer, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(origin, keys, "publisher")
    monkeypatch.setenv("PATH", "/nowhere")
    outcome = await trusting.fetch(origin.url(NAME))
    assert outcome.code == "INTERNAL"
    assert "gpgv" in outcome.failure.message
    assert "gpgv" in outcome.failure.hint


@pytest.mark.parametrize(
    "script",
    [
        "sleep 60",
        "trap '' TERM; sleep 60 & wait",
        "exit 0",
        "echo '[GNUPG:] VALIDSIG 0'",
        "echo '[GNUPG:] GOODSIG 0 x'; exit 1",
    ],
)
async def test_a_gpgv_that_hangs_or_says_too_little_is_not_believed(
    tmp_path: Path, trusting: Host, origin: HostileServer, keys: Keys, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    publish(origin, keys, "publisher")
    fake_gpgv(tmp_path, script, monkeypatch)
    monkeypatch.setattr(gpg, "TIMEOUT_S", 0.3)
    started = time.monotonic()
    outcome = await trusting.fetch(origin.url(NAME))
    assert outcome.code == "EVENT_SIGNATURE"
    assert time.monotonic() - started < 3


# --- a file that somebody named ---


async def test_the_named_file_is_used(host: Host, origin: HostileServer) -> None:
    origin.add("sums/list", (OTHERS + LINE).encode())
    origin.add("SHA256SUMS", WRONG.encode())
    it = found(await host.fetch(origin.url(NAME), checksum_url=origin.url("sums/list")))
    assert it.where.endswith("/sums/list")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (OTHERS, "CHECKSUM_FORMAT"),
        (PAGE.decode(), "CHECKSUM_FORMAT"),
        (LINE + WRONG, "CHECKSUM_CONFLICT"),
        (f"{hexdigest(IMAGE, 'md5')}  {NAME}\n", "CHECKSUM_WEAK"),
        (WRONG, "CHECKSUM_MISMATCH"),
    ],
)
async def test_a_named_file_that_will_not_do_ends_it(host: Host, origin: HostileServer, text: str, code: str) -> None:
    origin.add("list", text.encode())
    outcome = await host.fetch(origin.url(NAME), checksum_url=origin.url("list"))
    assert outcome.code == code
    assert code == "CHECKSUM_MISMATCH" or origin.bytes_sent(NAME) <= 64 << 10


@pytest.mark.parametrize(
    ("behaviour", "code"),
    [({"status": 404}, "SOURCE_STATUS"), ({"status": 503}, "SOURCE_UNREACHABLE"), ({"stall": 5}, "SOURCE_STALLED")],
)
async def test_a_named_file_that_cannot_be_had_ends_it(
    host: Host, origin: HostileServer, behaviour: dict[str, object], code: str
) -> None:
    origin.add("list", LINE.encode(), **behaviour)
    assert (await host.fetch(origin.url(NAME), checksum_url=origin.url("list"))).code == code


async def test_a_named_file_that_contradicts_the_metalink_is_a_conflict(host: Host, origin: HostileServer) -> None:
    origin.add("x.meta4", metalink4(MetalinkFile(IMAGE, [origin.url(NAME)])))
    origin.add("list", WRONG.encode())
    outcome = await host.fetch(origin.url("x.meta4"), checksum_url=origin.url("list"))
    assert outcome.code == "CHECKSUM_CONFLICT"


async def test_the_events_headers_go_to_its_own_origins_only(tmp_path: Path, origin: HostileServer) -> None:
    host = Host(tmp_path, policy={"allowed_networks": ["127.0.0.0/8"]})
    headers = {"Authorization": "Bearer s3cret"}
    async with HostileServer() as elsewhere:
        elsewhere.add("list", LINE.encode())
        url = elsewhere.url("list")
        assert (await host.fetch(origin.url(NAME), headers=headers, checksum_url=url)).code == "ready"
        assert [one.header("Authorization") for one in elsewhere.requests] == [None]
    origin.add("list", LINE.encode())
    outcome = await host.fetch(origin.url(NAME), name="b", headers=headers, checksum_url=origin.url("list"))
    assert outcome.code == "ready"
    assert [one.header("Authorization") for one in origin.requests_for("list")] == ["Bearer s3cret"]


# --- servers that answer anything ---


@pytest.mark.parametrize(
    ("content", "behaviour", "requests"),
    [
        (PAGE, {}, len(PLACES)),
        (GeneratedContent(2 << 20), {}, len(PLACES)),
        (GeneratedContent(2 << 20), {"framing": "close", "ranges": "off"}, len(PLACES) + 10),
        (b"", {}, len(PLACES)),
        (b"x", {"status": 403}, len(PLACES)),
        (b"x", {"status": 429, "retry_after": 600}, 1),
        (b"x", {"drop": "rst"}, 2 * len(PLACES)),
        (b"x", {"redirect": "loop"}, 6 * len(PLACES)),
        (LINE.encode(), {"encoding": "gzip"}, len(PLACES)),
    ],
)
async def test_what_the_server_answers_for_a_checksum_breaks_nothing(
    host: Host, origin: HostileServer, content: bytes | GeneratedContent, behaviour: dict[str, object], requests: int
) -> None:
    for place in PLACES:
        origin.add(place, content, **behaviour)
    started = time.monotonic()
    assert found(await host.fetch(origin.url(NAME))).digests == ()
    assert time.monotonic() - started < 2
    assert sum(len(origin.requests_for(place)) for place in PLACES) <= requests


@pytest.mark.parametrize("behaviour", [{"stall": 1}, {"header_trickle": 0.1}, {"trickle": 0.1}])
async def test_a_server_that_stalls_delays_the_download_for_a_moment_only(
    tmp_path: Path, origin: HostileServer, monkeypatch: pytest.MonkeyPatch, behaviour: dict[str, object]
) -> None:
    host = Host(tmp_path, transfer={"stall_timeout_s": 15.0})
    monkeypatch.setattr(discovery, "SEARCH_S", 0.5)
    for place in PLACES:
        origin.add(place, LINE.encode(), **behaviour)
    started = time.monotonic()
    assert found(await host.fetch(origin.url(NAME))).digests == ()
    assert time.monotonic() - started < 2


async def test_a_weak_checksum_beside_the_image_is_no_reason_to_refuse_it(host: Host, origin: HostileServer) -> None:
    origin.add("CHECKSUM", f"MD5 ({NAME}) = {hexdigest(IMAGE, 'md5')}\n".encode())
    assert found(await host.fetch(origin.url(NAME))).digests == ()
