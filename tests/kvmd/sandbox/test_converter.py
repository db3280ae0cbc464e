"""Images become raw by the real qemu-img, and a qemu-img that does not work becomes an error."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from kvmd.core.image import ImageHead, inspect_file
from kvmd.errors import ConvertError, InspectorError, NoSpaceError
from kvmd.sandbox import patience, protocol
from kvmd.sandbox.client import QemuConverter
from tests.kvmd.mounts import tmpfs
from tests.kvmd.sandbox.units import Unit
from tests.support import images
from tests.support.waiting import eventually

MIB = 1 << 20
SIZE, CLUSTER = 16 * MIB, 64 << 10
GOOD = images.qcow2(SIZE)
TEXT = (b"words" * MIB)[: 3 * MIB] + bytes(13 * MIB)
TARGET = '"${11}"'
"""The last word for a script that stands for qemu-img: the file to write to."""
Fake = Callable[[str], Path]


@pytest.fixture(params=["child", "unit"])
def socket_path(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path | None]:
    """Give the two ways to an inspector in turn; none of them has left anything behind."""
    if request.param == "child":
        yield None
        return
    with Unit(tmp_path / "inspector.sock") as unit:
        yield unit.path


def converter(path: Path | None, *, timeout_s: float = 5.0) -> QemuConverter:
    """Make one with little patience."""
    return QemuConverter(path, timeout_s=timeout_s, memory=512 * MIB)


@asynccontextmanager
async def opened(folder: Path, content: bytes = GOOD) -> AsyncIterator[tuple[int, ImageHead, int]]:
    """Give an image as it lies in a pool, what it is, and an empty file of its virtual size."""
    source = folder / "image"
    source.write_bytes(content)
    source.chmod(0o644)
    reading = os.open(source, os.O_RDONLY)
    target = os.open(folder / "raw", os.O_RDWR | os.O_CREAT)
    os.fchmod(target, 0o666)
    try:
        image = inspect_file(lambda offset, length: os.pread(reading, length, offset), size=len(content))
        os.ftruncate(target, image.virtual_size or 0)
        yield reading, image, target
    finally:
        os.close(reading)
        os.close(target)


def qemu_img(*words: str | Path) -> None:
    """Run the real one."""
    subprocess.run(["qemu-img", *words], check=True, timeout=20)


KINDS = {
    "qcow2": ("qcow2",),
    "compressed": ("qcow2", "-c"),
    "zstd": ("qcow2", "-c", "-o", "compression_type=zstd"),
    "old": ("qcow2", "-o", "compat=0.10"),
    "small clusters": ("qcow2", "-o", "cluster_size=4096"),
    "extended": ("qcow2", "-o", "extended_l2=on,cluster_size=65536"),
    "vmdk": ("vmdk",),
    "stream": ("vmdk", "-o", "subformat=streamOptimized"),
    "vhdx": ("vhdx",),
}


@pytest.mark.usefixtures("qemu_img")
class TestTheRealOne:
    """The contract of the port, on both ways to an inspector."""

    @pytest.mark.parametrize("kind", KINDS)
    async def test_every_format_becomes_the_bytes_that_a_machine_sees(
        self, socket_path: Path | None, tmp_path: Path, kind: str
    ) -> None:
        (tmp_path / "from").write_bytes(GOOD)
        output, *options = KINDS[kind]
        qemu_img("convert", "-f", "qcow2", "-O", output, *options, tmp_path / "from", tmp_path / "to")
        qemu_img("convert", "-f", output, "-O", "raw", tmp_path / "to", tmp_path / "expected")
        async with opened(tmp_path, (tmp_path / "to").read_bytes()) as (source, image, target):
            await converter(socket_path).convert(source, image, target, writes_zeros=False)
        assert (tmp_path / "raw").read_bytes() == (tmp_path / "expected").read_bytes()
        qemu_img("compare", "-f", output, "-F", "raw", tmp_path / "to", tmp_path / "raw")

    @pytest.mark.parametrize(("writes_zeros", "least", "most"), [(False, 0, 1), (True, 16, 17)])
    async def test_zeros_are_left_out_or_written(
        self, socket_path: Path | None, tmp_path: Path, *, writes_zeros: bool, least: int, most: int
    ) -> None:
        async with opened(tmp_path) as (source, image, target):
            await converter(socket_path).convert(source, image, target, writes_zeros=writes_zeros)
            assert least * MIB <= os.fstat(target).st_blocks * 512 <= most * MIB

    @pytest.mark.parametrize(
        "options", [("qcow2",), ("qcow2", "-c"), ("vmdk",), ("vhdx", "-o", "block_size=1M")], ids=" ".join
    )
    async def test_the_space_that_it_takes_is_told_before(
        self, socket_path: Path | None, tmp_path: Path, options: tuple[str, ...]
    ) -> None:
        (tmp_path / "disk").write_bytes(TEXT)
        qemu_img("convert", "-f", "raw", "-O", *options, tmp_path / "disk", tmp_path / "packed")
        async with opened(tmp_path, (tmp_path / "packed").read_bytes()) as (source, image, target):
            needed = await converter(socket_path).measure(source, image)
            await converter(socket_path).convert(source, image, target, writes_zeros=False)
            assert os.fstat(target).st_blocks * 512 <= needed < 12 * MIB

    async def test_nobody_has_the_target_open_for_writing_afterwards(
        self, socket_path: Path | None, tmp_path: Path
    ) -> None:
        async with opened(tmp_path) as (source, image, target):
            await converter(socket_path).convert(source, image, target, writes_zeros=False)
            inode = os.fstat(target).st_ino
            assert await asyncio.to_thread(_writers, inode) == [os.getpid()]

    async def test_a_damaged_image_says_what_is_wrong(self, socket_path: Path | None, tmp_path: Path) -> None:
        (tmp_path / "disk").write_bytes(TEXT)
        qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", tmp_path / "disk", tmp_path / "packed")
        damaged = bytearray((tmp_path / "packed").read_bytes())
        damaged[5 * CLUSTER : 5 * CLUSTER + 1000] = bytes(range(250)) * 4
        async with opened(tmp_path, bytes(damaged)) as (source, image, target):
            with pytest.raises(ConvertError, match=r"qemu-img convert ended with 1: .*error while reading"):
                await converter(socket_path).convert(source, image, target, writes_zeros=False)

    async def test_a_full_disk_is_told_as_such(self, socket_path: Path | None, tmp_path: Path) -> None:
        with tmpfs(tmp_path / "small", size=400 << 10) as folder:
            folder.chmod(0o755)
            small = images.qcow2(4 * MIB, data_size=64 << 10)
            async with opened(folder, small) as (source, image, target):
                with pytest.raises(NoSpaceError, match="No space left on device"):
                    await converter(socket_path).convert(source, image, target, writes_zeros=True)


def _writers(inode: int) -> list[int]:
    """Give the processes that have the file open for writing."""
    found: list[int] = []
    for process in psutil.process_iter():
        for info in Path(f"/proc/{process.pid}/fdinfo").glob("*"):
            try:
                text = info.read_text()
            except OSError:
                continue
            is_writable = int(re.search(r"^flags:\s*(\d+)", text, re.MULTILINE)[1], 8) & os.O_ACCMODE  # type: ignore[index] - every fdinfo has flags
            if f"ino:\t{inode}\n" in text and is_writable:
                found.append(process.pid)
    return found


BROKEN_PROGRAMS = {
    "hangs": ("exec sleep 60", "made no progress for too long"),
    "hangs with children": ("sleep 60 & sleep 60 & wait", "made no progress for too long"),
    "floods": ("exec yes", "wrote without end"),
    "floods with errors": ("exec yes >&2", "wrote without end"),
    "crashes": ("kill -SEGV $$", "killed by signal 11"),
    "fails": ("echo no >&2; exit 1", "ended with 1: no;"),
    "fails without a word": ("exit 7", "ended with 7: it said nothing"),
    "says a lot": ("yes xxxx | head -c 30000 | tr -d '\\n' >&2; exit 1", "ended with 1: x{400};"),
    "writes to the terminal": ("printf '\\033[2J' >&2; exit 1", r"ended with 1: \?\[2J"),
    "writes more than the image has": (f"exec 1<> {TARGET}; exec yes", "signal 25"),
}


@pytest.mark.parametrize(("script", "said"), BROKEN_PROGRAMS.values(), ids=BROKEN_PROGRAMS)
async def test_a_qemu_img_that_does_not_work_is_an_error(
    socket_path: Path | None, fake: Fake, tmp_path: Path, script: str, said: str
) -> None:
    fake(script)
    async with opened(tmp_path) as (source, image, target):
        with pytest.raises(ConvertError, match=said) as caught:
            await converter(socket_path, timeout_s=0.5).convert(source, image, target, writes_zeros=False)
        assert len(caught.value.message) < 600
        assert caught.value.hint
    await eventually(lambda: not _children(), what="no child is left")


MEASURES = {
    "no JSON": ("echo many", "did not answer in JSON"),
    "another size": ("""echo '{"required": "many"}'""", "gave no size: many"),
    "less than nothing": ("""echo '{"required": -1}'""", "gave no size: -1"),
    "an error": ("echo no >&2; exit 1", "measure ended with 1: no"),
}


@pytest.mark.parametrize(("script", "said"), MEASURES.values(), ids=MEASURES)
async def test_a_measure_that_is_none_is_an_error(fake: Fake, tmp_path: Path, script: str, said: str) -> None:
    fake(script)
    async with opened(tmp_path) as (source, image, _):
        with pytest.raises(ConvertError, match=said):
            await converter(None).measure(source, image)


@pytest.mark.parametrize("word", [f"printf $i 1<> {TARGET}", "printf ."])
async def test_what_makes_progress_may_take_longer(fake: Fake, tmp_path: Path, word: str) -> None:
    fake(f"for i in $(seq 12); do sleep 0.1; {word}; done")
    async with opened(tmp_path) as (source, image, target):
        begun = time.monotonic()
        await converter(None, timeout_s=0.6).convert(source, image, target, writes_zeros=False)
        assert time.monotonic() - begun > 1.2


def test_but_not_for_ever(tmp_path: Path) -> None:
    with (tmp_path / "target").open("w+b") as target:
        waiting, told, pauses = patience.Patience(5.0, 0.2, target.fileno()), 0, [1.0]
        while pauses[-1] > 0:
            told += 1
            pauses.append(waiting.pause_s(told))
    assert max(pauses[1:]) <= 0.2


def test_a_large_image_may_take_hours() -> None:
    request = protocol.Request("qcow2", 60.0, 1, protocol.Task.CONVERT, 100 << 30)
    assert 3600 < request.longest_s < 24 * 3600


async def test_a_cancelled_conversion_leaves_no_process(socket_path: Path | None, fake: Fake, tmp_path: Path) -> None:
    fake(f"printf x 1<> {TARGET}; exec sleep 61")
    async with opened(tmp_path) as (source, image, target):
        task = asyncio.create_task(converter(socket_path).convert(source, image, target, writes_zeros=False))
        await eventually(lambda: os.pread(target, 1, 0) == b"x", what="it has begun")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await eventually(lambda: not _running("61"), what="qemu-img is gone")


async def test_without_qemu_img_nothing_is_converted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    async with opened(tmp_path) as (source, image, target):
        with pytest.raises(ConvertError, match="is not installed") as caught:
            await converter(None).convert(source, image, target, writes_zeros=False)
    assert "Install qemu-utils" in caught.value.hint


async def test_a_unit_that_cannot_be_reached_is_waited_for(tmp_path: Path) -> None:
    async with opened(tmp_path) as (source, image, target):
        with pytest.raises(InspectorError, match="the download is kept"):
            await converter(tmp_path / "nowhere").convert(source, image, target, writes_zeros=False)


def _children() -> list[psutil.Process]:
    """Give what runs below this process, but for inspectors that are about to end."""
    return [one for one in psutil.Process().children(recursive=True) if one.status() != psutil.STATUS_ZOMBIE]


def _running(seconds: str) -> list[psutil.Process]:
    """Give the sleeping processes that a script of these tests has started."""
    return [
        one
        for one in psutil.process_iter(["name", "cmdline"])
        if one.info["name"] == "sleep" and (one.info["cmdline"] or [""])[-1] == seconds
    ]
