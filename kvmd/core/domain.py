"""A virtual machine as libvirt's domain XML: every disk with its format, every backing chain to its end, nothing left to probing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from xml.etree import ElementTree as ET

from kvmd.core.image import FoundFormat
from kvmd.core.overlay import Backing

NAMESPACE = "https://kvmd.io/machine/1"
"""Of the element in a domain's metadata that tells that kvmd made it."""
_MACHINE = f"{{{NAMESPACE}}}machine"
_KVM, _HOSTS_PROCESSOR = "kvm", "host-passthrough"
_QEMU, _EMULATED_PROCESSOR = "qemu", "maximum"
NO_NETWORK = "none"
USER_NETWORK = "user"
QEMU_FORMATS: Mapping[FoundFormat, str] = {
    FoundFormat.QCOW2: "qcow2",
    FoundFormat.RAW: "raw",
    FoundFormat.VMDK: "vmdk",
    FoundFormat.VHDX: "vhdx",
    FoundFormat.VHD: "vpc",
    FoundFormat.VDI: "vdi",
    FoundFormat.QED: "qed",
}
"""What QEMU calls the formats of disks that a root volume can stand on."""


@dataclass(frozen=True, slots=True)
class Provenance:
    """Which deployment a domain was made for: kept in its metadata, so that it is known again without the journal."""

    deployment: str
    pool: str
    template: str


@dataclass(frozen=True, slots=True)
class RootDisk:
    """The volume that the machine writes to: qcow2, of ``size`` bytes, alone or on a read-only backing file."""

    path: str
    size: int
    backing: Backing | None


@dataclass(frozen=True, slots=True)
class DomainSpec:
    """All that a domain is made from. ``cdroms`` are booted from in their order, after the root disk; the seed never is.

    ``network`` is ``none``, ``user`` (QEMU's own, outgoing only) or the name of a network of libvirt's. ``is_autostarted``: libvirt
    starts it when the host does.
    """

    name: str
    uuid: str
    provenance: Provenance
    memory_mib: int
    vcpus: int
    console: str
    network: str
    root: RootDisk | None = None
    cdroms: tuple[str, ...] = ()
    seed: str | None = None
    is_autostarted: bool = False


class Power(StrEnum):
    """Whether a domain runs, and how it came that it does not."""

    ON = "on"
    OFF = "off"
    CRASHED = "crashed"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Domain:
    """A domain that the hypervisor knows. ``provenance`` is None where somebody else than kvmd made it.

    ``remark`` is what its owner should know of how it runs; mostly nothing.
    """

    uuid: str
    power: Power
    provenance: Provenance | None
    remark: str = ""


class Switch(StrEnum):
    """What is done to a machine: started, asked to shut down, or its plug pulled."""

    ON = "on"
    SHUTDOWN = "shutdown"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class MachineFiles:
    """A machine's own files, absolute paths in one folder; ``root`` and ``seed`` None where it has none.

    ``documents`` are the texts of the seed by the name of their file.
    """

    console: str
    root: str | None = None
    seed: str | None = None
    documents: Mapping[str, str] = field(default_factory=dict[str, str])


def domain_xml(spec: DomainSpec, *, is_kvm: bool) -> str:
    """Write the domain, run by KVM or by QEMU's emulation."""
    ET.register_namespace("kvmd", NAMESPACE)
    domain = ET.Element("domain", type=_KVM if is_kvm else _QEMU)
    _text(domain, "name", spec.name)
    _text(domain, "uuid", spec.uuid)
    made_for = spec.provenance
    names = {"deployment": made_for.deployment, "pool": made_for.pool, "template": made_for.template}
    ET.SubElement(ET.SubElement(domain, "metadata"), _MACHINE, names)
    _text(domain, "memory", str(spec.memory_mib), unit="MiB")
    _text(domain, "vcpu", str(spec.vcpus))
    _text(ET.SubElement(domain, "os"), "type", "hvm", arch="x86_64", machine="q35")
    features = ET.SubElement(domain, "features")
    ET.SubElement(features, "acpi")
    ET.SubElement(features, "apic")
    ET.SubElement(domain, "cpu", mode=_HOSTS_PROCESSOR if is_kvm else _EMULATED_PROCESSOR)
    ET.SubElement(domain, "clock", offset="utc")
    for event, action in (("poweroff", "destroy"), ("reboot", "restart"), ("crash", "destroy")):
        _text(domain, f"on_{event}", action)
    _devices(ET.SubElement(domain, "devices"), spec)
    return ET.tostring(domain, encoding="unicode")


