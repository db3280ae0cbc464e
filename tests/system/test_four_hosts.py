"""Four real hypervisors and a controller: what one host alone cannot show."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import bootable
from tests.support.namespaces import HUB, Network
from tests.support.waiting import eventually_blocking
from tests.system.fleet_of_hypervisors import HOSTS, SMALL, SMALL_SIZE, Fleet

pytestmark = [pytest.mark.system, pytest.mark.timeout(150)]
MARKER = "one of four is up"
BOOT_S = 30.0


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Run the fleet; afterwards no namespace, no mount and no process of it is left."""
    folder = tmp_path_factory.mktemp("fleet")
    with Network(HOSTS) as network:
        one = Fleet(folder, network)
        with one.running():
            yield one
        for name in (HUB, *HOSTS):
            assert network.processes(name) == []
    mounts = Path("/proc/self/mounts").read_text()
    assert [one.name for one in one.hosts.values() if str(one.libvirtd.folder) in mounts] == []


@pytest.fixture
def guest(fleet: Fleet, request: pytest.FixtureRequest) -> str:
    """Register the bootable template under a name of the test's own, and give it."""
    name = re.sub(r"[^a-z]+", "-", request.node.name)[-40:].strip("-")
    fleet.register(name, bootable.qcow2(MARKER), is_slow=True)
    return name


def boots(fleet: Fleet, host: str, machine: str, uuid: str) -> None:
    """Wait until the machine has greeted, and has read the instance id of its own seed."""
    said = fleet.hosts[host].console
    eventually_blocking(
        lambda: MARKER in said(machine) and f"instance-id: {uuid}" in said(machine),
        timeout_s=BOOT_S,
        what=f"{machine} boots on {host}: {said(machine)[-500:]}",
    )


def test_machines_boot_on_every_host_from_a_template_that_was_deployed_over_a_libvirtd_that_died(
    fleet: Fleet, guest: str
) -> None:
    killed = fleet.hosts["kvm02"]
    with fleet.kvmctl_started("deploy", guest, "--all", "--wait", "--json") as deploying:
        eventually_blocking(lambda: any((killed.pool / ".kvmd").glob("*")), what="the download has begun")
        killed.libvirtd.kill()
        assert not (killed.pool / guest).exists()
        killed.libvirtd.start()
        assert deploying.wait(60) == 0, deploying.stderr

    for name in ("first", "second"):
        targets = ("--all",) if name == "first" else ("--host", "kvm01")
        done = fleet.kvmctl("deploy", guest, *targets, "--machine", fleet.machine(name=name), "--wait", "--json")
        assert done.code == 0, done.stdout + done.stderr
    first, second = fleet.machines("first"), fleet.machines("second")
    assert (set(first), set(second)) == (set(HOSTS), {"kvm01"})
    for host, told in first.items():
        boots(fleet, host, "first", told["uuid"])
    boots(fleet, "kvm01", "second", second["kvm01"]["uuid"])
    assert len({told["uuid"] for told in (*first.values(), *second.values())}) == len(HOSTS) + 1
    for host in fleet.hosts.values():
        assert (host.pool / guest).read_bytes() == bootable.qcow2(MARKER)

    for name in ("first", "second"):
        assert fleet.kvmctl("machine", "remove", name, "--wait").code == 0
    assert [list(host.pool.glob("*+*")) for host in fleet.hosts.values()] == [[]] * len(HOSTS)


def test_an_iso_boots_as_a_cdrom(fleet: Fleet) -> None:
    image = bootable.iso(MARKER)
    fleet.register("installer", image, format="iso")
    machine = fleet.machine(name="cd")
    assert fleet.kvmctl("deploy", "installer", "--host", "kvm04", "--machine", machine, "--wait").code == 0
    boots(fleet, "kvm04", "cd", fleet.machines("cd")["kvm04"]["uuid"])
    assert (fleet.hosts["kvm04"].pool / "installer").read_bytes() == image
    assert fleet.kvmctl("machine", "remove", "cd", "--wait").code == 0


def test_a_host_whose_pool_is_gone_and_a_full_one_are_asked_once_and_the_next_takes_the_machine(
    fleet: Fleet, guest: str
) -> None:
    assert fleet.kvmctl("deploy", guest, "--host", "kvm02", "--host", SMALL, "--wait").code == 0
    gone, full = fleet.hosts["kvm02"], fleet.hosts[SMALL]
    gone.libvirtd.forget_pool("images")
    with pytest.raises(OSError, match="No space"):
        (full.pool / "filler").write_bytes(bytes(SMALL_SIZE))

    tried = deploy_trying(fleet, guest, "lost", "kvm02", SMALL)
    assert sorted(tried.items()) == [("kvm02", "POOL_MISSING"), (SMALL, "NO_SPACE")]
    tried = deploy_trying(fleet, guest, "found", SMALL, "kvm04")
    assert list(tried.items()) == [(SMALL, "NO_SPACE"), ("kvm04", None)]

    boots(fleet, "kvm04", "found", fleet.machines("found")["kvm04"]["uuid"])
    assert (fleet.machines("lost"), set(fleet.machines("found"))) == ({}, {"kvm04"})


def deploy_trying(fleet: Fleet, template: str, machine: str, *hosts: str) -> dict[str, str | None]:
    """Try hosts one after the other; give the code of each in the order in which they were tried."""
    named = [word for host in hosts for word in ("--host", host)]
    done = fleet.kvmctl("deploy", template, *named, "--machine", fleet.machine(name=machine), "--try", "4", "--json")
    rows = [row for row in done.rows if row["kind"] == "outcome"]
    assert len({row["host"] for row in rows}) == len(rows), "each is tried once"
    return {row["host"]: row["code"] for row in rows}
