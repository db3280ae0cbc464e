"""How volumes behind servers are reached: what qemu-nbd is told, and an iSCSI target that wants a password."""

from __future__ import annotations

import base64
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from kvmd.core.allotment import Slot
from kvmd.hypervisor.connection import Connection
from kvmd.hypervisor.volumes import Server, server_of
from kvmd.store.block.remote import arguments
from tests.kvmd.store.blocks import block_store
from tests.kvmd.store.contract import CONTENT, SIZE, make
from tests.support.blockpools import MIB, iscsi_pool
from tests.support.libvirtd import Libvirtd

CEPH = Server("rbd", (("mon1", "6789"), ("fd00::2", "")), "images", user="kvmd", secret=b"c2VjcmV0")


def slot(volume: str) -> Slot:
    """Describe a volume."""
    return Slot("pool", volume, volume, volume, 8 * MIB)


def test_an_rbd_image_is_opened_by_its_monitors_and_its_secret_by_a_file() -> None:
    words = arguments(CEPH, slot("deb,12"), secret=7, is_written=True)
    assert words[-1] == (
        "driver=raw,file.driver=rbd,file.pool=images,file.image=deb,,12,file.server.0.host=mon1,file.server.0.port=6789,"
        "file.server.1.host=fd00::2,file.server.1.port=6789,file.user=kvmd,file.key-secret=secret"
    )
    assert "secret,id=secret,file=/proc/self/fd/7" in words
    assert not any("c2VjcmV0" in word for word in words)
    assert "--read-only" not in words


def test_a_unit_is_opened_by_its_number() -> None:
    server = Server("iscsi-direct", (("fd00::1", ""),), "iqn.x:y", initiator="iqn.me")
    words = arguments(server, slot("unit:0:0:7"), secret=7, is_written=False)
    assert words[-1] == (
        "driver=raw,file.driver=iscsi,file.transport=tcp,file.portal=[fd00::1]:3260,file.target=iqn.x:y,file.lun=7,"
        "file.initiator-name=iqn.me"
    )
    assert "--read-only" in words


def test_a_secret_is_not_shown() -> None:
    assert "c2VjcmV0" not in repr(CEPH)


async def test_libvirts_secret_for_a_target_is_used(tmp_path: Path) -> None:
    uuid, password = "0a81f5b2-8403-7b23-c8d6-21ccc2f80d6f", "longer-than-twelve"
    definition = tmp_path / "secret.xml"
    usage = "<usage type='iscsi'><target>disks</target></usage>"
    definition.write_text(f"<secret ephemeral='no' private='no'><uuid>{uuid}</uuid>{usage}</secret>")
    with Libvirtd() as libvirtd, ThreadPoolExecutor(4) as threads:
        libvirtd.virsh("secret-define", definition)
        libvirtd.virsh("secret-set-value", uuid, "--base64", base64.b64encode(password.encode()).decode())
        with iscsi_pool(libvirtd, sizes=(8 * MIB,), account=("kvmd", password)) as pool:
            connection = Connection(libvirtd.uri)
            server = await connection.call(lambda connect: server_of(connect, pool.name), what="pool")
            placement = await make(block_store(pool, connection, tmp_path, threads))
            await connection.close()
            assert pool.read(placement.path, SIZE) == CONTENT
    assert (server.user, server.secret) == ("kvmd", password.encode())
