"""Virtual machines from templates: real libvirtd, real QEMU under emulation, and a guest that speaks on its serial console."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.kvmd.daemon.harness import HOST, Daemon, Site, record, running
from tests.kvmd.daemon.machines import define_pool, domains, forget_all, is_gone, machine, machine_host, on_console
from tests.support import bootable, images
from tests.support.brokers import Broker, MosquittoBroker
from tests.support.hostile import HostileServer
from tests.support.libvirtd import Libvirtd
from tests.support.waiting import eventually

pytestmark = pytest.mark.parametrize("broker_kind", [MosquittoBroker], ids=["mosquitto"], indirect=True)
MARKER = "kvmd test guest is up"


@pytest.fixture(scope="module")
def libvirtd() -> Iterator[Libvirtd]:
    """Start one for the tests of this module."""
    with Libvirtd() as one:
        yield one


@pytest.fixture
def pool(libvirtd: Libvirtd, tmp_path: Path) -> Iterator[Path]:
    """Make the pool; afterwards no machine is left."""
    folder = tmp_path / "images"
    define_pool(libvirtd, folder)
    yield folder
    forget_all(libvirtd)


@pytest.fixture
async def host(broker: Broker, libvirtd: Libvirtd, pool: Path, tmp_path: Path) -> AsyncIterator[Daemon]:
    """Run a host with machines."""
    assert pool.is_dir()
    async with running(machine_host(tmp_path / "kvm01", broker.url, libvirtd)) as daemon:
        yield daemon


@pytest.fixture
def template(hostile: HostileServer) -> dict[str, object]:
    """Serve the bootable template, and give its record."""
    image = bootable.qcow2(MARKER)
    hostile.add("guest.qcow2", image)
    return record("guest", hostile.url("guest.qcow2"), image)


async def test_a_machine_boots_from_its_template_and_reads_its_seed(
    host: Daemon, lab: Site, pool: Path, libvirtd: Libvirtd, template: dict[str, object]
) -> None:
    await lab.deploy(
        template,
        "vm1",
        machine={"name": "vm1", "memory_mib": 64, "cloud_init": {"user_data": "#cloud-config\nword: kvmd"}},
    )

    status = await machine(lab, "vm1", "running")
    said = await on_console(pool, "vm1", MARKER, "word: kvmd")
    assert f"instance-id: {status.uuid}" in said
    assert "local-hostname: vm1" in said
    assert [one.state.value for one in lab.watch.of(type(status), f"{HOST}/machine/vm1")][:3] == [
        "defined",
        "starting",
        "running",
    ]
    assert hashlib.sha256((pool / "guest").read_bytes()).hexdigest() in str(template["checksum"])
    assert {"guest", "vm1+root.qcow2", "vm1+seed.iso"} <= libvirtd.volumes("images")
    heard = await lab.watch.until(type(status), f"{HOST}/machine/vm1", lambda one: MARKER in one.console)
    assert "\x1b" not in heard.console
    assert host.leftovers() == []


async def test_two_machines_stand_on_one_replica_which_cannot_go_before_them(
    host: Daemon, lab: Site, pool: Path, libvirtd: Libvirtd, template: dict[str, object]
) -> None:
    for name in ("vm1", "vm2"):
        await lab.deploy(template, name, machine={"name": name, "memory_mib": 64})
    statuses = [await machine(lab, name, "running") for name in ("vm1", "vm2")]
    for name in ("vm1", "vm2"):
        await on_console(pool, name, MARKER)
    assert statuses[0].uuid != statuses[1].uuid

    await lab.deploy(template, "guest", ensure="absent")
    refused = await lab.watch.until_code("guest", "IN_USE")
    assert "vm1, vm2" in refused.message
    assert (pool / "guest").exists()

    await lab.deploy(template, "vm1", ensure="absent", machine={"name": "vm1"})
    await is_gone(lab, "vm1")
    assert domains(libvirtd) == ["vm2"]
    assert sorted(path.name for path in pool.glob("*+*")) == ["vm2+console.log", "vm2+root.qcow2", "vm2+seed.iso"]
    assert (pool / "guest").exists()
    assert host.logged("machine removed", machine="vm1")


async def test_the_same_event_twice_is_one_machine_and_it_outlives_the_daemon(
    host: Daemon, lab: Site, pool: Path, libvirtd: Libvirtd, template: dict[str, object]
) -> None:
    data = {"template": template, "machine": {"name": "vm1", "memory_mib": 64}}
    first = await lab.bare("deploy/all/vm1", data)
    status = await machine(lab, "vm1", "running")
    root = (pool / "vm1+root.qcow2").stat()
    await lab.bare("deploy/all/vm1", data)
    await eventually(lambda: lab.watch.receipts(first) == ["accepted", "duplicate"], what="the second answer")

    await host.restart()
    await asyncio.to_thread(libvirtd.kill)
    await asyncio.to_thread(libvirtd.start)

    await host.has_logged("broker connected", times=2)
    await lab.deploy(template, "vm2", machine={"name": "vm2", "memory_mib": 64})
    await machine(lab, "vm2", "running")
    assert sorted(domains(libvirtd, "--state-running")) == ["vm1", "vm2"]
    assert libvirtd.virsh("domuuid", "vm1").strip() == status.uuid
    assert (pool / "vm1+root.qcow2").stat().st_ino == root.st_ino


async def test_kvm_is_used_where_it_works_and_else_the_machine_says_that_it_is_emulated(
    broker: Broker, lab: Site, libvirtd: Libvirtd, pool: Path, tmp_path: Path, template: dict[str, object]
) -> None:
    async with running(machine_host(tmp_path / "kvm01", broker.url, libvirtd, type="auto")):
        await lab.deploy(template, "vm1", machine={"name": "vm1", "memory_mib": 64})
        status = await machine(lab, "vm1", "running")
        is_kvm = "<domain type='kvm'" in libvirtd.virsh("dumpxml", "vm1")
        if not is_kvm:
            await on_console(pool, "vm1", MARKER)

    assert status.message.startswith("Emulated by QEMU") is not is_kvm
    assert status.code is None
    assert libvirtd.virsh("domuuid", "vm1").strip() == status.uuid


@pytest.mark.parametrize(
    ("wanted", "code"),
    [
        ({"memory_mib": 1 << 29}, "MACHINE"),
        ({"network": "nowhere"}, "MACHINE"),
        ({"memory_mib": 64, "cdrom": ["nothing"]}, "TEMPLATE_UNKNOWN"),
    ],
)
async def test_a_start_that_fails_leaves_nothing_behind(
    host: Daemon,
    lab: Site,
    pool: Path,
    libvirtd: Libvirtd,
    template: dict[str, object],
    wanted: dict[str, object],
    code: str,
) -> None:
    await lab.deploy(template, "vm1", machine={"name": "vm1", **wanted})

    failed = await machine(lab, "vm1", "failed")
    assert failed.code == code
    assert failed.hint
    assert domains(libvirtd) == []
    assert [path.name for path in pool.iterdir() if path.is_file()] == ["guest"]

    await lab.deploy(template, "vm1", machine={"name": "vm1", "memory_mib": 64})
    await machine(lab, "vm1", "running")
    assert host.process.running


async def test_somebody_elses_domain_and_files_are_left_alone(
    host: Daemon, lab: Site, pool: Path, libvirtd: Libvirtd, template: dict[str, object]
) -> None:
    (pool / "vm1+root.qcow2").write_text("mine")
    xml = pool.parent / "other.xml"
    xml.write_text("<domain type='qemu'><name>vm2</name><memory>65536</memory><os><type>hvm</type></os></domain>")
    libvirtd.virsh("define", xml)

    for name in ("vm1", "vm2"):
        await lab.deploy(template, name, machine={"name": name, "memory_mib": 64})

    for name in ("vm1", "vm2"):
        assert (await machine(lab, name, "failed")).code == "EXISTS"
    assert (pool / "vm1+root.qcow2").read_text() == "mine"
    assert domains(libvirtd) == ["vm2"]
    assert sorted(path.name for path in pool.iterdir() if path.is_file()) == ["guest", "vm1+root.qcow2"]
    assert host.process.running


async def test_an_iso_boots_as_a_cdrom_beside_an_empty_disk(
    host: Daemon, lab: Site, pool: Path, hostile: HostileServer, libvirtd: Libvirtd
) -> None:
    image, drivers = bootable.iso(MARKER), images.iso()
    hostile.add("guest.iso", image)
    hostile.add("drivers.iso", drivers)
    await lab.deploy(record("drivers", hostile.url("drivers.iso"), drivers, format="iso"))
    await lab.deploy(
        record("installer", hostile.url("guest.iso"), image, format="iso"),
        machine={"name": "vm1", "memory_mib": 64, "disk_gib": 3, "cdrom": ["drivers"]},
    )

    await machine(lab, "vm1", "running")
    await on_console(pool, "vm1", MARKER)
    assert (pool / "installer").read_bytes() == image
    blocks = libvirtd.virsh("domblklist", "vm1", "--details")
    assert str(pool / "drivers") in blocks
    info = json.loads(libvirtd.virsh("qemu-monitor-command", "vm1", '{"execute": "query-block"}'))
    drives = {one["inserted"]["file"]: one["inserted"] for one in info["return"] if "inserted" in one}
    assert drives[str(pool / "installer")]["ro"]
    assert drives[str(pool / "vm1+root.qcow2")]["image"]["virtual-size"] == 3 << 30
    assert host.process.running


async def test_a_machine_is_stopped_and_started_and_its_own_end_is_noticed(
    broker: Broker, lab: Site, pool: Path, libvirtd: Libvirtd, tmp_path: Path, template: dict[str, object]
) -> None:
    async with running(machine_host(tmp_path / "kvm01", broker.url, libvirtd, stop_timeout_s=0.5)):
        wanted = {"name": "vm1", "memory_mib": 64}
        await lab.deploy(template, "vm1", machine=wanted)
        await machine(lab, "vm1", "running")
        moved = await lab.deploy(template, "elsewhere", pool="other", machine=wanted)
        assert (await lab.watch.receipt(moved)).code == "EXISTS"
        await lab.deploy(template, "vm1", machine={**wanted, "start": False})
        await machine(lab, "vm1", "stopped")
        assert domains(libvirtd, "--state-running") == []
        root = (pool / "vm1+root.qcow2").stat().st_ino

        lab.client.messages.clear()
        await lab.deploy(template, "vm1", machine={**wanted, "vcpus": 2})
        await machine(lab, "vm1", "running")
        assert "2" in libvirtd.virsh("vcpucount", "vm1", "--active", "--live")
        assert (pool / "vm1+root.qcow2").stat().st_ino == root

        lab.client.messages.clear()
        libvirtd.virsh("destroy", "vm1")
        await machine(lab, "vm1", "stopped")


@pytest.mark.parametrize("reached", ["intent", "files", "definition"])
async def test_a_daemon_killed_before_the_start_makes_one_machine(
    host: Daemon, lab: Site, pool: Path, libvirtd: Libvirtd, template: dict[str, object], reached: str
) -> None:
    signs = {
        "intent": pool / "guest",
        "files": pool / "vm1+root.qcow2",
        "definition": libvirtd.folder / "etc" / "qemu" / "vm1.xml",
    }
    await lab.deploy(template, "vm1", machine={"name": "vm1", "memory_mib": 64})
    await eventually(signs[reached].exists, what=reached)
    libvirtd.freeze()
    await host.kill()
    libvirtd.thaw()
    await host.start()

    await machine(lab, "vm1", "running")
    await on_console(pool, "vm1", MARKER)
    assert domains(libvirtd) == ["vm1"]
    assert len(list(pool.glob("*+*"))) == 3


async def test_a_host_without_machines_refuses_the_event(kvmd: Daemon, lab: Site, template: dict[str, object]) -> None:
    event = await lab.deploy(template, "vm1", machine={"name": "vm1"})

    receipt = await lab.watch.receipt(event)
    assert (receipt.outcome.value, receipt.code) == ("refused", "UNSUPPORTED")
    assert "[machines]" in receipt.hint
    assert not kvmd.volume("guest").exists()
