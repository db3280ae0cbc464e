"""Images for the demo: a bootable one where the tools are at hand, else a valid qcow2 of random bytes."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from pathlib import Path

TOOLS = ("grub-mkrescue", "xorriso", "mformat", "qemu-img")
_CLUSTER = 65536
_FIRST_DATA = 5  # after header, refcount table, refcount block, L1 and L2: a cluster each
_COPIED = 1 << 63  # "refcount is exactly one": the writer need not copy the cluster
_GRUB = """\
serial --unit=0 --speed=115200
terminal_input serial
terminal_output serial
echo "KVMD-DEMO-BOOTED"
halt
"""


def make_image(folder: Path) -> Path:
    """Write ``demo.qcow2`` into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    image = folder / "demo.qcow2"
    if all(map(shutil.which, TOOLS)):
        _make_bootable(folder, image)
    else:
        write_qcow2(image, clusters=64)
    print(f"made {image.name}: {image.stat().st_size / 2**20:.1f} MiB", flush=True)
    return image


def _make_bootable(folder: Path, image: Path) -> None:
    """Make a hybrid ISO whose GRUB greets on the serial console and halts, and convert it to qcow2."""
    tree, iso = folder / "tree", folder / "demo.iso"
    (tree / "boot/grub").mkdir(parents=True)
    (tree / "boot/grub/grub.cfg").write_text(_GRUB)
    for words in (
        ["grub-mkrescue", "-o", iso, tree],
        ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", iso, image],
    ):
        subprocess.run(words, check=True, capture_output=True)
    shutil.rmtree(tree)
    iso.unlink()


def write_qcow2(path: Path, *, clusters: int) -> None:
    """Write a qcow2 (version 3) with so many clusters of 64 KiB of random content; at most 8192 fit into one L2 table."""
    header = struct.pack(
        ">4sIQIIQIIQQIIQQQQII",
        b"QFI\xfb",
        3,  # version
        0,  # no backing file
        0,
        16,  # cluster bits
        clusters * _CLUSTER,  # virtual size
        0,  # no encryption
        1,  # entries of L1
        3 * _CLUSTER,  # L1
        1 * _CLUSTER,  # refcount table
        1,  # its clusters
        0,  # no snapshots
        0,
        0,  # incompatible,
        0,  # compatible and
        0,  # autoclear features
        4,  # refcounts have 1 << 4 bits
        104,  # length of this header
    )
    count = _FIRST_DATA + clusters
    l2 = struct.pack(f">{clusters}Q", *(n * _CLUSTER | _COPIED for n in range(_FIRST_DATA, count)))
    refcounts = struct.pack(f">{count}H", *([1] * count))
    with path.open("wb") as file:
        for table in (
            header,
            struct.pack(">Q", 2 * _CLUSTER),
            refcounts,
            struct.pack(">Q", 4 * _CLUSTER | _COPIED),
            l2,
        ):
            file.write(table.ljust(_CLUSTER, b"\0"))
        for _ in range(clusters):
            file.write(os.urandom(_CLUSTER))
