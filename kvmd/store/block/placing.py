"""Puts an image onto a block device, and proves by reading it back that it is there. Blocking, in small steps that can be stopped."""

from __future__ import annotations

import hashlib
import os
import threading
import time

from kvmd.core.bucket import Bucket
from kvmd.core.image import ImageHead, inspect_file
from kvmd.errors import StoreIoError
from kvmd.store.block.devices import Device
from kvmd.store.hashing import Stopped, hasher
from kvmd.store.zeros import Allocation, zero_runs
from kvmwire.digest import Algorithm, Digest

BLOCK = 4 << 20
"""Bytes that are copied at once; a placement has two buffers of this size."""
ZERO_STEP = 64 << 20
"""So many bytes behind the image become zeros at once."""
SAMPLES, _SAMPLE = 32, 64 * 1024
"""A sample is so many blocks of so many bytes, from the first to the last: 2 MiB, a few milliseconds."""


def place(source: int, device: Device, *, size: int, is_sparse: bool, stopped: threading.Event) -> None:
    """Copy ``size`` bytes of the open file ``source``, have the rest of the device read as zeros, and sync.

    What the device held before is a former tenant's: nothing of it may stay. Raises OSError, or Stopped soon after ``stopped`` is set.
    """
    buffer = memoryview(bytearray(min(BLOCK, size)))
    for start in range(0, size, BLOCK):
        _check(stopped)
        part = buffer[: min(BLOCK, size - start)]
        _fill(source, part, start)
        for begin, end, is_zero in zero_runs(bytes(part)):
            if is_zero:
                device.zero(start + begin, end - begin, is_sparse=is_sparse)
            else:
                device.write(part[begin:end], start + begin)
    for start in range(size, device.size, ZERO_STEP):
        _check(stopped)
        device.zero(start, min(ZERO_STEP, device.size - start), is_sparse=is_sparse)
    device.sync()


def digest_device(
    device: Device, *, size: int, algorithm: Algorithm, stopped: threading.Event, rate: int = 0
) -> Digest:
    """Hash the first ``size`` bytes, ``rate`` bytes a second (0: no limit). Raises as ``place`` does."""
    hashing, bucket = hasher(algorithm), Bucket(rate)
    step = min(BLOCK, size, max(rate // 8, _SAMPLE) if rate else BLOCK)
    buffer = memoryview(bytearray(step))
    for start in range(0, size, step):
        part = buffer[: min(step, size - start)]
        device.read_into(part, start)
        bucket, pause_s = bucket.take(len(part), time.monotonic())
        if stopped.wait(pause_s):
            raise Stopped
        hashing.update(part)
    return Digest(algorithm, hashing.hexdigest())


def sample_of(device: Device, *, size: int) -> str:
    """Give a digest of a few of the first ``size`` bytes: another one means another content, and nothing else is sure."""
    hashing, last = hashlib.sha256(), max(0, size - _SAMPLE)
    for start in sorted(
        {last * number // (SAMPLES - 1) // _SAMPLE * _SAMPLE for number in range(SAMPLES - 1)} | {last}
    ):
        hashing.update(_read(device, start, min(_SAMPLE, size - start)))
    return hashing.hexdigest()


def head_of(device: Device, *, size: int) -> ImageHead:
    """Tell what the first ``size`` bytes are."""
    return inspect_file(lambda offset, length: _read(device, offset, min(length, max(0, size - offset))), size=size)


def check_same(expected: Digest, actual: Digest, *, path: str) -> None:
    """Raise StoreIoError where what was read back is not what was written."""
    if actual != expected:
        raise StoreIoError(
            f"volume {path}: expected {expected}, and {actual} was read back from it after it was written; it does not count.",
            hint="Look at the device's health: it does not keep what is written to it.",
        )


def allows_holes(allocation: Allocation) -> bool:
    """Whether the space of zeros may be given back."""
    return allocation is Allocation.SPARSE


def _read(device: Device, offset: int, length: int) -> bytes:
    data = bytearray(length)
    device.read_into(memoryview(data), offset)
    return bytes(data)


def _fill(source: int, part: memoryview, offset: int) -> None:
    while part:
        count = os.preadv(source, [part], offset)
        if count == 0:
            raise OSError(f"the staged file ends at {offset}")
        part, offset = part[count:], offset + count


def _check(stopped: threading.Event) -> None:
    if stopped.is_set():
        raise Stopped
