"""One connection to libvirt, used by one thread: never by the event loop, and never by two calls at once."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from kvmd.errors import HypervisorUnreachableError, KvmdError, StoreIoError
from kvmd.hypervisor.faults import is_lost, translate
from kvmd.hypervisor.library import load_libvirt
from kvmd.log import get_logger

if TYPE_CHECKING:
    from libvirt import virConnect

log = get_logger(__name__)
T = TypeVar("T")

CALL_S = 30.0
"""A call gets so long, waiting for those before it included."""
KEEPALIVE_S, KEEPALIVE_COUNT = 5, 3
"""A libvirtd that answers nothing for (count + 1) x seconds = 20 s is given up: before CALL_S, so that the thread is free again."""
MAX_WAITING = 256
_CLOSE_S = 2.0


class Connection:
    """Opened by the first call, and again by the next one after libvirtd was restarted.

    One thread does all calls, in their order. A call that libvirt does not answer in time raises HypervisorUnreachableError;
    the thread stays in it until libvirt answers or the connection breaks, so calls behind it run into their own time limits,
    and nothing else of the daemon waits. What was given up before it began is never done; what had begun may still happen.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._calls: queue.Queue[tuple[Callable[[], Any], Future[Any]] | None] = queue.Queue(MAX_WAITING)
        self._thread: threading.Thread | None = None
        self._connect: virConnect | None = None
        self._is_closed = False

    async def call(
        self,
        work: Callable[[virConnect], T],
        *,
        what: str,
        timeout_s: float = CALL_S,
        otherwise: type[KvmdError] = StoreIoError,
    ) -> T:
        """Do ``work`` with the open connection, on the thread. It must not keep objects of libvirt beyond its end.

        Errors of libvirt become ours: HypervisorUnreachableError, PoolMissingError, NoSpaceError..., or ``otherwise`` where none
        fits. Other KvmdErrors pass. ``what`` begins the message: what was being done, to what.
        """
        future: Future[T] = Future()
        self._submit(lambda: self._perform(work, what, otherwise), future, what)
        limit = asyncio.timeout(timeout_s)
        try:
            async with limit:
                return await asyncio.wrap_future(future)
        except TimeoutError:
            if not limit.expired():
                raise
            raise HypervisorUnreachableError(
                f"{what}: libvirt at {self.uri} did not answer within {timeout_s:g} s; given up.",
            ) from None

    async def close(self) -> None:
        """Close it after the calls that wait; a thread that hangs is left to the end of the process."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._thread is None:
            return
        with suppress(queue.Full, TimeoutError):
            async with asyncio.timeout(_CLOSE_S):
                closed: Future[None] = Future()
                self._calls.put_nowait((self._drop, closed))
                self._calls.put_nowait(None)
                await asyncio.wrap_future(closed)

    def _submit(self, call: Callable[[], T], future: Future[T], what: str) -> None:
        if self._is_closed:
            raise HypervisorUnreachableError(f"{what}: the connection to libvirt at {self.uri} is closed.")
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="kvmd-libvirt", daemon=True)
            self._thread.start()
        try:
            self._calls.put_nowait((call, future))
        except queue.Full:
            raise HypervisorUnreachableError(
                f"{what}: {MAX_WAITING} calls wait for libvirt at {self.uri}, which does not answer; this one was not made."
            ) from None

    def _run(self) -> None:
        """Do the calls, for ever."""
        while (one := self._calls.get()) is not None:
            call, future = one
            if not future.set_running_or_notify_cancel():
                continue
            try:
                result = call()
            except BaseException as exc:  # noqa: BLE001 - raised where it is awaited
                future.set_exception(exc)
            else:
                future.set_result(result)
            del one, call, future

    def _perform(self, work: Callable[[virConnect], T], what: str, otherwise: type[KvmdError]) -> T:
        libvirt = load_libvirt()
        try:
            connect = self._opened()
        except libvirt.libvirtError as exc:
            raise HypervisorUnreachableError(f"{what}: libvirt at {self.uri} cannot be reached: {exc}.") from exc
        try:
            return work(connect)
        except libvirt.libvirtError as exc:
            if not is_lost(exc) and connect.isAlive():
                raise translate(exc, what, otherwise) from exc
            self._drop()
            raise HypervisorUnreachableError(
                f"{what}: the connection to libvirt at {self.uri} broke: {exc}; it is opened again for the next call."
            ) from exc

    def _opened(self) -> virConnect:
        """Give a connection that was alive a moment ago. Raises libvirtError."""
        libvirt = load_libvirt()
        if self._connect is not None and not self._connect.isAlive():
            self._drop()
        if self._connect is not None:
            return self._connect
        connect: virConnect = libvirt.open(self.uri)
        with suppress(libvirt.libvirtError):  # drivers without a server have none
            connect.setKeepAlive(KEEPALIVE_S, KEEPALIVE_COUNT)
        log.info("libvirt connected", uri=self.uri)
        self._connect = connect
        return connect

    def _drop(self) -> None:
        connect, self._connect = self._connect, None
        if connect is not None:
            with suppress(load_libvirt().libvirtError):
                connect.close()
