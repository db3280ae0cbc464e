"""Machines seen from the controller: deployed, waited for, tried on host after host, switched, removed."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path

import pytest

from kvmwire.codes import FailureCode
from kvmwire.events import DeployData, Ensure
from tests.controller.kvmctl import Kvmctl, ended
from tests.controller.scripted_host import Script, ScriptedHost
from tests.controller.test_commands import watching
from tests.support.brokers import Broker, MosquittoBroker
from tests.support.waiting import eventually

pytestmark = pytest.mark.parametrize("broker_kind", [MosquittoBroker], ids=["mosquitto"], indirect=True)


@pytest.fixture
def vm1(tmp_path: Path) -> str:
    """Write a machine's file."""
    path = tmp_path / "vm1.toml"
    path.write_text('name = "vm1"\nmemory_mib = 512\n')
    return str(path)


@pytest.fixture
async def kvmctl(broker: Broker, tmp_path: Path) -> Kvmctl:
    """Give kvmctl with a registered template."""
    one = Kvmctl(broker.url, tmp_path)
    await one.registered()
    return one


def wishes(host: ScriptedHost) -> list[tuple[Ensure, bool | None]]:
    """Give what a host was asked of its machine, or of its replica alone (None), the oldest first."""
    seen = [event.data for event in host.received if isinstance(event.data, DeployData)]
    return [(data.ensure, data.machine.start if data.machine else None) for data in seen]


async def test_deploy_waits_until_the_machine_runs(broker: Broker, kvmctl: Kvmctl, vm1: str) -> None:
    async with ScriptedHost(broker.url, "kvm01").running():
        done = await kvmctl.run("deploy", "deb12", "--host", "kvm01", "--machine", vm1, "--wait", "--json")
        listed = await kvmctl.run("machine", "list", "--json")
        console = await kvmctl.run("machine", "console-log", "vm1")

    assert done.code == 0, done.stderr
    assert [(row["host"], row["state"]) for row in done.rows if row["kind"] == "outcome"] == [("kvm01", "running")]
    assert [(row["name"], row["state"], row["deployment"]) for row in listed.rows] == [("vm1", "running", "deb12.vm1")]
    assert console.stdout == "login:\nkvmd\n"


async def test_a_machine_that_fails_is_told_with_its_code(broker: Broker, kvmctl: Kvmctl, vm1: str) -> None:
    async with ScriptedHost(broker.url, "kvm01", Script(machine_fails_with=FailureCode.MACHINE)).running():
        done = await kvmctl.run("deploy", "deb12", "--all", "--machine", vm1, "--wait", "--json")
        listed = await kvmctl.run("machine", "list")
        status = await kvmctl.run("status", "deb12", "--json")

    assert done.code == 1
    assert done.rows[-1]["code"] == "MACHINE"
    assert "kvm01 vm1: MACHINE: as the script says" in listed.stdout
    assert "kvm01 vm1 console: login:" in listed.stdout
    assert [(row["name"], row["console"]) for row in status.rows if row["kind"] == "machine"] == [
        ("vm1", "login:\nkvmd")
    ]


async def test_watch_shows_machines_from_the_first_to_the_last(broker: Broker, kvmctl: Kvmctl, vm1: str) -> None:
    async with ScriptedHost(broker.url, "kvm01").running():
        assert (await kvmctl.run("deploy", "deb12", "--all", "--machine", vm1, "--wait")).code == 0
        async with kvmctl.started("watch", "--json") as process:
            assert process.stdout is not None
            await watching(broker, "deb12", process.stdout)
            assert (await kvmctl.run("machine", "stop", "vm1", "--wait")).code == 0
            assert (await kvmctl.run("machine", "remove", "vm1", "--wait")).code == 0
            missing = [("machine", "stopped"), ("cleared", None)]
            async with asyncio.timeout(10):
                while missing:
                    row = json.loads(await process.stdout.readline())
                    if (row["kind"], row.get("state")) == missing[0]:
                        missing.pop(0)
            process.send_signal(signal.SIGINT)
            await ended(process)


async def test_a_machine_is_stopped_started_and_removed(broker: Broker, kvmctl: Kvmctl, vm1: str) -> None:
    async with ScriptedHost(broker.url, "kvm01").running() as host:
        assert (await kvmctl.run("deploy", "deb12", "--all", "--machine", vm1, "--wait")).code == 0
        for verb, state in (("stop", "stopped"), ("start", "running"), ("remove", "removed")):
            done = await kvmctl.run("machine", verb, "vm1", "--wait", "--json")
            assert (done.code, done.rows[-1]["state"]) == (0, state), done.stderr
        again = await kvmctl.run("machine", "start", "vm1")
        assert wishes(host) == [
            (Ensure.PRESENT, True),
            (Ensure.PRESENT, False),
            (Ensure.PRESENT, True),
            (Ensure.ABSENT, True),
        ]
    assert again.code == 1
    assert "vm1" in again.stderr


