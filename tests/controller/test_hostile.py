"""What a rogue host or publisher says must not steer the terminal, speak for others, or stop kvmctl."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from io import StringIO
from typing import TextIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller import views
from controller.commands.watch import change_row, screen
from controller.errors import ControlError
from controller.explain import explain
from controller.fleet import Fleet
from controller.outcome import Phase, Standing
from controller.output import Output
from controller.screen import open_screen
from controller.sheet import moment, plain, size
from kvmwire.codec import encode_status
from kvmwire.codes import FailureCode
from kvmwire.status import MachineState, Outcome, Progress, Receipt, ReplicaState, ReplicaStatus
from kvmwire.topics import HostTopic, MachineTopic, ProbeTopic, ProgressTopic, ReceiptTopic, ReplicaTopic, StatusTopic
from tests.controller.kvmctl import CHECKSUM, URL, Kvmctl
from tests.controller.scripted_host import ScriptedHost
from tests.controller.test_fleet import (
    NOW,
    SUBJECTS,
    TOPICS,
    fleet_of,
    host_status,
    machine_status,
    replica_status,
)
from tests.support.brokers import Broker

EVIL = "\x1b]0;owned\x07\x1b[2J[red]no[/] [/bad] \u202eabc\x9b31m\nkvm99: ready\r"
REPLICA = ReplicaTopic("kvm01", "default", "deb12")


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def evil_fleet() -> Fleet:
    status = ReplicaStatus(
        template="deb12",
        generation=9,
        pool="default",
        state=ReplicaState.FAILED,
        code=FailureCode.IO,
        message=EVIL,
        hint=EVIL,
        path=EVIL,
        checksum=EVIL,
        size=10**400,
        since=datetime(1, 1, 1, tzinfo=UTC),
        next_attempt=datetime(9999, 12, 31, 23, 59, tzinfo=UTC),
    )
    figures = Progress(size=10**400, done=10**399, bytes_per_second=10**400)
    said = {"code": FailureCode.MACHINE, "message": EVIL, "hint": EVIL, "console": EVIL}
    return fleet_of(
        *SUBJECTS,
        (HostTopic("kvm01"), host_status("kvm01", zone=EVIL)),
        (REPLICA, encode_status(status)),
        (ProgressTopic("kvm01", "default", "deb12"), encode_status(figures)),
        (MachineTopic("kvm01", "vm1"), machine_status("vm1", MachineState.FAILED, **said)),
    )


def assert_harmless(written: str) -> None:
    lines = written.split("\n")
    assert all(c.isprintable() for line in lines for c in line.removesuffix("\r")), ascii(written)
    assert not any(line.startswith("kvm99") for line in lines)


@pytest.mark.parametrize("stream", [StringIO, Terminal])
@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Asia/Tokyo"])
def test_tables_show_it_literally(stream: type[TextIO], zone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("TZ", zone)
    fleet, stdout = evil_fleet(), stream()
    output = Output(is_json=False, stdout=stdout)
    for rows, sheet in (
        views.hosts(fleet),
        views.replicas(fleet),
        views.machines(fleet),
        views.outcome([Standing("kvm01", Phase.FAILED, "failed", message=EVIL, hint=EVIL)], title="t"),
    ):
        output.show(rows, sheet)
    output.console.print(screen(fleet, None, height=40))
    assert_harmless(stdout.getvalue())
    assert "[red]no[/] [/bad]" in stdout.getvalue()


@pytest.mark.parametrize("stream", [StringIO, Terminal])
def test_notes_and_errors_show_it_literally(stream: type[TextIO], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")
    stderr = stream()
    output = Output(is_json=False, stdout=StringIO(), stderr=stderr)
    with open_screen(output) as shown:
        shown.update([Standing("kvm01", Phase.PENDING, "waiting", code=FailureCode.IO, message=EVIL)])
    output.fail(ControlError(EVIL.replace("\n", ""), hint=EVIL))
    assert_harmless(stderr.getvalue())
    assert "[red]no[/] [/bad]" in stderr.getvalue()


def test_json_is_one_line_of_ascii_and_says_the_same() -> None:
    stdout = StringIO()
    rows, sheet = views.replicas(evil_fleet())
    Output(is_json=True, stdout=stdout).show(rows, sheet)
    assert stdout.getvalue().isascii()
    lines = stdout.getvalue().splitlines()
    assert [json.loads(line)["message"] for line in lines] == [row["message"] for row in rows]
    assert EVIL in rows[0]["message"]


def test_explain_takes_it_as_words() -> None:
    texts = [sentence.text for sentence in explain(evil_fleet(), "deb12", "kvm01", {})]
    assert any("[/bad]" in text for text in texts)


@given(st.text())
def test_what_is_written_plainly_is_printable_and_ascii_stays_as_it_is(words: str) -> None:
    assert plain(words).isprintable()
    assert plain(plain(words)) == plain(words)


@given(st.integers(0, 10**600))
def test_any_size_can_be_written(count: int) -> None:
    assert size(count)[-1] == "B"


@given(st.datetimes(timezones=st.just(UTC)))
def test_any_moment_can_be_written(time: datetime) -> None:
    assert moment(time)[4] == "-"


@pytest.mark.parametrize(
    ("topic", "payload"),
    [
        (HostTopic("kvm99"), host_status("kvm01")),
        (ReplicaTopic("kvm99", "default", "other"), replica_status(5)),
        (ReplicaTopic("kvm99", "fast", "deb12"), replica_status(5)),
        (
            ReceiptTopic("kvm99", "e1"),
            encode_status(Receipt(event="e1", host="kvm01", outcome=Outcome.ACCEPTED, topic="t", time=NOW)),
        ),
        (
            ReceiptTopic("kvm99", "e1"),
            encode_status(Receipt(event="e2", host="kvm99", outcome=Outcome.ACCEPTED, topic="t", time=NOW)),
        ),
    ],
)
def test_a_host_speaks_only_for_itself_and_of_what_its_topic_names(topic: StatusTopic, payload: bytes) -> None:
    fleet = fleet_of()
    assert fleet.take(TOPICS.build(topic), payload) is None
    assert (fleet.hosts, fleet.replicas) == ({}, {})


@given(st.sampled_from(SUBJECTS), st.binary(max_size=40), st.integers(0, 300))
def test_rubbish_never_stops_the_view(subject: tuple[StatusTopic, bytes], rubbish: bytes, position: int) -> None:
    topic, payload = subject
    fleet = fleet_of(*SUBJECTS)
    change = fleet.take(TOPICS.build(topic), payload[:position] + rubbish + payload[position + len(rubbish) :])
    if change is not None:
        change_row(fleet, change, None)
    for _, sheet in (views.hosts(fleet), views.templates(fleet), views.replicas(fleet), views.machines(fleet)):
        Output(is_json=False, stdout=StringIO()).show([], sheet)


async def test_a_generation_that_nobody_can_exceed_is_told(broker: Broker, kvmctl: Kvmctl) -> None:
    async with ScriptedHost(broker.url, "kvm01").running():
        async with broker.client() as client:
            status = {"template": "deb12", "generation": 2**63 - 1, "verdict": "good", "checked": NOW.isoformat()}
            topic = TOPICS.build(ProbeTopic("kvm01", "deb12"))
            await client.publish(topic, json.dumps(status), retain=True)
        done = await kvmctl.run("register", "deb12", URL, "--checksum", CHECKSUM)
    assert done.code == 1
    assert "EVENT_STALE" in done.stderr
    assert "clear what is retained" in done.stderr
