"""What the inspector says of good and of broken images, and of qemu-img when that does not work."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from kvmd.errors import ImageInvalidError, ImageTruncatedError, InspectorError
from kvmd.ports import Inspected
from kvmd.sandbox.client import QemuInspector
from tests.kvmd.sandbox.conftest import inspect, make_inspector
from tests.support import images
from tests.support.waiting import eventually

GOOD = images.qcow2()
CLUSTER = 65536
Fake = Callable[[str], Path]


def changed(at: int, value: int, size: int) -> bytearray:
    """Give the good image with a big-endian number in another place."""
    image = bytearray(GOOD)
    image[at : at + size] = value.to_bytes(size, "big")
    return image


async def test_a_good_image_is_sound(inspector: QemuInspector, qemu_img: Path, tmp_path: Path) -> None:
    assert qemu_img
    assert await inspect(inspector, tmp_path / "disk", GOOD) == Inspected()


@pytest.mark.parametrize("kind", ["vmdk", "vhdx"])
async def test_other_formats_that_qemu_knows(
    inspector: QemuInspector, qemu_img: Path, tmp_path: Path, kind: str
) -> None:
    (tmp_path / "from").write_bytes(GOOD)
    words = [qemu_img, "convert", "-f", "qcow2", "-O", kind, tmp_path / "from", tmp_path / "to"]
    subprocess.run(words, check=True, timeout=10)
    assert await inspect(inspector, tmp_path / "disk", (tmp_path / "to").read_bytes()) == Inspected()


@pytest.mark.parametrize("content", [images.raw(), images.iso(), images.iso(hybrid=True)])
async def test_bytes_need_no_qemu(inspector: QemuInspector, fake: Fake, tmp_path: Path, content: bytes) -> None:
    ran = fake("touch ran")
    assert await inspect(inspector, tmp_path / "disk", content) is None
    assert [one.name for one in ran.parent.iterdir()] == ["qemu-img"]


async def test_leaked_clusters_do_no_harm(inspector: QemuInspector, qemu_img: Path, tmp_path: Path) -> None:
    assert qemu_img
    assert await inspect(inspector, tmp_path / "disk", changed(2 * CLUSTER, 3, 2)) == Inspected(leaks=1)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (changed(2 * CLUSTER, 0, 2), "refcount=0 reference=1"),
        (changed(4 * CLUSTER, 1 << 40 | 1 << 63, 8), "qemu-img check ended with 2"),
        (changed(72, 2, 8), "corrupt"),
    ],
    ids=["refcount", "l2", "marked"],
)
async def test_a_broken_image_is_refused(
    inspector: QemuInspector, qemu_img: Path, tmp_path: Path, content: bytearray, said: str
) -> None:
    assert qemu_img
    with pytest.raises(ImageInvalidError, match=said) as caught:
        await inspect(inspector, tmp_path / "disk", content)
    assert caught.value.hint


@pytest.mark.parametrize("size", [200_000, len(GOOD) - 100_000])
async def test_a_truncated_image_is_told_as_such(
    inspector: QemuInspector, qemu_img: Path, tmp_path: Path, size: int
) -> None:
    assert qemu_img
    with pytest.raises(ImageTruncatedError, match="the end of the file is missing"):
        await inspect(inspector, tmp_path / "disk", GOOD[:size])


BROKEN_PROGRAMS = {
    "hangs": ("exec sleep 60", "did not end in time"),
    "hangs with children": ("sleep 60 & sleep 60 & wait", "did not end in time"),
    "floods": ("exec yes", "wrote without end"),
    "floods with errors": ("exec yes >&2", "wrote without end"),
    "crashes": ("kill -SEGV $$", "killed by signal 11"),
    "fails": ("echo no >&2; exit 1", "ended with 1: no"),
    "says nothing": ("exit 0", "did not answer in JSON"),
    "says what is no object": ("echo []", "did not answer in JSON"),
    "nests deeply": ("head -c 60000 /dev/zero | tr '\\0' '['", "did not answer in JSON"),
    "says another format": ("""echo '{"format": "raw", "virtual-size": 16777216}'""", "qemu-img says raw"),
    "says another size": ("""echo '{"format": "qcow2", "virtual-size": 1}'""", "qemu-img 1"),
    "writes to the terminal": ("printf '\\033[2J' >&2; exit 1", r"ended with 1: \?\[2J"),
    "wants memory": ("exec head -c 2000000000 /dev/zero | tail", "did not answer in JSON|ended with"),
}


@pytest.mark.parametrize(("script", "said"), BROKEN_PROGRAMS.values(), ids=BROKEN_PROGRAMS)
async def test_a_qemu_img_that_does_not_work_lets_nothing_pass(
    fake: Fake, tmp_path: Path, script: str, said: str
) -> None:
    fake(script)
    with pytest.raises(ImageInvalidError, match=said) as caught:
        await inspect(make_inspector(timeout_s=0.5), tmp_path / "disk", GOOD)
    assert caught.value.hint
    await eventually(lambda: not psutil.Process().children(recursive=True), what="no child is left")


async def test_without_qemu_img_images_pass_or_not_as_the_settings_say(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    lenient = make_inspector()
    assert await inspect(lenient, tmp_path / "disk", GOOD) is None
    assert await inspect(lenient, tmp_path / "disk", GOOD) is None
    assert caplog.text.count("it is not installed") == 1
    with pytest.raises(ImageInvalidError, match="qemu-img is not installed") as caught:
        await inspect(make_inspector(is_required=True), tmp_path / "disk", GOOD)
    assert "Install qemu-utils" in caught.value.hint


async def test_a_unit_that_cannot_be_reached_is_waited_for(tmp_path: Path) -> None:
    with pytest.raises(InspectorError, match="the download is kept"):
        await inspect(make_inspector(tmp_path / "nowhere.sock"), tmp_path / "disk", GOOD)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"", "without an answer"),
        (b"[]", "without an answer"),
        (b'{"runs": [], "is_missing": false, "problem": ""}', "no whole answer"),
        (b'{"runs": [{}], "is_missing": false, "problem": ""}', "without an answer"),
        (b'{"runs": [], "is_missing": false, "problem": "tired"}', "tired"),
        (b" " * (2 << 20), "without an answer"),
    ],
)
async def test_nothing_that_the_unit_says_is_believed(tmp_path: Path, answer: bytes, said: str) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        listening.listen()
        liar = threading.Thread(target=_lie, args=(listening, answer))
        liar.start()
        with pytest.raises(ImageInvalidError, match=said):
            await inspect(make_inspector(tmp_path / "socket"), tmp_path / "disk", GOOD)
        liar.join()


def _lie(listening: socket.socket, answer: bytes) -> None:
    connection = listening.accept()[0]
    with connection:
        connection.recv(4096)
        try:
            connection.sendall(answer)
        except ConnectionError:
            return


@pytest.mark.parametrize("words", [["kvmd.sandbox"], ["kvmd", "inspector"]], ids=" ".join)
def test_a_request_that_cannot_be_read_is_answered_without_what_the_daemon_imports(words: list[str]) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(b"rubbish")
        command = [sys.executable, "-I", "-X", "importtime", "-m", *words]
        done = subprocess.run(command, stdin=theirs, stderr=subprocess.PIPE, text=True, timeout=10, check=False)
        assert done.returncode == 0
        assert b"the request cannot be read" in ours.recv(4096)
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "subprocess" in imported
    assert not imported & {"pydantic", "pydantic_core", "cryptography", "aiohttp", "asyncio"}
