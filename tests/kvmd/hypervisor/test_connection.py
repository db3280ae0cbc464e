"""The connection to libvirt, against a real libvirtd that is killed, restarted and frozen."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator

import pytest

from kvmd.errors import ConfigError, HypervisorUnreachableError, PoolMissingError, StoreIoError
from kvmd.hypervisor.connection import Connection
from kvmd.hypervisor.library import load_libvirt
from tests.support.libvirtd import Libvirtd


@pytest.fixture(scope="module")
def libvirtd() -> Iterator[Libvirtd]:
    """Start one for the tests of this module."""
    with Libvirtd() as running:
        yield running


@pytest.fixture
async def connection(libvirtd: Libvirtd) -> AsyncIterator[Connection]:
    """Give a connection to it."""
    one = Connection(libvirtd.uri)
    yield one
    await one.close()


async def test_calls_run_on_one_thread_that_is_not_the_event_loops(connection: Connection) -> None:
    threads = {
        await connection.call(lambda _: threading.get_ident(), what="looking"),
        *await asyncio.gather(*[connection.call(lambda _: threading.get_ident(), what="looking") for _ in range(5)]),
    }
    assert len(threads) == 1
    assert threading.get_ident() not in threads


async def test_it_goes_on_after_libvirtd_was_restarted(connection: Connection, libvirtd: Libvirtd) -> None:
    assert await connection.call(lambda conn: conn.getType(), what="asking") == "QEMU"
    libvirtd.kill()
    with pytest.raises(HypervisorUnreachableError, match="asking: "):
        await connection.call(lambda conn: conn.listAllStoragePools(), what="asking")
    with pytest.raises(HypervisorUnreachableError, match="cannot be reached"):
        await connection.call(lambda conn: conn.getType(), what="asking")
    libvirtd.start()
    assert await connection.call(lambda conn: conn.getType(), what="asking") == "QEMU"


async def test_a_libvirtd_that_hangs_costs_a_call_its_time_and_nobody_else(
    connection: Connection, libvirtd: Libvirtd
) -> None:
    done: list[str] = []
    await connection.call(lambda conn: conn.getType(), what="connecting")
    libvirtd.freeze()
    began = time.monotonic()
    try:
        with pytest.raises(HypervisorUnreachableError, match=r"did not answer within 0.3 s; given up"):
            await connection.call(lambda conn: conn.listAllStoragePools(), what="listing", timeout_s=0.3)
        with pytest.raises(HypervisorUnreachableError):
            await connection.call(lambda _: done.append("late"), what="waiting", timeout_s=0.1)
    finally:
        libvirtd.thaw()
    assert time.monotonic() - began < 2
    await connection.call(lambda _: done.append("next"), what="going on")
    assert done == ["next"]


async def test_errors_become_ours_and_nothing_is_printed(
    connection: Connection, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(PoolMissingError, match=r"pool fast: libvirt says: .*no storage pool with matching name 'fast'"):
        await connection.call(lambda conn: conn.storagePoolLookupByName("fast"), what="pool fast")
    with pytest.raises(StoreIoError, match="defining: libvirt says"):
        await connection.call(lambda conn: conn.storagePoolDefineXML("<pool", 0), what="defining")
    assert capfd.readouterr().err.count("libvirt:") == 0


async def test_a_closed_connection_refuses_calls(libvirtd: Libvirtd) -> None:
    one = Connection(libvirtd.uri)
    await one.call(lambda conn: conn.getType(), what="asking")
    await one.close()
    await one.close()
    with pytest.raises(HypervisorUnreachableError, match="is closed"):
        await one.call(lambda conn: conn.getType(), what="asking")


async def test_a_driver_without_a_server_is_fine() -> None:
    one = Connection("test:///default")
    assert await one.call(lambda conn: conn.getType(), what="asking") == "TEST"
    await one.close()


def test_without_the_package_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "libvirt", None)
    with pytest.raises(ConfigError, match="libvirt-python") as caught:
        load_libvirt.__wrapped__()
    assert "kvmd[libvirt]" in caught.value.hint
