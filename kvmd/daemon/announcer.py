"""Says what is true of this host: statuses from memory and journal to the bus."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from kvmd.core.desired import CredentialRecord, HostRecord, ProbeRecord, Replica, ReplicaKey
from kvmd.core.tally import Tally
from kvmd.log import get_logger
from kvmd.ports import Bus, Clock, Delivery, Journal, Message, Store
from kvmwire import __version__
from kvmwire.codec import encode_status
from kvmwire.status import (
    GcStatus,
    HostState,
    HostStatus,
    MachineStatus,
    Outcome,
    PoolState,
    PoolStatus,
    Progress,
    Receipt,
)
from kvmwire.topics import (
    CredentialStatusTopic,
    GcTopic,
    HostTopic,
    MachineTopic,
    ProbeTopic,
    ProgressTopic,
    ReceiptTopic,
    ReplicaTopic,
)

log = get_logger(__name__)

POOL_ANSWER_S = 5.0
"""A pool that says nothing for so long is announced as missing; it is not asked again before it has answered."""

ECHO_TIMEOUT_S = 10.0
"""What the broker acknowledged must have come back to us after so long, or it was denied and nobody said so."""
_REASSERT_EVERY_S = 10.0
_NOTEWORTHY_SHARE = 100
"""Free space is announced anew when it changed by one part in so many of the pool."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this host is. ``has_machines``: it runs virtual machines."""

    host: str
    labels: Mapping[str, str]
    protocols: Sequence[str]
    started: datetime
    sealing_key: str | None = None
    has_machines: bool = False


def offline(identity: Identity) -> Message:
    """Give the last will: what the broker says of a host that is gone. Its labels stay known, so that it can still be selected."""
    status = HostStatus(
        host=identity.host,
        state=HostState.OFFLINE,
        version=__version__,
        labels=dict(identity.labels),
        protocols=tuple(identity.protocols),
        started=identity.started,
    )
    return Message(HostTopic(identity.host), encode_status(status))


