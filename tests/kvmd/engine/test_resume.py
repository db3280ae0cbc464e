"""Going on with a partial volume after what is known of the image has changed."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import pytest

from kvmd.core import plan
from kvmd.engine import landing
from tests.kvmd.engine.fetching import Host
from tests.support.hostile import GeneratedContent, HostileServer, hexdigest
from tests.support.metalinks import MetalinkFile, metalink4
from tests.support.ports import free_port
from tests.support.waiting import eventually

MIB, KIB = 1 << 20, 1 << 10
DISK = GeneratedContent(8 * MIB, seed=3)
OTHER = GeneratedContent(8 * MIB, seed=9)
SMALL = GeneratedContent(MIB, seed=2)
SLOWLY = MIB // 2


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    """Make a host that works in small steps, and may download mirrors of a Metalink from loopback."""
    for name in ("FIRST_SEGMENT", "MIN_SEGMENT", "MAX_SEGMENT"):
        monkeypatch.setattr(plan, name, MIB)
    monkeypatch.setattr(plan, "MAX_BLOCK", 128 * KIB)
    monkeypatch.setattr(landing, "WINDOW", 512 * KIB)
    transfer = {"connections": 4, "connections_per_source": 2, "stall_timeout_s": 5.0}
    return Host(tmp_path, transfer=transfer, policy={"allowed_networks": ["127.0.0.0/8"]})


async def test_bytes_of_a_mirror_are_not_gone_on_from_when_nothing_proves_them_any_more(
    host: Host, hostile: HostileServer
) -> None:
    hostile.add("a", DISK)
    hostile.add("b", OTHER)
    hostile.add("m.meta4", metalink4(MetalinkFile(DISK, [hostile.url("b", rate=3 * MIB)])))
    urls = [hostile.url("a", rate=SLOWLY), hostile.url("m.meta4")]
    await interrupted(host, *urls)
    hostile.add("m.meta4", b"gone")
    outcome = await host.run(*urls)
    assert outcome.code == "ready"
    assert hashlib.sha256(outcome.path.read_bytes()).hexdigest() == hexdigest(DISK)


async def test_an_image_that_was_published_anew_is_downloaded_anew(host: Host, hostile: HostileServer) -> None:
    publish(hostile, DISK)
    url = hostile.url("disk.img", rate=SLOWLY)
    await interrupted(host, url)
    publish(hostile, OTHER)
    outcome = await host.run(hostile.url("disk.img"))
    assert outcome.code == "ready"
    assert hashlib.sha256(outcome.path.read_bytes()).hexdigest() == hexdigest(OTHER)


async def test_a_slow_source_beside_a_metalink_of_dead_mirrors_is_waited_for(
    host: Host, hostile: HostileServer
) -> None:
    hostile.add("small", SMALL)
    hostile.add("m.meta4", metalink4(MetalinkFile(SMALL, [f"http://127.0.0.1:{free_port()}/small"])))
    outcome = await host.fetch(hostile.url("m.meta4"), hostile.url("small", delay=1.5), expected=SMALL)
    assert outcome.code == "ready"


def publish(hostile: HostileServer, content: GeneratedContent) -> None:
    """Serve the image, and its checksum beside it."""
    hostile.add("disk.img", content)
    hostile.add("disk.img.sha256", f"{hexdigest(content)}  disk.img\n".encode())


async def interrupted(host: Host, *urls: str) -> None:
    """Begin a download, and cancel it once something of it is journaled."""
    task = asyncio.create_task(host.run(*urls))
    await eventually(lambda: any(name.endswith(".json") for name in host.partial_files()), timeout_s=5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
