"""Tables and rows."""

from __future__ import annotations

import io
import json

from rich.console import Console, RenderableType

from controller import views
from controller.commands.watch import change_row, screen
from controller.errors import ControlError
from controller.fleet import Fleet
from controller.outcome import Phase, Standing
from controller.output import Output
from controller.screen import open_screen
from controller.sheet import Sheet, size
from kvmwire.codec import encode_status
from kvmwire.codes import FailureCode
from kvmwire.events import RegisterData
from kvmwire.status import (
    HostState,
    HostStatus,
    MachineState,
    PoolState,
    PoolStatus,
    Progress,
    ReplicaState,
    ReplicaStatus,
)
from kvmwire.topics import HostTopic, MachineTopic, ProgressTopic, RegisterTopic, ReplicaTopic, Topic
from tests.controller.test_fleet import (
    NOW,
    SUBJECTS,
    TOPICS,
    event_of,
    fleet_of,
    host_status,
    machine_status,
    replica_status,
)


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
    assert [line.split()[0] for line in lines if line.startswith("kvm")] == ["kvm01", "kvm02"] * 3


def failed_machine(name: str, *, template: str = "deb12") -> bytes:
    said = {"message": "it crashed.", "hint": "Look at its console.", "console": "one\ntwo\nKernel panic\n"}
    return machine_status(name, MachineState.FAILED, template=template, code=FailureCode.MACHINE, **said)


def test_machines_stand_on_the_live_screen_those_first_that_have_failed_with_the_end_of_their_console() -> None:
    machines = [(MachineTopic("kvm01", f"vm{n:03}"), machine_status(f"vm{n:03}")) for n in range(200)]
    fleet = a_large_fleet()
    for topic, payload in (*machines, (MachineTopic("kvm02", "bad"), failed_machine("bad"))):
        fleet.take(TOPICS.build(topic), payload)
    lines = [line.rstrip() for line in drawn(screen(fleet, None, height=40)).splitlines()]
    assert len(lines) <= 40
    table = lines[lines.index("machines") :]
    assert table[2].split()[:4] == ["kvm02", "bad", "failed", "deb12"]
    assert "kvm02 bad: MACHINE: it crashed. Look at its console." in table
    assert "kvm02 bad console: Kernel panic" in table
    assert table[-1] == "and 196 more"
    assert any("downloading" in line for line in lines[: lines.index("machines")])


def test_machines_are_those_of_the_template_that_is_watched() -> None:
    fleet = fleet_of(
        (MachineTopic("kvm01", "a"), machine_status("a")), (MachineTopic("kvm01", "b"), failed_machine("b"))
    )
    other = fleet.take(TOPICS.build(MachineTopic("kvm01", "c")), failed_machine("c", template="other"))
    assert other is not None
    assert [row["name"] for row in views.machines(fleet, template="deb12")[0]] == ["a", "b"]
    assert change_row(fleet, other, "deb12") is None
    assert change_row(fleet, other, "other") == change_row(fleet, other, None) == views.machines(fleet)[0][2]


def test_the_console_of_a_machine_that_is_well_is_no_news() -> None:
    fleet = fleet_of((MachineTopic("kvm01", "vm1"), machine_status("vm1", console="login:")))
    rows, shown = views.machines(fleet)
    assert rows[0]["console"] == ""
    assert "login:" not in drawn(shown)


def test_a_hosts_pools_are_shown_with_what_is_free_in_them() -> None:
    known = PoolStatus(
        name="fast", type="libvirt", path="/p", state=PoolState.ACTIVE, capacity=1 << 40, available=3 << 30
    )
    gone = PoolStatus(name="slow", type="libvirt", path="/q", state=PoolState.MISSING)
    status = HostStatus(host="kvm01", state=HostState.ONLINE, pools=(known, gone))
    rows, shown = views.hosts(fleet_of((HostTopic("kvm01"), encode_status(status))))
    assert [(pool["capacity"], pool["available"]) for pool in rows[0]["pools"]] == [(1 << 40, 3 << 30), (None, None)]
    assert "fast active 3.0 GiB of 1.0 TiB free, slow missing" in drawn(shown)


def test_rows_are_json_and_urls_in_them_are_redacted() -> None:
    topic = RegisterTopic("t")
    record = RegisterData(template="t", url="http://o.test/a?token=secret", headers={"X-Key": "hidden"})
    rows, shown = views.templates(fleet_of((topic, event_of(topic, record, 1))))
    text = json.dumps(rows) + drawn(shown)
    assert "http://o.test/a" in text
    assert "secret" not in text
    assert "hidden" not in text


def test_what_hosts_send_is_no_markup() -> None:
    shown = Sheet("t", "a")
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


def shown_in(width: int | None, *standings: Standing) -> list[str]:
    stream = io.StringIO()
    output = Output(is_json=False, stdout=stream)
    rows, sheet = views.outcome(standings, title="deploy deb12")
    if width is None:
        output.show(rows, sheet)
    else:
        Console(file=stream, width=width).print(sheet)
    return stream.getvalue().splitlines()


def test_messages_stand_below_the_table_once_for_all_hosts_they_are_about() -> None:
    message = "expected {SHA-256}" + "ab" * 32 + ", got {SHA-256}" + "cd" * 32
    failed = [
        Standing(
            f"kvm{n:02}", Phase.FAILED, "failed", code=FailureCode.CHECKSUM_MISMATCH, message=message, hint="Look."
        )
        for n in range(12)
    ]
    piped, narrow = shown_in(None, *failed), shown_in(80, *failed)
    assert piped[-1].startswith(
        "kvm00, kvm01, kvm02, kvm03, kvm04, kvm05, kvm06, kvm07 and 4 more: CHECKSUM_MISMATCH: "
    )
    assert piped[-1].endswith("Look.")
    assert all(line == line.rstrip() for line in piped)
    assert max(map(len, piped[:-1])) < 80
    assert max(map(len, narrow)) <= 80
    assert next(line.split()[:2] for line in narrow if line.startswith("kvm0")) == ["kvm00", "failed"]


def test_in_a_narrow_terminal_only_the_last_column_wraps() -> None:
    status = ReplicaStatus(
        template="deb12",
        generation=1,
        pool="default",
        state=ReplicaState.READY,
        path="/var/lib/libvirt/images/" + "x" * 60,
        checksum="{SHA-256}" + "ab" * 32,
        since=NOW,
    )
    narrow = shown_in(80, Standing("kvm01", Phase.DONE, "ready", status=status))
    assert narrow[2].startswith("kvm01  ready  {SHA-256}abababababab…  /var/lib")
    assert not any(line.startswith("kvm01") for line in narrow[3:])
    assert "".join(line[-46:].strip() for line in narrow[2:]).endswith("x" * 60)


def test_bars_of_a_large_fleet_fit_the_terminal_and_show_first_who_is_not_done() -> None:
    output = Output(is_json=False, stdout=io.StringIO())
    stream = io.StringIO()
    output.notes = Console(file=stream, force_terminal=True, width=100, height=20)
    done = [Standing(f"kvm{n:03}", Phase.DONE, "ready") for n in range(300)]
    with open_screen(output) as shown:
        shown.update([*done, Standing("slow", Phase.PENDING, "waiting", code=FailureCode.IO, message="disk")])
    last = stream.getvalue().rsplit("slow", 1)[-1]
    assert "and 285 more; 300 of 301 are settled" in last
    assert "slow: IO: disk" in stream.getvalue()
    assert last.count("kvm") == 15
