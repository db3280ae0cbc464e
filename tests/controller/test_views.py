"""Tables and rows."""

from __future__ import annotations

import io
import json

from rich.console import Console, RenderableType

from controller import views
from controller.commands.watch import screen
from controller.errors import ControlError
from controller.fleet import Fleet
from controller.outcome import Phase, Standing
from controller.output import Output, size, table
from controller.screen import open_screen
from kvmwire.codec import encode_status
from kvmwire.codes import FailureCode
from kvmwire.events import RegisterData
from kvmwire.status import Progress, ReplicaState
from kvmwire.topics import HostTopic, ProgressTopic, RegisterTopic, ReplicaTopic, Topic
from tests.controller.test_fleet import SUBJECTS, event_of, fleet_of, host_status, replica_status


def drawn(*parts: RenderableType) -> str:
    stream = io.StringIO()
    Console(file=stream, width=200).print(*parts)
    return stream.getvalue()


def a_large_fleet() -> Fleet:
    hosts = [f"kvm{n:03}" for n in range(200)]
    states = {"kvm150": ReplicaState.DOWNLOADING}
    messages: list[tuple[Topic, bytes]] = [(HostTopic(host), host_status(host)) for host in hosts]
    messages += [
        (ReplicaTopic(host, "default", "deb12"), replica_status(5, states.get(host, ReplicaState.READY)))
        for host in hosts
    ]
    figures = Progress(size=1000, done=250, bytes_per_second=2048)
    return fleet_of(*messages, (ProgressTopic("kvm150", "default", "deb12"), encode_status(figures)))


def test_the_live_screen_shows_what_is_worked_on_first_and_no_more_than_fits() -> None:
    lines = drawn(screen(a_large_fleet(), None, height=40)).splitlines()
    assert len(lines) <= 40
    assert lines[0] == "200 of 200 hosts online"
    first = next(line for line in lines if line.startswith("kvm"))
    assert "downloading" in first
    assert "25% of 1000 B, 2.0 KiB/s" in first
    assert lines[-1].startswith("and 1")


def test_the_live_screen_of_a_small_fleet_shows_every_host() -> None:
    lines = drawn(screen(fleet_of(*SUBJECTS), "deb12", height=40)).splitlines()
    assert [line.split()[0] for line in lines if line.startswith("kvm")] == ["kvm01", "kvm02"] * 2


def test_rows_are_json_and_urls_in_them_are_redacted() -> None:
    topic = RegisterTopic("t")
    record = RegisterData(template="t", url="http://o.test/a?token=secret", headers={"X-Key": "hidden"})
    rows, shown = views.templates(fleet_of((topic, event_of(topic, record, 1))))
    text = json.dumps(rows) + drawn(shown)
    assert "http://o.test/a" in text
    assert "secret" not in text
    assert "hidden" not in text


def test_what_hosts_send_is_no_markup() -> None:
    shown = table("t", "a")
    rows, made = views.outcome(
        [Standing("kvm01", Phase.FAILED, "failed", code=FailureCode.IO, message="[red]no[/] [bad")], title="t"
    )
    assert rows[0]["message"] == "[red]no[/] [bad"
    assert "IO: [red]no[/] [bad" in drawn(made, shown)


def test_sizes_are_written_for_people() -> None:
    assert [size(n) for n in (None, 0, 1023, 1024, 5 * 2**30, 2**60)] == [
        "-",
        "0 B",
        "1023 B",
        "1.0 KiB",
        "5.0 GiB",
        "1024.0 PiB",
    ]


def test_off_a_terminal_each_change_is_one_line() -> None:
    stderr = io.StringIO()
    output = Output(is_json=False, stdout=io.StringIO(), stderr=stderr)
    half = Progress(size=1000, done=555, bytes_per_second=1)
    with open_screen(output) as shown:
        for standing in (
            Standing("kvm01", Phase.PENDING, "downloading", progress=half),
            Standing("kvm01", Phase.PENDING, "downloading", progress=half.model_copy(update={"done": 559})),
            Standing("kvm01", Phase.FAILED, "failed", code=FailureCode.IO, message="disk"),
        ):
            shown.update([standing])
    assert stderr.getvalue().splitlines() == ["kvm01: downloading 50% of 1000 B", "kvm01: failed: IO: disk"]


def test_on_a_terminal_each_host_has_a_bar() -> None:
    output = Output(is_json=False, stdout=io.StringIO())
    stream = io.StringIO()
    output.notes = Console(file=stream, force_terminal=True, width=120)
    half = Progress(size=1000, done=500, bytes_per_second=1)
    with open_screen(output) as shown:
        shown.update([Standing(h, Phase.PENDING, "downloading", progress=half) for h in ("kvm01", "kvm02")])
        shown.update([Standing("kvm01", Phase.DONE, "ready"), Standing("kvm02", Phase.MISSING, "offline")])
    assert "kvm01" in stream.getvalue()
    assert "kvm02" in stream.getvalue()
    assert "━" in stream.getvalue()


def test_a_failure_is_told_with_code_message_and_hint() -> None:
    stdout, stderr = io.StringIO(), io.StringIO()
    error = ControlError("it is full [1]", hint="free space", code=FailureCode.NO_SPACE)
    Output(is_json=True, stdout=stdout, stderr=stderr).fail(error)
    assert json.loads(stdout.getvalue()) == {
        "kind": "error",
        "code": "NO_SPACE",
        "message": "it is full [1]",
        "hint": "free space",
    }
    assert stderr.getvalue() == "error: NO_SPACE: it is full [1]\n  free space\n"
