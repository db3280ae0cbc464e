"""What is asked of libvirt about machines, and how they are started where KVM fails."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from kvmd.core.domain import Domain, DomainSpec, MachineFiles, Power, Provenance, RootDisk, Switch
from kvmd.errors import MachineError
from kvmd.hypervisor.connection import Connection
from kvmd.hypervisor.machines import Acceleration, LibvirtMachines
from tests.support.libvirtd import Libvirtd

UUIDS = {"vm1": "7a0f3d0c-5b0e-4b6e-9f52-3c8a2a3f1d11", "vm2": "7a0f3d0c-5b0e-4b6e-9f52-3c8a2a3f1d12"}
REMARK = "Emulated by QEMU, which is slow: KVM does not work on this host: kvm version too old."


@pytest.fixture
def broken() -> Iterator[Libvirtd]:
    """Run a libvirtd that offers a KVM which fails at every start."""
    with Libvirtd() as libvirtd:
        if "<domain type='kvm'" not in libvirtd.virsh("capabilities"):
            pytest.skip("libvirt offers no KVM on this machine")
        subprocess.run([*libvirtd.inside(), "mount", "--bind", "/dev/null", "/dev/kvm"], check=True)
        yield libvirtd


@asynccontextmanager
async def machines_at(uri: str, acceleration: Acceleration) -> AsyncIterator[LibvirtMachines]:
    """Open them, for as long as the context lasts."""
    connection = Connection(uri)
    with ThreadPoolExecutor(1) as executor:
        try:
            yield LibvirtMachines(connection, executor=executor, acceleration=acceleration)
        finally:
            await connection.close()


async def make(machines: LibvirtMachines, name: str, folder: Path) -> DomainSpec:
    """Define a machine with an empty disk."""
    root, console = str(folder / f"{name}+root.qcow2"), str(folder / f"{name}+console.log")
    spec = DomainSpec(
        name=name,
        uuid=UUIDS[name],
        provenance=Provenance("d", "default", "deb12"),
        memory_mib=32,
        vcpus=1,
        console=console,
        network="none",
        root=RootDisk(root, 1 << 20, None),
        is_autostarted=True,
    )
    await machines.make(spec, MachineFiles(console=console, root=root), is_new=True)
    return spec


async def test_a_domain_is_looked_at_when_its_name_is_asked_for_and_is_somebody_elses() -> None:
    async with machines_at("test:///default", "kvm") as machines:
        found = await machines.look({"test", "vm1"})
        assert await machines.look({"vm1"}) == {}
    assert found == {"test": Domain(found["test"].uuid, Power.ON, provenance=None)}


async def test_where_kvm_fails_a_machine_is_emulated_and_stays_the_one_it_is(broken: Libvirtd, tmp_path: Path) -> None:
    async with machines_at(broken.uri, "auto") as machines:
        spec = await make(machines, "vm1", tmp_path)
        before = broken.virsh("dumpxml", "vm1")
        inode = (tmp_path / "vm1+root.qcow2").stat().st_ino

        remark = await machines.switch(spec.uuid, Switch.ON)

        found = (await machines.look({"vm1"}))["vm1"]
        assert "<domain type='kvm'" in before
        assert found == Domain(spec.uuid, Power.ON, spec.provenance, REMARK)
        assert remark == REMARK
    assert (tmp_path / "vm1+root.qcow2").stat().st_ino == inode
    assert broken.virsh("domblklist", "vm1", "--inactive").split()[:2] == ["vda", str(tmp_path / "vm1+root.qcow2")]
    assert "enable" in broken.virsh("dominfo", "vm1").partition("Autostart:")[2].splitlines()[0]


async def test_once_kvm_has_failed_no_other_machine_tries_it(broken: Libvirtd, tmp_path: Path) -> None:
    async with machines_at(broken.uri, "auto") as machines:
        for name in UUIDS:  # before it is known
            await make(machines, name, tmp_path)
        for uuid in UUIDS.values():
            assert await machines.switch(uuid, Switch.ON) == REMARK

    log = (broken.folder / "log" / "qemu" / "vm2.log").read_text()
    assert "kvm version too old" in (broken.folder / "log" / "qemu" / "vm1.log").read_text()
    assert "kvm version too old" not in log


async def test_kvm_that_is_asked_for_is_never_replaced(broken: Libvirtd, tmp_path: Path) -> None:
    async with machines_at(broken.uri, "kvm") as machines:
        spec = await make(machines, "vm1", tmp_path)
        with pytest.raises(MachineError, match="failed to initialize kvm"):
            await machines.switch(spec.uuid, Switch.ON)
        assert (await machines.look({"vm1"}))["vm1"].remark == ""
    assert "<domain type='kvm'" in broken.virsh("dumpxml", "vm1")
