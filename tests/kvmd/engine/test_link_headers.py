"""What a server says beside the bytes (RFC 6249, 3230, 9530): more mirrors, a Metalink, a checksum; a courtesy, no more."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping

import pytest

from kvmd.core.session import Ready
from kvmd.engine import supply
from tests.kvmd.engine.fetching import Host, Outcome
from tests.support.contents import Content, as_content
from tests.support.hostile import GeneratedContent, HostileServer, hexdigest
from tests.support.metalinks import MetalinkFile, metalink4

MIB = 1 << 20
DISK = GeneratedContent(8 * MIB, seed=1)
HEAD = 64 << 10


@pytest.fixture
def origin(hostile: HostileServer) -> HostileServer:
    """Serve the image."""
    hostile.add("disk", DISK)
    return hostile


def in_base64(content: Content, algorithm: str = "sha256") -> str:
    whole = as_content(content)
    return base64.b64encode(hashlib.new(algorithm, whole.read(0, whole.size)).digest()).decode()


def served(server: HostileServer, mirror: str) -> int:
    """Count the bytes that one mirror sent after its probe."""
    return sum(one.body_sent for one in server.requests if f"mirror={mirror}" in one.query and one.number > 1)


def found(outcome: Outcome) -> list[str]:
    assert outcome.code == "ready"
    assert isinstance(outcome.state, Ready)
    return [one.hex for one in outcome.state.found.digests]


async def test_duplicates_take_part(host: Host, origin: HostileServer) -> None:
    other = origin.url("disk", mirror="other", rate=8 * MIB)
    url = origin.url("disk", mirror="first", rate=8 * MIB, header=f"Link: <{other}>; rel=duplicate; pri=1")
    outcome = await host.fetch(url, expected=DISK)
    assert outcome.code == "ready"
    assert served(origin, "first") > MIB
    assert served(origin, "other") > MIB


@pytest.mark.parametrize(
    "link",
    [
        "<http://127.0.0.1:1/disk>; rel=duplicate",
        "<http://169.254.169.254/disk>; rel=duplicate",
        "<file:///etc/passwd>; rel=duplicate",
        "<disk>; rel=duplicate",
        "<http://[>; rel=duplicate",
        "<x.meta4>; rel=describedby; type=application/metalink4+xml",
        "garbage, <",
    ],
)
async def test_a_useless_link_does_no_harm(host: Host, origin: HostileServer, link: str) -> None:
    outcome = await host.fetch(origin.url("disk", header=f"Link: {link}"), expected=DISK)
    assert outcome.code == "ready"


def described(origin: HostileServer, *mirrors: str, **facts: object) -> str:
    file = MetalinkFile(DISK, mirrors, **facts)  # type: ignore[arg-type] # the builder's own fields
    origin.add("disk.meta4", metalink4(file))
    return origin.url("disk", header="Link: </disk.meta4>; rel=describedby; type=application/metalink4+xml")


async def test_the_describing_metalink_is_followed(host: Host, origin: HostileServer) -> None:
    other = origin.url("disk", mirror="other")
    outcome = await host.fetch(described(origin, other, piece=MIB))
    assert found(outcome) == [hexdigest(DISK)]
    assert served(origin, "other") > 0
    assert len(origin.requests_for("disk.meta4")) == 1


@pytest.mark.parametrize(
    "facts", [{"hashes": (), "false_hashes": {"sha-256": "0" * 64}}, {"hashes": ("md5",)}, {"has_size": False}]
)
async def test_a_description_that_will_not_do_is_no_reason_to_refuse_the_image(
    host: Host, origin: HostileServer, facts: Mapping[str, object]
) -> None:
    outcome = await host.fetch(described(origin, origin.url("disk", mirror="other"), **facts), expected=DISK)
    assert outcome.code == "ready"


async def test_a_description_of_another_size_is_not_used(host: Host, origin: HostileServer) -> None:
    url = described(origin, origin.url("disk", mirror="other"))
    origin.add("disk.meta4", metalink4(MetalinkFile(GeneratedContent(MIB), [origin.url("disk", mirror="other")])))
    outcome = await host.fetch(url)
    assert found(outcome) == []
    assert served(origin, "other") == 0


async def test_a_description_that_does_not_come_is_not_waited_for(
    host: Host, origin: HostileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supply, "DESCRIPTIONS_S", 0.2)
    url = described(origin, origin.url("disk", mirror="other"))
    origin.add("disk.meta4", b"<metalink/>" * 100, trickle=0.05)
    assert (await host.fetch(url, expected=DISK)).code == "ready"


@pytest.mark.parametrize(
    "header",
    [
        f"Digest: sha-256={in_base64(DISK)}",
        f"Repr-Digest: sha-256=:{in_base64(DISK)}:",
        f"Digest: md5={in_base64(DISK, 'md5')},SHA-256={in_base64(DISK)}",
    ],
)
async def test_a_digest_of_the_server_is_checked(host: Host, origin: HostileServer, header: str) -> None:
    assert found(await host.fetch(origin.url("disk", header=header))) == [hexdigest(DISK)]


async def test_a_digest_that_the_bytes_do_not_have_is_a_mismatch(host: Host, origin: HostileServer) -> None:
    header = f"Digest: sha-256={in_base64(DISK)}"
    outcome = await host.fetch(origin.url("disk", header=header, corrupt=f"{HEAD}:9"))
    assert outcome.code == "CHECKSUM_MISMATCH"
    assert "headers" in outcome.failure.message


async def test_a_weak_digest_of_the_server_is_ignored(host: Host, origin: HostileServer) -> None:
    assert found(await host.fetch(origin.url("disk", header=f"Digest: md5={in_base64(DISK, 'md5')}"))) == []


async def test_a_server_that_contradicts_the_event_is_refused(host: Host, origin: HostileServer) -> None:
    other = f"Repr-Digest: sha-256=:{in_base64(GeneratedContent(9))}:"
    outcome = await host.fetch(origin.url("disk", header=other), expected=DISK)
    assert outcome.code == "CHECKSUM_CONFLICT"
    good = origin.url("disk", mirror="good")
    outcome = await host.fetch(origin.url("disk", header=other), good, expected=DISK)
    assert outcome.code == "ready"
    assert [source.code for source in outcome.sources] == ["CHECKSUM_CONFLICT", None]


async def test_a_servers_digest_takes_nothing_away_from_a_documents(host: Host, origin: HostileServer) -> None:
    origin.add("x.meta4", metalink4(MetalinkFile(DISK, [origin.url("disk")])))
    other = f"Digest: sha-256={in_base64(GeneratedContent(9))}"
    outcome = await host.fetch(origin.url("x.meta4"), origin.url("disk", header=other))
    assert found(outcome) == [hexdigest(DISK)]
