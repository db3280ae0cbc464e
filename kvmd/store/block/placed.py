"""What a volume of a block pool holds: put there and looked at through its device. Blocking; stopped soon after ``stopped`` is set."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace

from kvmd.core.allotment import Holding, Slot, Vacant
from kvmd.core.placement import Placement, Stored
from kvmd.hypervisor.volumes import Server
from kvmd.store.block.devices import Device, LocalDevice
from kvmd.store.block.placing import check_same, digest_device, head_of, place, sample_of
from kvmd.store.block.remote import remote_device
from kvmwire.digest import Algorithm


@contextmanager
def opened(slot: Slot, server: Server | None, *, is_written: bool) -> Generator[Device]:
    """Open a volume: behind its server, or where it has none, by this machine's device. Raises OSError, InUseError..."""
    if server is None:
        with LocalDevice(slot.path, capacity=slot.capacity, is_written=is_written) as device:
            yield device
    else:
        with remote_device(server, slot, is_written=is_written) as device:
            yield device


def put(
    slot: Slot, stopped: threading.Event, *, server: Server | None, source: int, staged: Stored, is_sparse: bool
) -> str:
    """Write the image, read it back, and give its sample."""
    size, expected = staged.placement.size, staged.placement.digest
    with opened(slot, server, is_written=True) as device:
        place(source, device, size=size, is_sparse=is_sparse, stopped=stopped)
    with opened(slot, server, is_written=False) as device:
        device.sync()
        actual = digest_device(device, size=size, algorithm=expected.algorithm, stopped=stopped)
        check_same(expected, actual, path=slot.path)
        return sample_of(device, size=size)


def examine(
    holding: Holding, stopped: threading.Event, *, server: Server | None, known: Placement | None, algorithm: Algorithm
) -> Stored:
    """Tell what the volume holds; hashes it unless it is provably the known one."""
    with opened(holding.slot, server, is_written=False) as device:
        device.sync()
        now = holding.placement(is_sampled=sample_of(device, size=holding.size) == holding.sample)
        image = head_of(device, size=holding.size)
        if known is not None and known.digest.algorithm is algorithm and now.is_same_file(known):
            digest = known.digest
        else:
            digest = digest_device(device, size=holding.size, algorithm=algorithm, stopped=stopped)
    made_of = holding.provenance if digest == holding.digest else None
    return Stored(replace(now, digest=digest), image, provenance=made_of)


def reread(
    holding: Holding, stopped: threading.Event, *, server: Server | None, algorithm: Algorithm, rate: int
) -> Placement:
    """Hash what the volume has now, at most ``rate`` bytes a second (0: no limit)."""
    with opened(holding.slot, server, is_written=False) as device:
        device.sync()
        digest = digest_device(device, size=holding.size, algorithm=algorithm, stopped=stopped, rate=rate)
        is_sampled = sample_of(device, size=holding.size) == holding.sample
        return replace(holding.placement(is_sampled=is_sampled), digest=digest)


def is_untouched(holding: Holding, _: threading.Event, *, server: Server | None) -> bool:
    """Whether the volume still holds what was put there, as far as a sample tells. Raises InUseError where it is claimed."""
    with opened(holding.slot, server, is_written=True) as device:
        return sample_of(device, size=holding.size) == holding.sample


def is_as_left(vacant: Vacant, _: threading.Event, *, server: Server | None) -> bool:
    """Whether a volume still holds what it held when it was vacated, as far as a sample tells."""
    with opened(vacant.slot, server, is_written=False) as device:
        return sample_of(device, size=vacant.size) == vacant.sample
