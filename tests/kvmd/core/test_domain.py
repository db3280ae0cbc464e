"""Domain XML: explicit to the end of every chain, whatever the names are."""

from __future__ import annotations

from dataclasses import replace
from xml.etree import ElementTree as ET

from hypothesis import given
from hypothesis import strategies as st

from kvmd.core.domain import DomainSpec, Provenance, RootDisk, domain_xml, emulated, is_kvm_domain, provenance_of
from kvmd.core.overlay import Backing

PROVENANCE = Provenance("vm1", "default", "deb12")
SPEC = DomainSpec(
    name="vm1",
    uuid="7a0f3d0c-5b0e-4b6e-9f52-3c8a2a3f1d11",
    provenance=PROVENANCE,
    memory_mib=512,
    vcpus=2,
    console="/pool/vm1+console.log",
    network="none",
    root=RootDisk("/pool/vm1+root.qcow2", 1 << 30, Backing("/pool/deb12", "raw")),
    cdroms=("/pool/drivers",),
    seed="/pool/vm1+seed.iso",
)
# XML has no way to write other characters; libvirt refuses such a document.
words = st.text(st.characters(min_codepoint=32, exclude_categories=["Cs", "Cc"], exclude_characters="￾￿"), min_size=1)


def parsed(spec: DomainSpec, *, is_kvm: bool = False) -> ET.Element:
    """Read the domain as libvirt does."""
    return ET.fromstring(domain_xml(spec, is_kvm=is_kvm))  # noqa: S314 - our own words


def test_every_disk_names_its_format_and_every_chain_ends() -> None:
    domain = parsed(SPEC)

    disks = domain.findall("devices/disk")
    assert [disk.find("driver").get("type") for disk in disks] == ["qcow2", "raw", "raw"]  # type: ignore[union-attr] - it is there
    assert domain.find("devices/disk/backingStore/format").get("type") == "raw"  # type: ignore[union-attr] - it is there
    for disk in disks:
        store = disk
        while (inner := store.find("backingStore")) is not None:
            store = inner
        assert list(store) == [] or store.tag == "disk"
        assert store.tag == "backingStore"


def test_cdroms_are_read_only_and_only_the_seed_is_never_booted_from() -> None:
    domain = parsed(SPEC)

    found = {
        disk.find("source").get("file"): (
            disk.find("readonly") is not None,
            order.get("order") if order is not None else None,
        )  # type: ignore[union-attr] - it is there
        for disk in domain.findall("devices/disk")
        for order in [disk.find("boot")]
    }
    assert found == {
        "/pool/vm1+root.qcow2": (False, "1"),
        "/pool/drivers": (True, "2"),
        "/pool/vm1+seed.iso": (True, None),
    }


def test_networks() -> None:
    for network, kind in (("user", "user"), ("lab", "network")):
        interface = parsed(replace(SPEC, network=network)).find("devices/interface")
        assert interface is not None
        assert interface.get("type") == kind
    assert parsed(SPEC).find("devices/interface") is None


def test_an_emulated_domain_is_the_same_one_with_another_processor() -> None:
    defined = domain_xml(SPEC, is_kvm=True).replace("<devices>", "<devices><emulator>/usr/bin/kvm</emulator>")

    assert is_kvm_domain(defined)
    assert emulated(defined) == domain_xml(SPEC, is_kvm=False)
    assert not is_kvm_domain(emulated(defined))


def test_kvm_shows_the_hosts_processor_and_emulation_all_it_has() -> None:
    for is_kvm, kind, cpu in ((True, "kvm", "host-passthrough"), (False, "qemu", "maximum")):
        domain = parsed(SPEC, is_kvm=is_kvm)
        assert domain.get("type") == kind
        assert domain.find("cpu").get("mode") == cpu  # type: ignore[union-attr] - it is there


@given(path=words, word=words)
def test_no_name_breaks_out_of_its_place(path: str, word: str) -> None:
    root = RootDisk(f"/{path}", 1 << 30, Backing(f"/{path}.base", "qcow2"))
    spec = replace(SPEC, root=root, network=word, provenance=Provenance(word, word, word))

    domain = parsed(spec)

    plain = parsed(replace(SPEC, network="lab"))
    assert [one.tag for one in domain.iter()] == [one.tag for one in plain.iter()] or word in {"none", "user"}
    assert domain.find("devices/disk/source").get("file") == f"/{path}"  # type: ignore[union-attr] - it is there


def test_the_metadata_tells_which_deployment_it_is_of() -> None:
    assert provenance_of(domain_xml(SPEC, is_kvm=False)) == PROVENANCE
    assert provenance_of("<domain><name>other</name></domain>") is None
