"""Pieces with digests of their own: what is wrong is noticed as it lands, fetched elsewhere, and its source is banned."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from kvmd.core import plan
from kvmd.core.checkpoint import Checkpoint
from kvmd.core.session import Ready
from kvmd.engine import landing
from kvmd.store.staging import STAGING
from kvmwire.status import SourceProgress, SourceState
from tests.kvmd.engine.fetching import Host, Outcome
from tests.support.hostile import GeneratedContent, HostileServer
from tests.support.metalinks import MetalinkFile, metalink4
from tests.support.waiting import eventually

MIB = 1 << 20
KIB = 1 << 10
PIECE = 256 * KIB
DISK = GeneratedContent(8 * MIB, seed=3)
HEAD = 64 * KIB
SEGMENT = MIB


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a small image have many segments and checkpoints."""
    for name in ("FIRST_SEGMENT", "MIN_SEGMENT", "MAX_SEGMENT"):
        monkeypatch.setattr(plan, name, SEGMENT)
    monkeypatch.setattr(plan, "MAX_BLOCK", 128 * KIB)
    monkeypatch.setattr(landing, "WINDOW", 512 * KIB)


def mirror(origin: HostileServer, name: str, **behaviour: object) -> str:
    """Serve the image once more, under a name of its own: statuses tell URLs without query."""
    origin.add(name, DISK)
    return origin.url(name, **behaviour)


def publish(origin: HostileServer, *urls: str, piece: int = PIECE, **facts: object) -> str:
    file = MetalinkFile(DISK, urls, piece=piece, **facts)  # type: ignore[arg-type] # the builder's own fields
    origin.add("disk.img.meta4", metalink4(file))
    return origin.url("disk.img.meta4")


def told(outcome: Outcome, name: str) -> SourceProgress:
    return next(source for source in outcome.sources if source.url.endswith(f"/{name}"))


def sent(origin: HostileServer) -> int:
    return sum(one.body_sent for one in origin.requests if not one.name.endswith(".meta4"))


def assert_banned(outcome: Outcome, name: str) -> None:
    source = told(outcome, name)
    assert (source.state, source.code) == (SourceState.BANNED, "CHECKSUM_MISMATCH")
    assert name in source.message


@pytest.mark.parametrize("piece_hash", ["sha-1", "sha-256"])
async def test_a_liar_is_banned_and_named_and_its_pieces_come_from_elsewhere(
    host: Host, hostile: HostileServer, piece_hash: str
) -> None:
    lying = mirror(hostile, "lying", corrupt=f"{HEAD}:{8 * MIB}", rate=8 * MIB)
    good = mirror(hostile, "good", rate=8 * MIB)
    outcome = await host.fetch(publish(hostile, lying, good, piece_hash=piece_hash), expected=DISK)
    assert outcome.code == "ready"
    assert [type(state).__name__ for state in outcome.states].count("Probing") == 1
    assert_banned(outcome, "lying")
    assert told(outcome, "good").state is not SourceState.BANNED
    assert sent(hostile) <= DISK.size + 4 * SEGMENT + 2 * HEAD
    assert outcome.progress[-1].done == DISK.size


async def test_one_wrong_byte_is_enough(tmp_path: Path, hostile: HostileServer) -> None:
    host = Host(tmp_path, transfer={"connections": 1})
    lying = mirror(hostile, "lying", corrupt="300000")
    outcome = await host.fetch(publish(hostile, lying, mirror(hostile, "good")), expected=DISK)
    assert outcome.code == "ready"
    assert_banned(outcome, "lying")
    assert f"bytes {PIECE} to {2 * PIECE}" in told(outcome, "lying").message


async def test_two_liars_are_both_found(host: Host, hostile: HostileServer) -> None:
    urls = [mirror(hostile, name, corrupt=f"{HEAD}:{8 * MIB}", rate=8 * MIB) for name in ("lying1", "lying2")]
    outcome = await host.fetch(publish(hostile, *urls, mirror(hostile, "good", rate=8 * MIB)))
    assert outcome.code == "ready"
    assert_banned(outcome, "lying1")
    assert_banned(outcome, "lying2")
    assert sent(hostile) <= DISK.size + 8 * SEGMENT + 3 * HEAD