class Announcer:
    """Posts statuses; the bus keeps only the newest of each topic while there is no connection. The tally hears of what is new."""

    def __init__(
        self,
        identity: Identity,
        record: HostRecord,
        *,
        bus: Bus,
        journal: Journal,
        stores: Mapping[str, Store],
        tally: Tally,
        clock: Clock,
    ) -> None:
        self._identity = identity
        self._record = record
        self._bus = bus
        self._journal = journal
        self._stores = stores
        self._tally = tally
        self._clock = clock
        self._pools: tuple[PoolStatus, ...] = ()
        self._credentials: dict[str, bytes] = {}
        self._gc: GcStatus | None = None
        self._said = b""
        self._is_heard = False
        self._unheard_since: float | None = None
        self._reasserted_at = float("-inf")
        self._looking: dict[str, asyncio.Future[PoolStatus]] = {}

    @property
    def pools(self) -> Sequence[PoolStatus]:
        """The pools as they were when they were last looked at."""
        return self._pools

    async def greet(self) -> None:
        """Announce everything after a connect, and the receipts that may not have arrived."""
        await self.announce()
        for event_id in self._record.unsent:
            self._post_receipt(self._record.receipts[event_id])

    async def announce(self) -> None:
        """Announce the host, every replica and every probe.

        What the broker keeps of templates that are unregistered is cleared, also after a crash before it was.
        """
        await self._look_at_pools()
        self._post_host()
        for replica in self._record.replicas.values():
            self._post_replica(replica)
        if self._gc is not None:
            self.gc(self._gc)
        for probe in self._record.probes.values():
            self.probe(probe)
        for credential in self._record.credentials.values():
            self.credential(credential)
        for name, wish in self._record.wished_machines.items():
            if name in self._record.machines:
                self.machine(self._record.machines[name].status)
            elif not wish.is_present:
                self.machine_gone(name)
        for template in self._record.templates.values():
            if not template.is_present:
                self.probe_gone(template.data.template)

    async def refresh_pools(self) -> None:
        """Announce the host again if its pools have changed noticeably."""
        before = self._pools
        await self._look_at_pools()
        if len(before) != len(self._pools) or any(map(_is_noteworthy, before, self._pools)):
            self._post_host()

    def replica(self, replica: Replica) -> None:
        """Announce where a replica stands now."""
        self._tally.reached(replica.status, now=self._clock.monotonic())
        self._post_replica(replica)

    def gc(self, status: GcStatus) -> None:
        """Announce what was made of garbage."""
        self._gc = status
        self._bus.post(Message(GcTopic(self._identity.host), encode_status(status)))

    def _post_replica(self, replica: Replica) -> None:
        topic = ReplicaTopic(self._identity.host, *replica.key)
        self._bus.post(Message(topic, encode_status(replica.status)))

    def progress(self, key: ReplicaKey, progress: Progress) -> None:
        """Announce the figures of a running download, if anybody can hear it now."""
        self._tally.progressed(key, progress)
        topic = ProgressTopic(self._identity.host, *key)
        self._bus.post(Message(topic, encode_status(progress), is_retained=False, is_droppable=True))

    def probe(self, probe: ProbeRecord) -> None:
        """Announce what was found out about a template."""
        self._bus.post(Message(ProbeTopic(self._identity.host, probe.status.template), encode_status(probe.status)))

    def credential(self, record: CredentialRecord) -> None:
        """Announce what became of a credential; with 30 days left it says that it ends soon."""
        status = encode_status(record.announced(self._clock.now()))
        self._credentials[record.name] = status
        self._bus.post(Message(CredentialStatusTopic(self._identity.host, record.name), status))

    def review_credentials(self) -> None:
        """Announce the credentials anew of which there is something else to say than before."""
        for record in self._record.credentials.values():
            if encode_status(record.announced(self._clock.now())) != self._credentials.get(record.name):
                self.credential(record)

    def heard(self, delivery: Delivery) -> None:
        """Take what the broker passes on as this host's own status. Our own last word comes back: then it lets us speak.

        Anything else is a will of an earlier connection that comes late, or somebody who speaks in our name: we say it again.
        """
        if delivery.payload == self._said:
            self._is_heard, self._unheard_since = True, None
        elif (
            self._said
            and not delivery.is_retained
            and self._clock.monotonic() - self._reasserted_at > _REASSERT_EVERY_S
        ):
            self._reasserted_at = self._clock.monotonic()
            log.warning("something else was announced in the name of this host; announced anew")
            self._post_host()

    def check_heard(self) -> None:
        """Tell when what the broker acknowledged never came back: MQTT 3.1.1 has no other way to learn of a denial."""
        if self._unheard_since is None or self._clock.monotonic() - self._unheard_since < ECHO_TIMEOUT_S:
            return
        self._unheard_since = None
        self._tally.refused("not passed on")
        log.error(
            "the broker acknowledged this host's status and did not pass it on: nobody may hear of this host",
            topic=f"status/{self._identity.host}/host",
            hint="Allow the host to write status/HOST/# and to read status/HOST/host; `kvmctl broker-config` writes such a list.",
        )

    def machine(self, status: MachineStatus) -> None:
        """Announce where a machine stands now."""
        self._bus.post(Message(MachineTopic(self._identity.host, status.name), encode_status(status)))

    def machine_gone(self, name: str) -> None:
        """Clear what was announced about a machine that is removed."""
        self._bus.post(Message(MachineTopic(self._identity.host, name), b""))

    def passed_over(self) -> None:
        """Count a refused event that got no answer."""
        self._tally.answered(Outcome.REFUSED)

    def probe_gone(self, template: str) -> None:
        """Clear what was announced about a template that is not registered any more."""
        self._bus.post(Message(ProbeTopic(self._identity.host, template), b""))

    def receipt(self, receipt: Receipt) -> None:
        """Answer an event; the journal keeps the answer until the broker has taken it."""
        self._tally.answered(receipt.outcome)
        self._post_receipt(receipt)

    def _post_receipt(self, receipt: Receipt) -> None:
        async def sent() -> None:
            if receipt.event in self._record.unsent:
                await self._journal.receipt_sent(receipt.event)
                self._record.unsent.discard(receipt.event)

        topic = ReceiptTopic(self._identity.host, receipt.event)
        self._bus.post(Message(topic, encode_status(receipt), is_retained=False, on_sent=sent))

    async def _look_at_pools(self) -> None:
        before = {pool.name: pool.state for pool in self._pools}
        self._pools = tuple([await self._look_at(name, store) for name, store in self._stores.items()])
        for pool in self._pools:
            if pool.state is not before.get(pool.name, PoolState.ACTIVE):
                say = log.info if pool.state is PoolState.ACTIVE else log.warning
                say("pool", name=pool.name, path=pool.path, state=pool.state)

    async def _look_at(self, name: str, store: Store) -> PoolStatus:
        """Describe a pool; one that does not answer, as on a dead NFS server, must not keep the host from hearing events."""
        if name not in self._looking:
            self._looking[name] = asyncio.ensure_future(store.status())
        try:
            async with asyncio.timeout(POOL_ANSWER_S):
                status = await asyncio.shield(self._looking[name])
        except TimeoutError:
            log.error("pool does not answer", pool=name, timeout_s=POOL_ANSWER_S)
            return PoolStatus(name=name, type="directory", path="", state=PoolState.MISSING)
        del self._looking[name]
        return status

    def _post_host(self) -> None:
        identity = self._identity
        status = HostStatus(
            host=identity.host,
            state=HostState.ONLINE,
            version=__version__,
            labels=dict(identity.labels),
            protocols=tuple(identity.protocols),
            pools=self._pools,
            sealing_key=identity.sealing_key,
            started=identity.started,
        )
        self._said, self._is_heard = encode_status(status), False

        async def sent() -> None:
            if not self._is_heard:  # mosquitto passes it on before it acknowledges it
                self._unheard_since = self._clock.monotonic()

        self._bus.post(Message(HostTopic(identity.host), self._said, on_sent=sent))


def _is_noteworthy(before: PoolStatus, now: PoolStatus) -> bool:
    if before.state is not now.state or before.capacity != now.capacity:
        return True
    if before.available is None or now.available is None or not now.capacity:
        return before.available != now.available
    return abs(before.available - now.available) * _NOTEWORTHY_SHARE > now.capacity
