"""Compressed files that mean harm are refused, and cost the daemon no memory to speak of."""

from __future__ import annotations

import gzip
import lzma
import struct
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.kvmd.daemon.harness import Daemon, Site, record, running
from tests.support import images
from tests.support.brokers import Broker, MosquittoBroker
from tests.support.hostile import HostileServer
from tests.support.packed import zipped

pytestmark = pytest.mark.parametrize("broker_kind", [MosquittoBroker], ids=["mosquitto"], indirect=True)
MIB = 1 << 20
MOST = 64 * MIB
"""Bytes of memory that a session may cost (CASES: whatever the server sends)."""
ZEROS = images.raw(MIB) + bytes(96 * MIB)
_RLE_BLOCK = 128 << 10


def _of_zstd(*, window_log: int, blocks: int) -> bytes:
    """Make a frame with a boot sector and blocks that are one byte each in the file and 128 KiB unpacked; its window is so large."""
    boot = images.raw(64 << 10)
    frame = struct.pack("<IBB", 0xFD2FB528, 0, (window_log - 10) << 3) + struct.pack("<I", len(boot) << 3)[:3] + boot
    block = struct.pack("<I", 1 << 1 | _RLE_BLOCK << 3)[:3] + b"x"
    last = struct.pack("<I", 1 | 1 << 1 | _RLE_BLOCK << 3)[:3] + b"x"
    return frame + block * blocks + last


def _of_xz(*, dictionary: int) -> bytes:
    """Make a file whose dictionary is as large as this code of LZMA2 says; 40 is 4 GiB."""
    packed = bytearray(lzma.compress(images.raw(MIB)))
    start, size = 12, (packed[12] + 1) * 4
    packed[start + 4] = dictionary
    packed[start + size - 4 : start + size] = zlib.crc32(packed[start : start + size - 4]).to_bytes(4, "little")
    return bytes(packed)


BOMBS: Mapping[str, Callable[[], bytes]] = {
    "gzip of zeros": lambda: gzip.compress(ZEROS, 9),
    "xz of zeros": lambda: lzma.compress(ZEROS, preset=0),
    "zip of zeros": lambda: zipped(("disk.img", ZEROS)),
    "zstd with a window of 2 GiB": lambda: _of_zstd(window_log=31, blocks=1000),
    "zstd of blocks of one byte": lambda: _of_zstd(window_log=20, blocks=1000),
    "xz with a dictionary of 4 GiB": lambda: _of_xz(dictionary=40),
}


def _most_memory(daemon: Daemon) -> int:
    """Give the most memory that the daemon has ever had, in bytes."""
    status = Path(f"/proc/{daemon.python().pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) << 10


async def test_archives_that_mean_harm_cost_no_memory(
    broker: Broker, lab: Site, hostile: HostileServer, tmp_path: Path
) -> None:
    tables = {"policy": {"max_virtual_size": "64MiB"}}
    async with running(Daemon(tmp_path / "kvm01", broker.url, tables=tables)) as daemon:
        before = _most_memory(daemon)
        for number, (name, make) in enumerate(BOMBS.items()):
            hostile.add(name, make())
            await lab.deploy(record(f"t{number}", hostile.url(name)))
            failed = await lab.watch.replica(f"t{number}", "failed", timeout_s=30)
            assert failed.code in {"TOO_LARGE", "DECOMPRESS", "VIRTUAL_SIZE"}, f"{name}: {failed}"
            assert _most_memory(daemon) - before < MOST, name
        assert daemon.leftovers() == []
        assert [path.name for path in daemon.pool.iterdir()] == [".kvmd"]