async def test_an_only_source_that_lies_once_gets_a_second_chance(tmp_path: Path, hostile: HostileServer) -> None:
    host = Host(tmp_path, transfer={"connections": 1})
    url = publish(hostile, mirror(hostile, "only", corrupt="300000:9@2"))
    outcome = await host.fetch(url)
    assert outcome.code == "ready"
    assert sent(hostile) <= DISK.size + PIECE + SEGMENT + HEAD


@pytest.mark.parametrize("corrupt", [f"{HEAD}:{8 * MIB}", "300000:9"])
async def test_an_only_source_that_always_lies_ends_it_soon(host: Host, hostile: HostileServer, corrupt: str) -> None:
    outcome = await host.fetch(publish(hostile, mirror(hostile, "only", corrupt=corrupt, rate=8 * MIB)))
    assert outcome.code == "CHECKSUM_MISMATCH"
    assert "only" in outcome.failure.message
    assert host.partial_files() == {}
    assert len(hostile.requests) < 30
    assert sent(hostile) <= 2 * DISK.size


async def test_all_mirrors_that_lie_about_one_piece_end_it(host: Host, hostile: HostileServer) -> None:
    urls = [mirror(hostile, name, corrupt="300000:9", rate=16 * MIB) for name in "abc"]
    outcome = await host.fetch(publish(hostile, *urls))
    assert outcome.code == "CHECKSUM_MISMATCH"
    assert len(hostile.requests) < 60


@pytest.mark.parametrize("piece", [PIECE, 2 * MIB])
async def test_a_liar_that_hides_behind_broken_streams_is_found(host: Host, hostile: HostileServer, piece: int) -> None:
    """Each stream breaks in the middle of a piece, so that several sources give parts of one."""
    lying = mirror(hostile, "lying", corrupt=f"{HEAD}:{8 * MIB}", cut="200000@2-6", rate=8 * MIB)
    good = mirror(hostile, "good", cut="300000@2-6", rate=8 * MIB)
    outcome = await host.fetch(publish(hostile, lying, good, piece=piece))
    assert outcome.code == "ready"
    assert_banned(outcome, "lying")
    assert told(outcome, "good").code != "CHECKSUM_MISMATCH"
    assert sent(hostile) <= 3 * DISK.size


async def test_a_slow_liar_whose_bytes_are_taken_over_does_no_harm(tmp_path: Path, hostile: HostileServer) -> None:
    host = Host(tmp_path, transfer={"stall_timeout_s": 15.0})
    lying = mirror(hostile, "lying", corrupt=f"{HEAD}:{8 * MIB}", rate="200000@2-")
    outcome = await host.fetch(publish(hostile, lying, mirror(hostile, "good")))
    assert outcome.code == "ready"
    assert sent(hostile) <= 2 * DISK.size


async def test_when_every_stream_of_two_mirrors_breaks_and_both_lie_it_ends(host: Host, hostile: HostileServer) -> None:
    """No piece ever comes from one source alone."""
    urls = [mirror(hostile, name, corrupt=f"{HEAD}:{8 * MIB}", cut="150000@2-") for name in "ab"]
    outcome = await asyncio.wait_for(host.fetch(publish(hostile, *urls, piece=2 * MIB)), 10)
    assert outcome.code == "CHECKSUM_MISMATCH"


@pytest.mark.parametrize("facts", [{"hashes": ()}, {"hashes": (), "false_hashes": {"md5": "0" * 32}}])
async def test_pieces_are_used_without_a_checksum_of_the_whole(
    host: Host, hostile: HostileServer, facts: dict[str, object]
) -> None:
    lying = mirror(hostile, "lying", corrupt=f"{HEAD}:{8 * MIB}", rate=8 * MIB)
    outcome = await host.fetch(publish(hostile, lying, mirror(hostile, "good"), **facts), expected=DISK)
    assert outcome.code == ("ready" if len(facts) == 1 else "CHECKSUM_MISMATCH")


@pytest.mark.parametrize("piece", [1000, 65537, 3 * MIB, 8 * MIB, 9 * MIB])
async def test_pieces_may_have_any_length(host: Host, hostile: HostileServer, piece: int) -> None:
    outcome = await host.fetch(publish(hostile, *(mirror(hostile, name) for name in "ab"), piece=piece), expected=DISK)
    assert outcome.code == "ready"
    assert sent(hostile) <= DISK.size + 2 * HEAD


