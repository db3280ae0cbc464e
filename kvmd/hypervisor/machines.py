"""Virtual machines through libvirt: made, switched and removed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar, cast
from uuid import uuid4
from xml.etree import ElementTree as ET

from kvmd.core.acceleration import kvm_failure
from kvmd.core.console import readable
from kvmd.core.domain import (
    Domain,
    DomainSpec,
    MachineFiles,
    Power,
    Switch,
    domain_xml,
    emulated,
    is_kvm_domain,
    provenance_of,
)
from kvmd.core.overlay import overlay
from kvmd.errors import ExistsError, KvmdError, MachineError
from kvmd.hypervisor import files as own
from kvmd.hypervisor.connection import Connection
from kvmd.hypervisor.library import load_libvirt
from kvmd.hypervisor.seed import load_pycdlib, seed_image
from kvmd.log import get_logger

if TYPE_CHECKING:
    from libvirt import virConnect, virDomain, virStoragePool

log = get_logger(__name__)

T = TypeVar("T")
Acceleration = Literal["auto", "kvm", "qemu"]


class LibvirtMachines:
    """Implements the port ``Hypervisor``. Raises ConfigError where the extra ``libvirt`` is not installed.

    With ``auto`` a machine that KVM fails to start is emulated, and so is every other one that is started later: libvirt offers KVM
    wherever there is a /dev/kvm, also one that QEMU cannot use, as in some virtual machines.
    """

    def __init__(self, connection: Connection, *, executor: Executor, acceleration: Acceleration) -> None:
        load_libvirt()
        load_pycdlib()
        self._connection = connection
        self._executor = executor
        self._acceleration = acceleration
        self._kvm_failure = ""

    async def look(self, names: Collection[str]) -> Mapping[str, Domain]:
        """See the port."""
        return await self._connection.call(
            lambda connect: self._domains(connect, names), what="looking at the machines", otherwise=MachineError
        )

    async def make(self, spec: DomainSpec, files: MachineFiles, *, is_new: bool) -> None:
        """See the port."""
        await self._call(lambda connect: _check_name(connect, spec), spec.name)
        await self._on_thread(_make_files, spec, files, is_new)
        await self._call(lambda connect: self._define(connect, spec), f"{spec.name}: defining it")

    async def switch(self, uuid: str, to: Switch) -> str:
        """See the port."""
        return await self._call(
            lambda connect: self._switch(connect, connect.lookupByUUIDString(uuid), to),
            f"{uuid}: switching it {to.value}",
        )

    async def remove(self, uuid: str, files: MachineFiles) -> None:
        """See the port."""
        await self._call(lambda connect: _undefine(connect, uuid), f"{uuid}: removing it")
        left = await self._on_thread(_delete_files, files)
        await self._call(lambda connect: _delete_volumes(connect, left), f"{uuid}: deleting its files")
        await self._call(lambda connect: _refresh_pools(connect, files.console), f"{uuid}: refreshing its pool")

    async def console(self, path: str) -> str:
        """See the port."""
        return readable(await self._on_thread(own.tail, path))

    async def _call(self, work: Callable[[virConnect], T], what: str) -> T:
        return await self._connection.call(work, what=f"machine {what}", otherwise=MachineError)

    async def _on_thread(self, work: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work, *arguments)

    def _define(self, connect: virConnect, spec: DomainSpec) -> None:
        domain = connect.defineXML(domain_xml(spec, is_kvm=self._is_kvm_wanted(connect)))
        domain.setAutostart(int(spec.is_autostarted))
        _refresh_pools(connect, spec.console)

    def _is_kvm_wanted(self, connect: virConnect) -> bool:
        if self._acceleration == "auto":
            return not self._kvm_failure and _has_kvm(connect)
        return self._acceleration == "kvm"

    def _domains(self, connect: virConnect, names: Collection[str]) -> Mapping[str, Domain]:
        """Describe these domains; the list tells all names at once, everything else costs a question for each."""
        libvirt = load_libvirt()
        found: dict[str, Domain] = {}
        if not names:
            connect.getCapabilities()  # for the first time libvirtd starts every QEMU that there is: 0.5 to 2 s
        for one in [one for one in connect.listAllDomains(0) if one.name() in names]:
            with suppress(libvirt.libvirtError):  # gone in between
                xml = one.XMLDesc(0)
                found[one.name()] = Domain(one.UUIDString(), _power(one), provenance_of(xml), self._remark(xml))
        return found

    def _remark(self, xml: str) -> str:
        """Tell that a domain is emulated, where nobody chose that."""
        if self._acceleration != "auto" or is_kvm_domain(xml):
            return ""
        why = f"KVM does not work on this host: {self._kvm_failure}" if self._kvm_failure else "libvirt offered no KVM"
        return f"Emulated by QEMU, which is slow: {why}."

    def _switch(self, connect: virConnect, domain: virDomain, to: Switch) -> str:
        is_active = bool(domain.isActive())
        match to:
            case Switch.ON if not is_active:
                self._start(connect, domain)
            case Switch.SHUTDOWN if is_active:
                domain.shutdown()
            case Switch.OFF if is_active:
                domain.destroy()
            case _:
                pass
        return self._remark(domain.XMLDesc(0))

    def _start(self, connect: virConnect, domain: virDomain) -> None:
        """Start it; with ``auto`` without KVM where KVM fails. Raises libvirtError."""
        libvirt = load_libvirt()
        may_change = self._acceleration == "auto" and is_kvm_domain(domain.XMLDesc(0))
        if may_change and not self._is_kvm_wanted(connect):
            domain = _defined_emulated(connect, domain)
        try:
            domain.create()
        except libvirt.libvirtError as exc:
            failure = kvm_failure(str(exc)) if may_change and exc.get_error_domain() == libvirt.VIR_FROM_QEMU else ""
            if not failure:
                raise
            self._kvm_failure = failure
            log.warning(
                "KVM does not work here: machines are emulated from now on, until kvmd starts anew",
                machine=domain.name(),
                reason=failure,
            )
            _defined_emulated(connect, domain).create()


def _make_files(spec: DomainSpec, files: MachineFiles, is_new: bool) -> None:  # noqa: FBT001 - run on a thread
    made: list[str] = []
    try:
        for path, content in _contents(spec, files):
            if own.put(path, content, is_new=is_new):
                made.append(path)
    except KvmdError:
        own.delete(*made)
        raise


def _contents(spec: DomainSpec, files: MachineFiles) -> Iterator[tuple[str, bytes]]:
    if files.root is not None and spec.root is not None:
        try:
            yield files.root, overlay(spec.root.size, spec.root.backing)
        except ValueError as exc:
            raise MachineError(f"machine {spec.name}: {exc}.", hint="Correct `disk_gib`.") from exc
    if files.seed is not None:
        yield files.seed, seed_image(files.documents)
    yield files.console, b""


def _delete_files(files: MachineFiles) -> list[str]:
    return own.delete(files.root, files.seed, files.console, *own.rotated(files.console))


def _power(domain: virDomain) -> Power:
    libvirt = load_libvirt()
    state, reason = cast("tuple[int, int]", domain.state())  # its annotations say otherwise
    if state == libvirt.VIR_DOMAIN_CRASHED:
        return Power.CRASHED
    if state != libvirt.VIR_DOMAIN_SHUTOFF:
        return Power.ON
    return {
        libvirt.VIR_DOMAIN_SHUTOFF_CRASHED: Power.CRASHED,
        libvirt.VIR_DOMAIN_SHUTOFF_FAILED: Power.FAILED,
    }.get(reason, Power.OFF)


def _check_name(connect: virConnect, spec: DomainSpec) -> None:
    libvirt = load_libvirt()
    try:
        other = connect.lookupByName(spec.name)
    except libvirt.libvirtError as exc:
        if exc.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return
        raise
    if other.UUIDString() != spec.uuid:
        raise ExistsError(
            f"machine {spec.name}: libvirt has a domain of that name, which kvmd did not make; it was left as it is.",
            hint="Give the machine another name, or remove that domain.",
        )


def _has_kvm(connect: virConnect) -> bool:
    capabilities = ET.fromstring(connect.getCapabilities())  # noqa: S314 - libvirt's own words
    return capabilities.find("guest/arch[@name='x86_64']/domain[@type='kvm']") is not None


def _defined_emulated(connect: virConnect, domain: virDomain) -> virDomain:
    """Define a domain that is off anew, to be emulated. libvirt keeps whether it starts with the host."""
    libvirt = load_libvirt()
    kept = libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE
    return connect.defineXML(emulated(domain.XMLDesc(kept)))


def _undefine(connect: virConnect, uuid: str) -> None:
    libvirt = load_libvirt()
    try:
        domain = connect.lookupByUUIDString(uuid)
    except libvirt.libvirtError as exc:
        if exc.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return
        raise
    if domain.isActive():
        domain.destroy()
    domain.undefineFlags(
        libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
        | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
        | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
        | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
    )


def _refresh_pools(connect: virConnect, path: str) -> None:
    """Let libvirt list what has come or gone in the folder of this path. Not worth failing for."""
    with suppress(load_libvirt().libvirtError):
        for pool in _pools(connect, str(Path(path).parent)):
            pool.refresh(0)


def _delete_volumes(connect: virConnect, paths: Sequence[str]) -> None:
    """Delete files of one folder that kvmd may not delete, but libvirtd may: a CD-ROM stays QEMU's, a rotated console is root's."""
    if not paths:
        return
    folder = str(Path(paths[0]).parent)
    known = next(_pools(connect, folder), None)
    pool = known or connect.storagePoolCreateXML(_passing_pool(folder))
    try:
        pool.refresh(0)
        for path in paths:
            pool.storageVolLookupByName(Path(path).name).delete()
    finally:
        if known is None:
            pool.destroy()


def _pools(connect: virConnect, folder: str) -> Iterator[virStoragePool]:
    """Give the active pools of this folder."""
    for pool in connect.listAllStoragePools(load_libvirt().VIR_CONNECT_LIST_STORAGE_POOLS_ACTIVE):
        if ET.fromstring(pool.XMLDesc(0)).findtext("target/path", "") == folder:  # noqa: S314 - libvirt's own words
            yield pool


def _passing_pool(folder: str) -> str:
    """Describe a pool that is gone once it is stopped."""
    pool = ET.Element("pool", type="dir")
    ET.SubElement(pool, "name").text = f"kvmd-{uuid4()}"
    ET.SubElement(ET.SubElement(pool, "target"), "path").text = folder
    return ET.tostring(pool, encoding="unicode")