async def test_a_template_that_a_machine_stands_on_is_not_removed(broker: Broker, kvmctl: Kvmctl, vm1: str) -> None:
    async with ScriptedHost(broker.url, "kvm01").running() as host:
        assert (await kvmctl.run("deploy", "deb12", "--all", "--machine", vm1, "--wait")).code == 0
        refused = await kvmctl.run("remove", "deb12")
        assert (await kvmctl.run("machine", "remove", "vm1", "--wait")).code == 0
        removed = await kvmctl.run("remove", "deb12", "--wait")
        await eventually(lambda: wishes(host)[-1] == (Ensure.ABSENT, None), what="the replica's removal")

    assert refused.code != 0
    assert "vm1 on kvm01" in refused.stderr
    assert removed.code == 0, removed.stderr


async def test_the_next_host_is_tried_and_each_only_once(broker: Broker, kvmctl: Kvmctl, vm1: str) -> None:
    full, gone = Script(fails_with=FailureCode.NO_SPACE), Script(machine_fails_with=FailureCode.POOL_MISSING)
    async with (
        ScriptedHost(broker.url, "kvm01", full).running() as first,
        ScriptedHost(broker.url, "kvm02", gone).running() as second,
        ScriptedHost(broker.url, "kvm03").running() as third,
        ScriptedHost(broker.url, "kvm04").running() as fourth,
    ):
        done = await kvmctl.run("deploy", "deb12", "--all", "--machine", vm1, "--try", "3", "--json")

        assert done.code == 0, done.stderr
        assert [(row["host"], row["state"]) for row in done.rows] == [
            ("kvm01", "failed"),
            ("kvm02", "failed"),
            ("kvm03", "running"),
        ]
        assert wishes(first) == [(Ensure.PRESENT, True), (Ensure.ABSENT, True), (Ensure.ABSENT, None)]
        assert wishes(second) == [(Ensure.PRESENT, True), (Ensure.ABSENT, True)]
        assert wishes(third) == [(Ensure.PRESENT, True)]
        assert wishes(fourth) == []


async def test_a_replica_that_was_deployed_for_itself_stays_on_a_host_that_cannot_run_the_machine(
    broker: Broker, kvmctl: Kvmctl, vm1: str
) -> None:
    async with ScriptedHost(broker.url, "kvm01").running() as full, ScriptedHost(broker.url, "kvm02").running():
        assert (await kvmctl.run("deploy", "deb12", "--host", "kvm01", "--wait")).code == 0
        full.script.fails_with = FailureCode.NO_SPACE
        done = await kvmctl.run("deploy", "deb12", "--all", "--machine", vm1, "--try", "2", "--json")

        assert [(row["host"], row["state"]) for row in done.rows] == [("kvm01", "failed"), ("kvm02", "running")]
        assert wishes(full) == [(Ensure.PRESENT, None), (Ensure.PRESENT, True), (Ensure.ABSENT, True)]


async def test_no_more_hosts_are_tried_than_was_said(broker: Broker, kvmctl: Kvmctl, vm1: str) -> None:
    bad = Script(machine_fails_with=FailureCode.MACHINE)
    async with (
        ScriptedHost(broker.url, "kvm01", bad).running(),
        ScriptedHost(broker.url, "kvm02").running() as second,
    ):
        done = await kvmctl.run("deploy", "deb12", "--all", "--machine", vm1, "--try", "1")

        assert done.code == 1
        assert wishes(second) == []


async def test_a_wrong_image_is_not_tried_elsewhere(broker: Broker, kvmctl: Kvmctl, vm1: str) -> None:
    wrong = Script(fails_with=FailureCode.CHECKSUM_MISMATCH)
    async with (
        ScriptedHost(broker.url, "kvm01", wrong).running(),
        ScriptedHost(broker.url, "kvm02").running() as second,
    ):
        done = await kvmctl.run("deploy", "deb12", "--all", "--machine", vm1, "--try", "2")

        assert done.code == 3
        assert wishes(second) == []


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"name": "vm1", "memory": 512}', "memory: unknown field"),
        ('{"name": "../vm1"}', "name"),
        ('{"vcpus": 0, "name": "vm1"}', "vcpus"),
        ("{", "--machine"),
    ],
)
async def test_a_machines_file_is_checked_before_anything_is_sent(
    kvmctl: Kvmctl, tmp_path: Path, text: str, told: str
) -> None:
    path = tmp_path / "vm.json"
    path.write_text(text)

    done = await kvmctl.run("deploy", "deb12", "--all", "--machine", str(path), "--json")

    assert done.code == 2
    assert told in json.dumps(done.rows) + done.stderr