async def test_wrong_pieces_of_a_document_cannot_make_wrong_bytes_ready(host: Host, hostile: HostileServer) -> None:
    false = GeneratedContent(DISK.size, seed=4)
    hostile.add("disk.img.meta4", metalink4(MetalinkFile(false, [mirror(hostile, "good")], hashes=(), piece=PIECE)))
    outcome = await host.fetch(hostile.url("disk.img.meta4"), expected=DISK)
    assert outcome.code == "CHECKSUM_MISMATCH"
    hostile.add("false", false)
    hostile.add("disk.img.meta4", metalink4(MetalinkFile(false, [hostile.url("false")], hashes=(), piece=PIECE)))
    outcome = await host.fetch(hostile.url("disk.img.meta4"), expected=DISK)
    assert outcome.code == "CHECKSUM_MISMATCH"
    assert host.partial_files() == {}


@pytest.mark.parametrize("good_first", [True, False])
async def test_in_one_stream_without_ranges_a_wrong_piece_ends_it_early(
    host: Host, hostile: HostileServer, *, good_first: bool
) -> None:
    lying = mirror(hostile, "lying", corrupt=f"{HEAD}:9", ranges="off")
    good = mirror(hostile, "good", ranges="off")
    urls = (good, lying) if good_first else (lying, good)
    outcome = await host.fetch(publish(hostile, *urls, hashes=("sha-256",)))
    assert outcome.code == "ready"
    if not good_first:
        assert_banned(outcome, "lying")


async def test_pieces_alone_never_make_a_cut_file_ready(host: Host, hostile: HostileServer) -> None:
    url = publish(hostile, mirror(hostile, "lying", corrupt="5000000:9", ranges="off"), hashes=())
    outcome = await host.fetch(url)
    assert outcome.code == "CHECKSUM_MISMATCH"


async def stopped_midway(host: Host, hostile: HostileServer, url: str, name: str, *, held: int) -> Checkpoint:
    """Cancel a fetch while replies are held, and give what was journaled."""
    async with asyncio.TaskGroup() as group:
        task = group.create_task(host.run(url, expected=DISK))
        await eventually(lambda: hostile.holding(name) >= held)
        await eventually(lambda: list((host.pool / STAGING).glob("*.json")), timeout_s=5)
        task.cancel()
    (journal,) = (host.pool / STAGING).glob("*.json")
    checkpoint = Checkpoint.decode(journal.read_bytes())
    assert checkpoint is not None
    return checkpoint


async def test_only_proven_bytes_are_journaled_and_gone_on_from(tmp_path: Path, hostile: HostileServer) -> None:
    host = Host(tmp_path, transfer={"stall_timeout_s": 10.0})
    url = publish(hostile, mirror(hostile, "disk", hold=PIECE + 100_000))
    checkpoint = await stopped_midway(host, hostile, url, "disk", held=4)
    assert all(one.start % PIECE == 0 and one.end % PIECE == 0 for one in checkpoint.stored)
    assert checkpoint.stored.length >= 4 * PIECE
    hostile.release("disk")
    before = sent(hostile)
    assert (await host.fetch(url, expected=DISK)).code == "ready"
    assert sent(hostile) - before <= DISK.size - checkpoint.stored.length + HEAD


async def test_a_partial_volume_without_pieces_is_gone_on_from_with_pieces(
    tmp_path: Path, hostile: HostileServer
) -> None:
    """What is stored ends in the middle of pieces: their other parts must do."""
    host = Host(tmp_path, transfer={"stall_timeout_s": 10.0})
    checkpoint = await stopped_midway(host, hostile, mirror(hostile, "disk", hold=PIECE + 128 * KIB), "disk", held=4)
    assert any(one.end % PIECE for one in checkpoint.stored)
    hostile.release("disk")
    before = sent(hostile)
    outcome = await asyncio.wait_for(host.fetch(publish(hostile, mirror(hostile, "disk")), expected=DISK), 10)
    assert outcome.code == "ready"
    assert isinstance(outcome.state, Ready)
    assert sent(hostile) - before <= DISK.size - checkpoint.stored.length + HEAD
