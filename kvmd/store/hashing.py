"""What follows a growing file on threads of their own: digests of what the disk holds."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable
from typing import Protocol

from blake3 import blake3

from kvmd.core.bucket import Bucket
from kvmd.core.ranges import ByteRange
from kvmwire.digest import Algorithm, Digest

STEP = 1024 * 1024
"""Bytes read back at once: measured 5-10% over hashing hot buffers, see docs/decisions."""
_HASHLIB = {
    Algorithm.MD5: "md5",
    Algorithm.SHA_1: "sha1",
    Algorithm.SHA_224: "sha224",
    Algorithm.SHA_256: "sha256",
    Algorithm.SHA_384: "sha384",
    Algorithm.SHA_512: "sha512",
    Algorithm.SHA3_256: "sha3_256",
    Algorithm.SHA3_512: "sha3_512",
}


class Hasher(Protocol):
    """What hashlib and blake3 have in common."""

    def update(self, data: memoryview, /) -> object:
        """Take more bytes."""
        ...

    def hexdigest(self) -> str:
        """Give the value so far."""
        ...


def hasher(algorithm: Algorithm) -> Hasher:
    """Start a digest; the weak algorithms only recognise accidents, so they are allowed on hardened systems too."""
    if algorithm is Algorithm.BLAKE3:
        return blake3()
    return hashlib.new(_HASHLIB[algorithm], usedforsecurity=False)


class Stopped(Exception):  # noqa: N818 - not an error: somebody does not want the digest any more
    """The digest was given up."""


class Follower:
    """Reads a growing file on a thread of its own, up to the frontier that it is told, and hands on what it reads.

    The bytes are read back from the file, so that what is used is what the kernel holds, not what was received. ``take`` is called on
    that thread; what it raises ends the reading, and comes out of ``finish``.
    """

    def __init__(self, fd: int, take: Callable[[memoryview], object], *, name: str, step: int = STEP) -> None:
        self._fd = fd
        self._take = take
        self._step = step
        self._changed = threading.Condition()
        self._frontier = 0
        self._enough = step
        self._end: int | None = None
        self._is_stopped = False
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def is_stopped(self) -> bool:
        """Whether somebody gave up."""
        return self._is_stopped

    @property
    def error(self) -> Exception | None:
        """What ended the reading too early."""
        return self._error

    def advance(self, frontier: int) -> None:
        """Allow the bytes before the frontier to be read. Never waits for the reading."""
        with self._changed:
            self._frontier = max(frontier, self._frontier)
            if self._frontier >= self._enough:
                self._changed.notify()  # earlier it would only wake, and take the interpreter from the writer

    def finish(self, size: int) -> None:
        """Wait until exactly ``size`` bytes are read. Raises OSError for a disk that cannot be read, Stopped after stop()."""
        with self._changed:
            self._frontier = self._end = size
            self._changed.notify()
        self._thread.join()
        if self._error is not None:
            raise self._error
        if self._is_stopped:
            raise Stopped

    def stop(self) -> None:
        """Give up: whoever waits for the end gets Stopped."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify()

    def join(self) -> None:
        """Wait for the thread's end after stop() or finish(): only then may the file be closed."""
        self._thread.join()

    def _run(self) -> None:
        buffer = memoryview(bytearray(self._step))
        position = 0
        try:
            while (end := self._next_end(position)) is not None:
                while position < end and not self._is_stopped:
                    count = os.preadv(self._fd, [buffer[: min(self._step, end - position)]], position)
                    if count == 0:
                        raise OSError(f"the file ends at {position}, expected {end} bytes")
                    self._take(buffer[:count])
                    position += count
        except Exception as exc:  # noqa: BLE001 - whoever waits for the end gets it
            self._error = exc

    def _next_end(self, position: int) -> int | None:
        """Wait for a full step of new bytes, or the last ones; None when there is nothing left to do."""
        with self._changed:
            self._enough = position + self._step
            self._changed.wait_for(lambda: self._is_stopped or self._end is not None or self._frontier >= self._enough)
            if self._is_stopped or position == self._end:
                return None
            return self._frontier


class FrontierHash(Follower):
    """Takes the digest of a growing file."""

    def __init__(self, fd: int, algorithm: Algorithm) -> None:
        self._algorithm = algorithm
        self._hasher = hasher(algorithm)
        super().__init__(fd, self._hasher.update, name="kvmd-hash")

    def digest(self, size: int) -> Digest:
        """Wait for the digest of exactly ``size`` bytes. Raises as ``finish`` does."""
        self.finish(size)
        return Digest(self._algorithm, self._hasher.hexdigest())


def digest_part(fd: int, part: ByteRange, algorithm: Algorithm) -> Digest:
    """Hash some bytes of a file. Raises OSError, also where the file is shorter."""
    hashing, buffer, position = hasher(algorithm), memoryview(bytearray(min(STEP, part.length))), part.start
    while position < part.end:
        count = os.preadv(fd, [buffer[: min(STEP, part.end - position)]], position)
        if count == 0:
            raise OSError(f"the file ends at {position}, expected {part.end} bytes")
        hashing.update(buffer[:count])
        position += count
    return Digest(algorithm, hashing.hexdigest())


def digest_file(fd: int, algorithm: Algorithm, stopped: threading.Event, *, rate: int = 0) -> Digest:
    """Hash a whole file, as it is now, ``rate`` bytes a second (0: no limit).

    Raises OSError, or Stopped soon after ``stopped`` is set.
    """
    hashing, buffer, position, bucket = hasher(algorithm), memoryview(bytearray(STEP)), 0, Bucket(rate)
    while count := os.preadv(fd, [buffer], position):
        bucket, pause_s = bucket.take(count, time.monotonic())
        if stopped.wait(pause_s):
            raise Stopped
        hashing.update(buffer[:count])
        position += count
    return Digest(algorithm, hashing.hexdigest())
