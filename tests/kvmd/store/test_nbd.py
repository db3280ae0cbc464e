"""The client of NBD beside a real qemu-nbd, and beside servers that break the protocol."""

from __future__ import annotations

import contextlib
import socket
import struct
import subprocess
import threading
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmd.store.block.devices import Device
from kvmd.store.block.nbd import NbdDevice
from tests.support.programs import require_program
from tests.support.waiting import eventually_blocking

SIZE = 16 << 20


def connected(path: Path) -> socket.socket:
    """Connect to a server."""
    one = socket.socket(socket.AF_UNIX)
    one.connect(str(path))
    return one


@contextlib.contextmanager
def served(file: Path, folder: Path, *options: str) -> Generator[NbdDevice]:
    """Have qemu-nbd serve a file, and connect."""
    path = folder / "socket"
    command = [require_program("qemu-nbd"), f"--socket={path}", "--format=raw", "--discard=unmap", *options, file]
    process = subprocess.Popen(command)
    try:
        eventually_blocking(path.exists, what="qemu-nbd listens")
        with NbdDevice(connected(path)) as device:
            yield device
    finally:
        process.wait(10)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """Make a disk that is full of something."""
    path = tmp_path / "disk"
    path.write_bytes(b"\xee" * SIZE)
    return path


def read(device: Device, offset: int, length: int) -> bytes:
    """Read some bytes."""
    data = bytearray(length)
    device.read_into(memoryview(data), offset)
    return bytes(data)


def test_what_is_written_is_read_and_lies_in_the_file(disk: Path, tmp_path: Path) -> None:
    content = bytes(range(256)) * (20 << 10)  # more than one request
    with served(disk, tmp_path) as device:
        assert device.size == SIZE
        device.write(memoryview(content), 4097)
        device.zero(8 << 20, 4 << 20, is_sparse=True)
        device.zero(12 << 20, 1 << 20, is_sparse=False)
        device.sync()
        assert read(device, 4097, len(content)) == content
    kept = disk.read_bytes()
    assert kept[4097 : 4097 + len(content)] == content
    assert kept[8 << 20 : 13 << 20] == bytes(5 << 20)
    assert kept[13 << 20 :] == b"\xee" * (3 << 20)


def test_the_servers_refusal_is_an_error(disk: Path, tmp_path: Path) -> None:
    with served(disk, tmp_path, "--read-only") as device:
        assert read(device, SIZE - 1, 1) == b"\xee"
        with pytest.raises(OSError, match="tells of error"):
            device.write(memoryview(b"x"), 0)
        with pytest.raises(OSError, match="tells of error"):
            read(device, SIZE, 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Give a folder for sockets."""
    return tmp_path_factory.mktemp("s")


@contextlib.contextmanager
def saying(answer: bytes, path: Path) -> Generator[Path]:
    """Listen, say this to the first who comes, and close."""
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            client, _ = listener.accept()
            with client, contextlib.suppress(OSError):
                client.sendall(answer)
                client.shutdown(socket.SHUT_WR)
                while client.recv(1 << 16):
                    pass

        thread = threading.Thread(target=serve)
        thread.start()
        yield path
        thread.join()


GREETING = b"NBDMAGICIHAVEOPT" + struct.pack(">H", 3)
EXPORT = struct.pack(">QIIIHQH", 0x3E889045565A9, 7, 3, 12, 0, SIZE, 1)
ACK = struct.pack(">QIII", 0x3E889045565A9, 7, 1, 0)


@given(st.binary(max_size=80) | st.binary(max_size=60).map(lambda rest: GREETING + rest))
def test_a_server_that_breaks_the_protocol_is_an_error_and_nothing_else(folder: Path, answer: bytes) -> None:
    with saying(answer, folder / "wild") as path, pytest.raises(OSError):  # noqa: PT011 - whatever it says
        NbdDevice(connected(path))


@given(st.binary(max_size=40))
def test_an_answer_to_another_request_is_an_error(folder: Path, answer: bytes) -> None:
    answers = GREETING + EXPORT + ACK + answer
    with (
        saying(answers, folder / "wrong") as path,
        NbdDevice(connected(path)) as device,
        pytest.raises(OSError),  # noqa: PT011 - whatever it says
    ):
        read(device, 0, 512)


def test_a_refused_export_is_told(folder: Path) -> None:
    refusal = struct.pack(">QIII", 0x3E889045565A9, 7, (1 << 31) + 6, 4) + b"none"
    with saying(GREETING + refusal, folder / "none") as path, pytest.raises(OSError, match="refuses: none"):
        NbdDevice(connected(path))
