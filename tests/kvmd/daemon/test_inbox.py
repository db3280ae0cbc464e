"""What must hold between the journal, the memory and what is in force, whatever happens while an event is taken in."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from kvmd.bus import BrokerSettings, MqttBus
from kvmd.clock import SystemClock
from kvmd.core.desired import HostRecord, Recorded
from kvmd.core.tally import Tally
from kvmd.daemon.announcer import Announcer, Identity, offline
from kvmd.daemon.caretaker import GcRequest
from kvmd.daemon.credentials import Credentials, Identification
from kvmd.daemon.inbox import Inbox, Reactions
from kvmd.journal import FILE, KEPT_RECEIPTS, SqliteJournal
from kvmd.ports import Delivery
from kvmd.vault import Vault
from kvmwire.codes import FailureCode
from kvmwire.status import Outcome, Receipt
from kvmwire.topics import HostTopic, Topics
from tests.kvmd.daemon.harness import HOST, enveloped
from tests.support.tls import Authority
from tests.support.waiting import eventually

TOPICS = Topics()


@dataclass
class Desk:
    """An inbox with everything behind it, and no broker before it."""

    folder: Path
    record: HostRecord
    journal: SqliteJournal
    vault: Vault
    on_change: Callable[[], None] = lambda: None
    looked_for: list[GcRequest] = field(default_factory=list[GcRequest])
    inbox: Inbox = field(init=False)

    def __post_init__(self) -> None:
        clock, tally = SystemClock(), Tally()
        identity = Identity(HOST, {}, (), started=clock.now())
        settings = BrokerSettings(
            host="127.0.0.1",
            port=1,
            identifier="kvmd",
            topics=TOPICS,
            filters=(),
            own_status=TOPICS.build(HostTopic(HOST)),
            will=offline(identity),
        )
        bus = MqttBus(settings, clock, on_refused=tally.refused)
        announcer = Announcer(identity, self.record, bus=bus, journal=self.journal, stores={}, tally=tally, clock=clock)
        credentials = Credentials(
            HOST, self.record, identification=Identification(), vault=self.vault, on_trust=bus.replay
        )
        self.inbox = Inbox(
            identity,
            self.record,
            topics=TOPICS,
            journal=self.journal,
            announcer=announcer,
            clock=clock,
            credentials=credentials,
            reactions=Reactions(self._changed, on_gc=self.looked_for.append),
        )

    def _changed(self) -> None:
        self.on_change()

    async def take(self, topic: str, data: dict[str, Any], **attributes: Any) -> None:
        """Take in an event that was just published."""
        parsed = TOPICS.parse(f"{TOPICS.prefix}/{topic}")
        assert parsed is not None
        payload = json.dumps(enveloped(topic, data, **attributes)).encode()
        await self.inbox.receive(Delivery(parsed, payload, is_retained=False, is_redelivery=False))


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    journal = await SqliteJournal.open(tmp_path)
    try:
        yield Desk(tmp_path, await journal.load(), journal, Vault())
    finally:
        await journal.close()


@pytest.mark.parametrize("ensure", ["present", "absent"])
async def test_what_is_journaled_is_in_force_though_the_connection_is_lost_meanwhile(
    desk: Desk, authority: Authority, ensure: str
) -> None:
    present = {"origins": ["https://a.example"], "anchors": authority.ca_file.read_text()}
    if ensure == "absent":
        await desk.take("credential/all/ca", present, generation=1)
        assert desk.vault.has("ca")
    data = present if ensure == "present" else {"ensure": "absent"}
    with contextlib.closing(sqlite3.connect(desk.folder / FILE)) as other:
        other.execute("BEGIN IMMEDIATE")  # the journal has to wait
        taking = asyncio.create_task(desk.take("credential/all/ca", data, generation=2))
        await asyncio.wait([taking], timeout=0.2)
        taking.cancel()
        await asyncio.wait([taking])
        other.rollback()
    await eventually(lambda: "ca" in desk.record.credentials and desk.record.credentials["ca"].status.generation == 2)

    assert desk.vault.has("ca") is (ensure == "present")


async def test_a_request_to_look_for_garbage_that_is_journaled_is_carried_out_though_the_connection_is_lost(
    desk: Desk,
) -> None:
    with contextlib.closing(sqlite3.connect(desk.folder / FILE)) as other:
        other.execute("BEGIN IMMEDIATE")  # the journal has to wait
        taking = asyncio.create_task(desk.take("command/all/gc", {}, id="1"))
        await asyncio.wait([taking], timeout=0.2)
        taking.cancel()
        await asyncio.wait([taking])
        other.rollback()
    await eventually(lambda: "1" in desk.record.receipts)
    await desk.take("command/all/gc", {}, id="1")

    assert desk.looked_for == [GcRequest("1")]


async def test_an_event_that_meets_a_defect_is_refused_and_others_go_on(desk: Desk) -> None:
    def broken() -> None:
        raise ZeroDivisionError

    desk.on_change = broken
    await desk.take("register/one", {"url": "https://a.example/x"}, id="1")
    desk.on_change = lambda: None
    await desk.take("register/two", {"url": "https://a.example/x"}, id="2")

    assert desk.record.receipts["2"].outcome is Outcome.ACCEPTED


async def test_a_refusal_takes_no_other_answers_place_so_that_a_command_is_carried_out_once(desk: Desk) -> None:
    await desk.take("register/one", {"url": "https://a.example/x"})
    await desk.take("command/all/recheck", {}, id="1")
    await desk.take("register/one", {"nonsense": 1}, id="1")
    await desk.take("command/all/recheck", {}, id="1")

    assert desk.record.templates["one"].round == 1
    assert (await desk.journal.load()).receipts["1"].outcome is Outcome.ACCEPTED


async def test_refusals_do_not_drive_out_what_tells_that_an_event_was_seen(desk: Desk) -> None:
    def receipt(event: str, outcome: Outcome) -> Recorded:
        code = FailureCode.EVENT_SCHEMA if outcome is Outcome.REFUSED else None
        return Recorded(Receipt(event=event, host=HOST, outcome=outcome, topic="t", code=code, time=datetime.now(UTC)))

    kept = 50
    desk.record.apply(receipt("seen", Outcome.ACCEPTED), kept=kept)
    desk.record.unsent.clear()
    for number in range(3 * kept):
        desk.record.apply(receipt(f"forged-{number}", Outcome.REFUSED), kept=kept)
        desk.record.unsent.clear()
    assert "seen" in desk.record.receipts
    assert len(desk.record.receipts) <= kept + 2


async def test_the_journal_prunes_refusals_by_themselves(desk: Desk) -> None:
    def document(event: str, outcome: str) -> tuple[str, str]:
        receipt = Receipt(event=event, host=HOST, outcome=Outcome(outcome), topic="t", time=datetime.now(UTC))
        return event, receipt.model_dump_json(exclude_none=True)

    rows = [document("seen", "accepted"), *(document(f"f{n}", "refused") for n in range(KEPT_RECEIPTS + 10))]
    with contextlib.closing(sqlite3.connect(desk.folder / FILE)) as other, other:
        other.executemany(
            "INSERT INTO receipt VALUES (?, ?, 0, ?)", [(event, n, text) for n, (event, text) in enumerate(rows)]
        )
    await desk.take("register/one", {"nonsense": 1}, id="last")

    kept = (await desk.journal.load()).receipts
    assert "seen" in kept
    assert len(kept) == KEPT_RECEIPTS + 2  # with the one that was seen and the one that is not sent yet
