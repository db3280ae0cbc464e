"""The image zoo: files of every format and with every reason to refuse them, each made here."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import struct
import subprocess
import tarfile
import uuid
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

from kvmwire.codes import FailureCode
from tests.support import images
from tests.support.programs import require_program

KIB, MIB = 1 << 10, 1 << 20
CANARY = "/etc/shadow"
"""What images name as another file; nothing may open it."""


@dataclass(frozen=True)
class Animal:
    """A file and what is to be found; ``code`` None: accepted. ``make`` writes it to the path."""

    name: str
    make: Callable[[Path], None]
    format: str
    code: FailureCode | None = None
    virtual_size: int | None = None


def patched(offset: int, layout: str, *values: int | bytes, content: bytes | None = None) -> bytes:
    """Overwrite some fields, by default those of a small qcow2."""
    image = bytearray(content or images.qcow2())
    struct.pack_into(layout, image, offset, *values)
    return bytes(image)


def with_extension(kind: int, content: bytes, *, length: int | None = None) -> bytes:
    """Give a qcow2 whose header is followed by one extension; ``length``: what it says of itself."""
    told = len(content) if length is None else length
    return patched(104, f">II{len(content)}s", kind, told, content)


def backed(name: str = CANARY) -> bytes:
    """Give a qcow2 that names a backing file."""
    return patched(1024, f"{len(name)}s", name.encode(), content=patched(8, ">QI", 1024, len(name)))


def vmdk(  # noqa: PLR0913 - one argument a field
    *, kind: str = "monolithicSparse", capacity: int = 2048, extents: str = 'RW 2048 SPARSE "disk.vmdk"', more: str = "",
    parent: str = "ffffffff", descriptor: int = 1, directory: int = 21, grain: int = 128, entries: int = 512,
    flags: int = 3, compression: int = 0, version: int = 1,
) -> bytes:  # fmt: skip
    """Give a sparse VMDK with its descriptor inside."""
    header = struct.pack(
        "<4sIIQQQQIQQQBBBBBH", b"KDMV", version, flags, capacity, grain, descriptor, 20, entries, 0, directory, 128,
        0, 10, 32, 13, 10, compression,
    )  # fmt: skip
    text = (
        f"# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID={parent}\n"
        f'createType="{kind}"\n{more}\n# Extent description\n{extents}\n'
    )
    return header.ljust(512, b"\0") + text.encode().ljust(20 * 512, b"\0") + bytes(117 * 512)


def vhd(kind: int = 2, *, size: int = MIB) -> bytes:
    """Give a footer of VHD."""
    footer = bytearray(
        struct.pack(">8sIIQIIIIQQIII", b"conectix", 2, 0x10000, 512, 0, 0x71656D75, 0x50003, 0, size, size, 0, kind, 0)
    ).ljust(512, b"\0")
    struct.pack_into(">I", footer, 64, ~sum(footer) & 0xFFFFFFFF)
    return bytes(footer)


def differencing_vhd() -> bytes:
    """Give a VHD that needs its parent, which it names."""
    dynamic = bytearray(b"cxsparse".ljust(1024, b"\0"))
    dynamic[64 : 64 + 2 * len(CANARY)] = CANARY.encode("utf-16-be")
    return vhd(4) + bytes(dynamic) + bytes(4096) + vhd(4)


def qed(*, backing: bool) -> bytes:
    """Give a header of QED."""
    header = struct.pack("<4sIIIQQQQQII", b"QED\0", 65536, 4, 1, int(backing), 0, 0, 65536, MIB, 72, len(CANARY))
    return (header + CANARY.encode()).ljust(256 * KIB, b"\0")


def gpt(*, size: int = MIB, disk: int | None = None, sector: int = 512) -> bytes:
    """Give a disk of one EFI system partition; ``disk`` is the size that the table is for."""
    last = (disk or size) // sector - 1
    guid = uuid.UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b").bytes_le
    entry = struct.pack("<16s16sQQQ72s", guid, bytes(range(16)), 40, last - 40, 0, "EFI".encode("utf-16-le"))
    header = bytearray(
        struct.pack("<8sIIIIQQQQ16sQIII", b"EFI PART", 0x10000, 92, 0, 0, 1, last, 34, last - 34, guid, 2, 128, 128, 0)
    )
    struct.pack_into("<I", header, 16, crc32(header))
    disk_bytes = bytearray(size)
    struct.pack_into("<B3sB3sII", disk_bytes, 446, 0, b"\0\2\0", 0xEE, b"\xff\xff\xff", 1, 0xFFFFFFFF)
    disk_bytes[510:512] = b"\x55\xaa"
    disk_bytes[sector : sector + 92] = header
    disk_bytes[2 * sector : 2 * sector + 128] = entry
    return bytes(disk_bytes)


def udf_bridge() -> bytes:
    """Give an ISO with the sequence that UDF is recognised by behind its descriptors."""
    disc = bytearray(images.iso(MIB))
    for sector, name in ((18, b"\0BEA01\1"), (19, b"\0NSR02\1"), (20, b"\0TEA01\1")):
        disc[sector * 2048 : sector * 2048 + 7] = name
    return bytes(disc)


def plain(content: bytes) -> Callable[[Path], None]:
    """Write these bytes."""

    def write(path: Path) -> None:
        path.write_bytes(content)

    return write


def created(kind: str, *options: str, size: str = "64M") -> Callable[[Path], None]:
    """Let qemu-img make it; files beside it get the names base and data."""

    def make(path: Path) -> None:
        run("create", "-q", "-f", kind, *(option.format(folder=path.parent) for option in options), str(path), size)

    return make


def changed(make: Callable[[Path], None], change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """Make it, then change its bytes."""

    def make_changed(path: Path) -> None:
        make(path)
        path.write_bytes(change(path.read_bytes()))

    return make_changed


def run(*words: str) -> None:
    """Run qemu-img."""
    command = [str(require_program("qemu-img")), *words]
    for _ in range(50):  # LUKS measures how fast the processor is, and gives up on a busy machine
        done = subprocess.run(command, check=False, timeout=15, capture_output=True)
        if b"CPU usage" not in done.stderr:
            break
    done.check_returncode()


def over_base(kind: str) -> Callable[[Path], None]:
    """Let qemu-img make an image that needs another one."""

    def make(path: Path) -> None:
        base = path.with_name("base")
        run("create", "-q", "-f", kind, str(base), "1M")
        run("create", "-q", "-f", kind, "-F", kind, "-b", str(base), str(path))

    return make


def snapshotted(path: Path) -> None:
    """Let qemu-img make an image with an internal snapshot and a bitmap."""
    run("create", "-q", "-f", "qcow2", str(path), "1M")
    run("snapshot", "-c", "before", str(path))
    run("bitmap", "--add", str(path), "dirty-blocks")


def filled(*options: str, kind: str = "qcow2") -> Callable[[Path], None]:
    """Let qemu-img convert a disk full of data."""

    def make(path: Path) -> None:
        source = path.with_name("source")
        source.write_bytes(images.raw(MIB))
        run("convert", "-f", "raw", "-O", kind, *options, str(source), str(path))

    return make


def _zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("disk.img", "x")
    return file.getvalue()


def _tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("disk.img"))
    return file.getvalue()


def _luks_secret() -> tuple[str, ...]:
    return ("--object", "secret,id=s,data=x", "-o")


DESCRIPTOR = f'# Disk DescriptorFile\nversion=1\ncreateType="monolithicFlat"\nRW 63 FLAT "{CANARY}" 0\n'.encode()
LUKS_IN_QCOW2 = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10"
U, D, T = FailureCode.IMAGE_UNSAFE, FailureCode.IMAGE_INVALID, FailureCode.IMAGE_TRUNCATED
M, A, V, P = (
    FailureCode.FORMAT_MISMATCH,
    FailureCode.FORMAT_AMBIGUOUS,
    FailureCode.VIRTUAL_SIZE,
    FailureCode.POLICY,
)


def _logged_vhdx(content: bytes) -> bytes:
    """Give both headers a log that is to be replayed, and their checksums."""
    from kvmd.core.image.vhdx import crc32c  # noqa: PLC0415 - only this one needs it

    image = bytearray(content)
    for at in (64 * KIB, 128 * KIB):
        image[at + 48 : at + 64] = b"\1" * 16
        image[at + 4 : at + 8] = bytes(4)
        struct.pack_into("<I", image, at + 4, crc32c(bytes(image[at : at + 4096])))
    return bytes(image)


def _parented_vhdx(content: bytes) -> bytes:
    """Set the flag of a parent in the file parameters, wherever qemu-img has put them."""
    image = bytearray(content)
    key = uuid.UUID("caa16737-fa36-4d43-b3b6-33f0aa44e76b").bytes_le
    table = image.index(b"metadata")
    at = table + struct.unpack_from("<I", image, image.index(key, table) + 16)[0]
    image[at + 4] |= 2
    return bytes(image)


ZOO = (
    Animal("qcow2 v3", created("qcow2"), "qcow2", virtual_size=64 * MIB),
    Animal("qcow2 v2", created("qcow2", "-o", "compat=0.10"), "qcow2", virtual_size=64 * MIB),
    Animal("qcow2 clusters of 512", created("qcow2", "-o", "cluster_size=512"), "qcow2", virtual_size=64 * MIB),
    Animal("qcow2 clusters of 2M", created("qcow2", "-o", "cluster_size=2M"), "qcow2", virtual_size=64 * MIB),
    Animal("qcow2 extended l2 and zstd", created("qcow2", "-o", "extended_l2=on,compression_type=zstd"), "qcow2"),
    Animal("qcow2 one-bit refcounts, preallocated", created("qcow2", "-o", "refcount_bits=1,preallocation=metadata"), "qcow2"),
    Animal("qcow2 of 0 bytes", created("qcow2", size="0"), "qcow2", virtual_size=0),
    Animal("qcow2 of 1P", created("qcow2", "-o", "cluster_size=2M", size="1P"), "qcow2", virtual_size=1 << 50),
    Animal("qcow2 full", filled(), "qcow2", virtual_size=MIB),
    Animal("qcow2 compressed", filled("-c"), "qcow2", virtual_size=MIB),
    Animal("qcow2 compressed with zstd", filled("-c", "-o", "compression_type=zstd"), "qcow2", virtual_size=MIB),
    Animal("qcow2 snapshot and bitmap", snapshotted, "qcow2", virtual_size=MIB),
    Animal("qcow2 luks", created("qcow2", *_luks_secret(), LUKS_IN_QCOW2), "qcow2", P),
    Animal("qcow2 aes", plain(patched(32, ">I", 1)), "qcow2", U),
    Animal("qcow2 backing file", plain(backed()), "qcow2", U),
    Animal("qcow2 backing file json:", plain(backed('json:{"driver":"file","filename":"/etc/shadow"}')), "qcow2", U),
    Animal("qcow2 backing file of qemu", over_base("qcow2"), "qcow2", U),
    Animal("qcow2 data file of qemu", created("qcow2", "-o", "data_file={folder}/data"), "qcow2", U),
    Animal("qcow2 raw data file of qemu", created("qcow2", "-o", "data_file={folder}/data,data_file_raw=on"), "qcow2", U),
    Animal("qcow2 data file named without its bit", plain(with_extension(0x44415441, CANARY.encode())), "qcow2", U),
    Animal("qcow2 data-file-raw without a data file", plain(patched(88, ">Q", 2)), "qcow2", D),
    Animal("qcow2 unknown incompatible bit", plain(patched(72, ">Q", 1 << 5)), "qcow2", U),
    Animal("qcow v1", plain(patched(4, ">I", 1)), "qcow2", U),
    Animal("qcow2 v9", plain(patched(4, ">I", 9)), "qcow2", U),
    Animal("qcow2 dirty", plain(patched(72, ">Q", 1)), "qcow2", D),
    Animal("qcow2 corrupt", plain(patched(72, ">Q", 2)), "qcow2", D),
    Animal("qcow2 cluster_bits 8", plain(patched(20, ">I", 8)), "qcow2", D),
    Animal("qcow2 cluster_bits 31", plain(patched(20, ">I", 31)), "qcow2", D),
    Animal("qcow2 refcount_order 7", plain(patched(96, ">I", 7)), "qcow2", D),
    Animal("qcow2 header length 105", plain(patched(100, ">I", 105)), "qcow2", D),
    Animal("qcow2 crypt_method 3", plain(patched(32, ">I", 3)), "qcow2", D),
    Animal("qcow2 extension longer than its area", plain(with_extension(0x12345678, b"", length=1 << 30)), "qcow2", D),
    Animal("qcow2 bitmaps extension cut", plain(with_extension(0x23852875, bytes(8))), "qcow2", D),
    Animal("qcow2 bitmaps absurd", plain(with_extension(0x23852875, struct.pack(">IIQQ", 1 << 31, 0, 64, 65536))), "qcow2", D),
    Animal("qcow2 unknown extension", plain(with_extension(0x12345678, b"whatever")), "qcow2"),
    Animal("qcow2 compression type without its bit", plain(patched(104, "B", 1, content=patched(100, ">I", 112))), "qcow2", D),
    Animal("qcow2 L1 too small", plain(patched(36, ">I", 0)), "qcow2", D),
    Animal("qcow2 L1 absurd", plain(patched(36, ">I", 0xFFFFFFFF)), "qcow2", D),
    Animal("qcow2 L1 between clusters", plain(patched(40, ">Q", 513)), "qcow2", D),
    Animal("qcow2 L1 over the header", plain(patched(40, ">Q", 0)), "qcow2", D),
    Animal("qcow2 L1 over the refcount table", plain(patched(40, ">Q", 65536)), "qcow2", D),
    Animal("qcow2 L1 behind the end", plain(patched(40, ">Q", 1 << 40)), "qcow2", T),
    Animal("qcow2 refcount table absurd", plain(patched(56, ">I", 0xFFFFFFFF)), "qcow2", D),
    Animal("qcow2 no refcount table", plain(patched(56, ">I", 0)), "qcow2", D),
    Animal("qcow2 snapshots absurd", plain(patched(60, ">I", 0xFFFFFFFF)), "qcow2", D),
    Animal("qcow2 snapshots behind the end", plain(patched(60, ">IQ", 1, 1 << 40)), "qcow2", T),
    Animal("qcow2 of 8 EiB", plain(patched(24, ">Q", 1 << 63)), "qcow2", V),
    Animal("qcow2 of 1000 bytes", plain(patched(24, ">Q", 1000)), "qcow2", D),
    Animal("qcow2 without its last cluster", plain(images.qcow2()[:-65536]), "qcow2", T),
    Animal("qcow2 header alone", plain(images.qcow2()[:65536]), "qcow2", T),
    Animal("qcow2 cut in the header", plain(images.qcow2()[:80]), "qcow2", D),
    Animal("qcow2 L2 table behind the end", plain(patched(3 * 65536, ">Q", 1 << 40 | 1 << 63)), "qcow2", T),
    Animal("qcow2 L2 table between clusters", plain(patched(3 * 65536, ">Q", 4 * 65536 + 512)), "qcow2", D),
    Animal("qcow2 refcount block behind the end", plain(patched(65536, ">Q", 1 << 40)), "qcow2", T),
    Animal("raw of zeros", plain(bytes(MIB)), "raw", virtual_size=MIB),
    Animal("raw mbr", plain(images.raw()), "raw", virtual_size=MIB),
    Animal("raw mbr cut", plain(images.raw()[: MIB // 2]), "raw", T),
    Animal("raw gpt", plain(gpt()), "raw", virtual_size=MIB),
    Animal("raw gpt of 4096-byte sectors", plain(gpt(sector=4096)), "raw", virtual_size=MIB),
    Animal("raw gpt cut", plain(gpt(disk=2 * MIB)), "raw", T),
    Animal("iso", plain(images.iso()), "iso", virtual_size=MIB),
    Animal("iso hybrid mbr", plain(images.iso(hybrid=True)), "iso"),
    Animal("iso hybrid gpt", plain(gpt()[:32768] + images.iso()[32768:]), "iso"),
    Animal("iso with udf", plain(udf_bridge()), "iso"),
    Animal("iso cut", plain(images.iso(2 * MIB)[:MIB]), "iso", T),
    Animal("iso without a primary descriptor", plain(patched(32768, "B", 255, content=images.iso())), "iso", D),
    Animal("qcow2 and iso", plain(patched(32769, "5s", b"CD001")), "qcow2", A),
    Animal("vmdk and iso", plain(patched(32769, "5s", b"CD001", content=vmdk())), "vmdk", A),
    Animal("iso and vhd", plain(images.iso() + vhd()), "iso", A),
    Animal("vmdk monolithicSparse", created("vmdk"), "vmdk", virtual_size=64 * MIB),
    Animal("vmdk streamOptimized", filled("-o", "subformat=streamOptimized", kind="vmdk"), "vmdk"),
    Animal("vmdk monolithicFlat", created("vmdk", "-o", "subformat=monolithicFlat"), "vmdk", U),
    Animal("vmdk twoGbMaxExtentSparse", created("vmdk", "-o", "subformat=twoGbMaxExtentSparse"), "vmdk", U),
    Animal("vmdk over a parent", over_base("vmdk"), "vmdk", U),
    Animal("vmdk flat extent elsewhere", plain(vmdk(kind="monolithicFlat", extents=f'RW 2048 FLAT "{CANARY}" 0')), "vmdk", U),
    Animal("vmdk flat extent in a sparse one", plain(vmdk(extents=f'RW 2048 FLAT "{CANARY}" 0')), "vmdk", U),
    Animal("vmdk two extents", plain(vmdk(extents='RW 1024 SPARSE "a"\nRW 1024 SPARSE "b"')), "vmdk", U),
    Animal("vmdk parent CID", plain(vmdk(parent="deadbeef")), "vmdk", U),
    Animal("vmdk parent hint", plain(vmdk(more=f'parentFileNameHint="{CANARY}"')), "vmdk", U),
    Animal("vmdk without a descriptor", plain(vmdk(descriptor=0)), "vmdk", U),
    Animal("vmdk of no capacity", plain(vmdk(capacity=0)), "vmdk", U),
    Animal("vmdk absurd capacity", plain(vmdk(capacity=(1 << 63) - 1)), "vmdk", D),
    Animal("vmdk grain of 3 sectors", plain(vmdk(grain=3)), "vmdk", D),
    Animal("vmdk grain directory behind the end", plain(vmdk(directory=1 << 30)), "vmdk", T),
    Animal("vmdk stream without its footer", plain(vmdk(directory=(1 << 64) - 1, kind="streamOptimized")), "vmdk", T),
    Animal("vmdk descriptor alone", plain(DESCRIPTOR), "vmdk", U),
    Animal("vmdk of esx", plain(b"COWD".ljust(MIB, b"\0")), "vmdk", U),
    Animal("vhdx", created("vhdx"), "vhdx", virtual_size=64 * MIB),
    Animal("vhdx fixed", filled("-o", "subformat=fixed", kind="vhdx"), "vhdx"),
    Animal("vhdx with a log", changed(created("vhdx"), _logged_vhdx), "vhdx", D),
    Animal("vhdx over a parent", changed(created("vhdx"), _parented_vhdx), "vhdx", U),
    Animal("vhdx without its data", changed(filled(kind="vhdx"), lambda content: content[: 4 * MIB]), "vhdx", T),
    Animal("vhdx without headers", plain(b"vhdxfile".ljust(MIB, b"\0")), "vhdx", D),
    Animal("vhdx cut", changed(created("vhdx"), lambda content: content[: 2 * MIB]), "vhdx", D),
    Animal("vhd dynamic", created("vpc", "-o", "force_size=on"), "vhd", M, virtual_size=64 * MIB),
    Animal("vhd fixed", created("vpc", "-o", "subformat=fixed,force_size=on", size="1M"), "vhd", M, virtual_size=MIB),
    Animal("vhd differencing", plain(differencing_vhd()), "vhd", U),
    Animal("vhd without its end", changed(created("vpc"), lambda content: content[:-512]), "vhd", T),
    Animal("vhd of type 9", plain(vhd(9) + bytes(1024) + vhd(9)), "vhd", D),
    Animal("vdi", created("vdi"), "vdi", M, virtual_size=64 * MIB),
    Animal("vdi differencing", changed(created("vdi"), lambda content: patched(76, "<I", 4, content=content)), "vdi", U),
    Animal("vdi undo", changed(created("vdi"), lambda content: patched(76, "<I", 3, content=content)), "vdi", U),
    Animal("vdi cut", changed(filled(kind="vdi"), lambda content: content[:-MIB]), "vdi", T),
    Animal("qed of qemu", created("qed"), "qed", U, virtual_size=64 * MIB),
    Animal("qed over a backing file", plain(qed(backing=True)), "qed", U),
    Animal("luks of qemu", created("luks", *_luks_secret(), "key-secret=s,iter-time=10", size="1M"), "luks", M, virtual_size=MIB),
    Animal("luks v2", plain(b"LUKS\xba\xbe\0\2" + bytes(4096)), "luks", M),
    Animal("luks v7", plain(b"LUKS\xba\xbe\0\7" + bytes(4096)), "luks", D),
    Animal("parallels", created("parallels"), "parallels", M),
    Animal("bochs", plain(b"Bochs Virtual HD Image".ljust(MIB, b"\0")), "bochs", M),
    Animal("cloop", plain(b"#!/bin/sh\n#V2.0 Format\nmodprobe".ljust(MIB, b"\0")), "cloop", M),
    Animal("dmg", plain(bytes(MIB) + b"koly".ljust(512, b"\0")), "dmg", M),
    Animal("gzip", plain(gzip.compress(images.raw(), mtime=0)), "gzip", M),
    Animal("xz", plain(lzma.compress(b"x")), "xz", M),
    Animal("bzip2", plain(bz2.compress(b"x")), "bzip2", M),
    Animal("zstd", plain(b"\x28\xb5\x2f\xfd\x04\x00\x09\x00\x00x\n"), "zstd", M),
    Animal("zip", plain(_zip()), "zip", M),
    Animal("tar", plain(_tar()), "tar", M),
    Animal("7z", plain(b"7z\xbc\xaf\x27\x1c".ljust(4096, b"\0")), "7z", M),
    Animal("rar", plain(b"Rar!\x1a\x07\x01\0".ljust(4096, b"\0")), "rar", M),
    Animal("lz4", plain(b"\x04\x22\x4d\x18".ljust(4096, b"\0")), "lz4", M),
    Animal("cpio", plain(b"070701".ljust(4096, b"0")), "cpio", M),
    Animal("ar", plain(b"!<arch>\ndebian-binary   "), "ar", M),
    Animal("html", plain(b"<!DOCTYPE html><title>Log in</title>" + bytes(MIB)), "html", M),
    Animal("html with a byte-order mark", plain(b"\xef\xbb\xbf\r\n <HTML lang=en>"), "html", M),
    Animal("xml", plain(b'<?xml version="1.0"?><Error/>'), "html", M),
    Animal("json", plain(b'{"error": "please log in"}\n'), "text", M),
    Animal("text", plain(b"404 page not found\n"), "text", M),
    Animal("pdf", plain(b"%PDF-1.7\n".ljust(4096, b"\0")), "pdf", M),
    Animal("elf", plain(b"\x7fELF".ljust(4096, b"\0")), "elf", M),
)  # fmt: skip
