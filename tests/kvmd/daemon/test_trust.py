"""What a replica's status says of trust where the event has no checksum of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kvmd.daemon.harness import Daemon, Site, record, running, sha256
from tests.support import images
from tests.support.brokers import Broker, NatsBroker
from tests.support.hostile import HostileServer, hexdigest
from tests.support.keys import Keys
from tests.support.metalinks import MetalinkFile, metalink4

pytestmark = pytest.mark.parametrize("broker_kind", [NatsBroker], ids=["nats"], indirect=True)

IMAGE = images.qcow2(data_size=256 << 10)
SUMS = f"{hexdigest(IMAGE)}  disk.qcow2\n".encode()


@pytest.fixture
def url(hostile: HostileServer) -> str:
    hostile.add("disk.qcow2", IMAGE)
    return hostile.url("disk.qcow2")


@pytest.fixture(scope="module")
def keys() -> Iterator[Keys]:
    """Make the publisher's key."""
    with Keys() as made:
        made.make("publisher")
        yield made


@pytest.mark.usefixtures("kvmd")
async def test_a_checksum_that_is_a_url_is_read_and_checked(lab: Site, url: str, hostile: HostileServer) -> None:
    hostile.add("sums", SUMS)
    await lab.deploy(record("deb12", url, checksum=hostile.url("sums", token="s3cret")))

    ready = await lab.watch.replica("deb12", "ready")
    assert (ready.trust, ready.checksum) == ("none", sha256(IMAGE))
    assert "SHA-256" in ready.message
    assert "/sums" in ready.message
    assert "nobody has signed" in ready.message
    assert "s3cret" not in ready.model_dump_json()


@pytest.mark.usefixtures("kvmd")
async def test_a_file_without_the_image_is_told(lab: Site, url: str, hostile: HostileServer) -> None:
    hostile.add("sums", b"0" * 64 + b"  other\n")
    await lab.deploy(record("deb12", url, checksum=hostile.url("sums")))

    failed = await lab.watch.replica("deb12", "failed")
    assert (failed.code, failed.trust) == ("CHECKSUM_FORMAT", "none")


@pytest.mark.usefixtures("kvmd")
async def test_a_metalink_is_deployed_with_its_checksum(lab: Site, url: str, hostile: HostileServer) -> None:
    hostile.add("disk.meta4", metalink4(MetalinkFile(IMAGE, [url], piece=64 << 10)))
    await lab.deploy(record("deb12", hostile.url("disk.meta4")))

    ready = await lab.watch.replica("deb12", "ready")
    assert (ready.trust, ready.checksum) == ("none", sha256(IMAGE))
    assert "Metalink" in ready.message


@pytest.mark.parametrize("is_signed", [True, False])
async def test_where_a_checksum_is_required_only_a_signed_one_will_do(
    broker: Broker, lab: Site, url: str, hostile: HostileServer, tmp_path: Path, keys: Keys, *, is_signed: bool
) -> None:
    ring = await asyncio.to_thread(keys.export, tmp_path / "ring.gpg", "publisher")
    hostile.add("SHA256SUMS", SUMS)
    if is_signed:
        hostile.add("SHA256SUMS.gpg", await asyncio.to_thread(keys.sign, SUMS, "publisher"))
    tables = {"policy": {"require_checksum": True, "keyring": str(ring)}}
    async with running(Daemon(tmp_path / "kvm01", broker.url, tables=tables)):
        await lab.deploy(record("deb12", url))
        if is_signed:
            ready = await lab.watch.replica("deb12", "ready")
            assert (ready.trust, ready.checksum) == ("checksum", sha256(IMAGE))
            assert "signed by a key" in ready.message
        else:
            failed = await lab.watch.replica("deb12", "failed")
            assert failed.code == "POLICY"