def is_kvm_domain(xml: str) -> bool:
    """Whether a domain's XML says that KVM runs it."""
    return ET.fromstring(xml).get("type") == _KVM  # noqa: S314 - libvirt's own words


def emulated(xml: str) -> str:
    """Give a domain's XML with QEMU's emulation instead of KVM; identity, disks and devices stay what they are."""
    ET.register_namespace("kvmd", NAMESPACE)
    domain = ET.fromstring(xml)  # noqa: S314 - libvirt's own words
    domain.set("type", _QEMU)
    for cpu in domain.findall("cpu"):
        cpu.clear()
        cpu.set("mode", _EMULATED_PROCESSOR)
    for devices in domain.findall("devices"):
        for emulator in devices.findall("emulator"):  # libvirt puts in the one of the new type
            devices.remove(emulator)
    return ET.tostring(domain, encoding="unicode")


def provenance_of(xml: str) -> Provenance | None:
    """Tell from a domain's XML which deployment it was made for; None for a domain of somebody else's."""
    found = ET.fromstring(xml).find(f"metadata/{_MACHINE}")  # noqa: S314 - libvirt's own words
    if found is None:
        return None
    return Provenance(found.get("deployment", ""), found.get("pool", ""), found.get("template", ""))


def _devices(devices: ET.Element, spec: DomainSpec) -> None:
    order = 0
    if spec.root is not None:
        order += 1
        _root(devices, spec.root, order=order)
    for number, path in enumerate((*spec.cdroms, *((spec.seed,) if spec.seed else ()))):
        order += 1
        _cdrom(devices, path, target=f"sd{chr(ord('a') + number)}", order=None if path == spec.seed else order)
    _network(devices, spec.network)
    serial = ET.SubElement(devices, "serial", type="file")
    ET.SubElement(serial, "source", path=spec.console, append="on")
    ET.SubElement(serial, "target", port="0")
    rng = ET.SubElement(devices, "rng", model="virtio")
    _text(rng, "backend", "/dev/urandom", model="random")


def _root(devices: ET.Element, root: RootDisk, *, order: int) -> None:
    disk = ET.SubElement(devices, "disk", type="file", device="disk")
    ET.SubElement(disk, "driver", name="qemu", type="qcow2", discard="unmap")
    ET.SubElement(disk, "source", file=root.path)
    parent = disk
    if root.backing is not None:
        parent = ET.SubElement(disk, "backingStore", type="file")
        ET.SubElement(parent, "format", type=root.backing.format)
        _shared(parent, root.backing.path)
    ET.SubElement(parent, "backingStore")
    ET.SubElement(disk, "target", dev="vda", bus="virtio")
    ET.SubElement(disk, "boot", order=str(order))


def _cdrom(devices: ET.Element, path: str, *, target: str, order: int | None) -> None:
    disk = ET.SubElement(devices, "disk", type="file", device="cdrom")
    ET.SubElement(disk, "driver", name="qemu", type="raw")
    if order is None:
        ET.SubElement(disk, "source", file=path)
    else:
        _shared(disk, path)
    ET.SubElement(disk, "backingStore")
    ET.SubElement(disk, "target", dev=target, bus="sata")
    ET.SubElement(disk, "readonly")
    if order is not None:
        ET.SubElement(disk, "boot", order=str(order))


def _shared(parent: ET.Element, path: str) -> None:
    """Add a replica as the source: others use it, too, so that libvirt must not give it to this machine's user."""
    source = ET.SubElement(parent, "source", file=path)
    ET.SubElement(source, "seclabel", model="dac", relabel="no")


def _network(devices: ET.Element, network: str) -> None:
    if network == NO_NETWORK:
        return
    is_user = network == USER_NETWORK
    interface = ET.SubElement(devices, "interface", type="user" if is_user else "network")
    if not is_user:
        ET.SubElement(interface, "source", network=network)
    ET.SubElement(interface, "model", type="virtio")


def _text(parent: ET.Element, tag: str, text: str, **attributes: str) -> None:
    ET.SubElement(parent, tag, attributes).text = text
