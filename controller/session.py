"""What one command works with: a connection, the view that it feeds, the archive, and receipts of what was sent."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncGenerator, Callable

from controller.archive import Archive, open_archive
from controller.broker import Link, Message, open_link
from controller.config import Settings
from controller.delivery import Deliveries
from controller.fleet import Change, Fleet, StatusChange
from controller.keys.keyring import FleetKeys
from controller.supervise import beside
from kvmwire.status import HostState, HostStatus, Receipt
from kvmwire.topics import HostTopic

_STEP_S = 0.25
_PAUSE_S = 0.03


class Session:
    """Folds what arrives, tells listeners, and sends events of ours again until hosts that listen have answered."""

    def __init__(self, settings: Settings, archive: Archive) -> None:
        self.settings = settings
        self.archive = archive
        self.topics = settings.mqtt.topics
        self.fleet = Fleet(self.topics)
        self.deliveries = Deliveries(random.random)
        self.receipts: dict[str, dict[str, Receipt]] = {}
        self.listeners: list[Callable[[Change], None]] = []
        self._link: Link | None = None
        self._changed = asyncio.Event()
        self._unsaved: list[Receipt] = []

    @property
    def link(self) -> Link:
        """The connection."""
        if self._link is None:
            raise RuntimeError("the session is not open")
        return self._link

    @link.setter
    def link(self, link: Link) -> None:
        self._link = link

    def take(self, message: Message) -> None:
        """Fold one message and wake whoever waits."""
        came = self._offline_host(message)
        change = self.fleet.take(message.topic, message.payload)
        if change is None:
            return
        match change:
            case StatusChange(value=Receipt() as receipt):
                self._take_receipt(receipt)
            case StatusChange(topic=HostTopic(host), value=HostStatus(state=HostState.ONLINE)) if came:
                self.deliveries.host_came(host, time.monotonic())
            case _:
                pass
        for listener in self.listeners:
            listener(change)
        self._changed.set()

    async def until(self, is_true: Callable[[], bool]) -> None:
        """Return when it is true; asked when something changed, but not for each message of a large fleet."""
        while not is_true():
            await asyncio.sleep(_PAUSE_S)
            if self._changed.is_set():
                self._changed.clear()
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_STEP_S):
                    await self._changed.wait()

    async def resend(self) -> None:
        """Send again, for ever, what hosts that listen have not answered; keep the receipts."""
        while True:
            for stored in self.deliveries.due(self.fleet, time.monotonic()):
                await self.link.publish(stored.topic, stored.payload, is_retained=stored.is_retained)
            await self.save_receipts()
            await asyncio.sleep(_STEP_S)

    async def save_receipts(self) -> None:
        """Write the receipts that came since the last time into the registry."""
        if self._unsaved:
            receipts, self._unsaved = self._unsaved, []
            await self.archive.call(lambda registry: registry.record(receipts))

    def _take_receipt(self, receipt: Receipt) -> None:
        if self.deliveries.answer(receipt.event, receipt.host):
            self.receipts.setdefault(receipt.event, {})[receipt.host] = receipt
            self._unsaved.append(receipt)

    def _offline_host(self, message: Message) -> bool:
        match self.topics.parse(message.topic):
            case HostTopic(host):
                return not self.fleet.is_online(host)
            case _:
                return False


@contextlib.asynccontextmanager
async def open_session(settings: Settings, filters: tuple[str, ...]) -> AsyncGenerator[Session, None]:
    """Give a session whose view holds all that is retained. Raises UnreachableError without a broker."""
    async with open_archive(settings.state_dir) as archive:
        session = Session(settings, archive)
        keys = await asyncio.to_thread(FleetKeys.find, settings.fleet)
        if keys is not None:
            session.fleet.leave_out(keys.revoked_hosts)
            session.fleet.trust = keys.trust
        async with open_link(
            settings.mqtt, filters=filters, take=session.take, connecting=session.fleet.forget_events
        ) as link:
            session.link = link
            await link.settle()
            async with beside(session.resend()):
                try:
                    yield session
                finally:
                    await asyncio.shield(session.save_receipts())
