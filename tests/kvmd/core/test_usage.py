"""Which files a domain's description names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmd.core.usage import files_in

DISK = "/pool/deb12"
QCOW2 = "<driver name='qemu' type='qcow2'/>"


def _domain(inner: str) -> str:
    return f"<domain type='qemu'><name>vm1</name><description>not {DISK}</description>{inner}</domain>"


def _argument(word: str) -> str:
    """Give QEMU's own words in a domain."""
    start = "<qemu:commandline xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>"
    return f"{start}<qemu:arg value='{word}'/></qemu:commandline>"


CHAIN = f"""<devices><disk type='file'><source file='/vm1'/><backingStore type='file'><format type='qcow2'/>
<source file='/mid'/><backingStore type='file'><source file='{DISK}'/></backingStore></backingStore></disk></devices>"""


@pytest.mark.parametrize(
    "inner",
    [
        f"<devices><disk type='file' device='disk'>{QCOW2}<source file='{DISK}'/></disk></devices>",
        f"<devices><disk type='file' device='cdrom'><source file='{DISK}'/><readonly/></disk></devices>",
        f"<devices><disk type='block'><source dev='{DISK}'/></disk></devices>",
        CHAIN,
        f"<devices><disk type='file'><source file='/vm1'/><mirror type='file'><source file='{DISK}'/></mirror></disk></devices>",
        f"<os><loader readonly='yes'>{DISK}</loader></os>",
        f"<os><nvram template='{DISK}'>/vm1_VARS</nvram></os>",
        f"<os><kernel>{DISK}</kernel></os>",
        f"<devices><filesystem type='file'><source file='{DISK}'/></filesystem></devices>",
        _argument(f"file={DISK},if=virtio"),
        _argument(f"{{&quot;filename&quot;:&quot;{DISK}&quot;}}"),
    ],
)
def test_every_place_that_may_name_a_file(inner: str) -> None:
    assert DISK in files_in(_domain(inner)).paths


def test_what_a_person_wrote_about_it_names_nothing() -> None:
    assert files_in(_domain(f"<title>{DISK}</title><metadata><path>{DISK}</path></metadata>")).paths == frozenset()


def test_a_disk_of_a_pool_is_named_by_pool_and_volume() -> None:
    xml = _domain("<devices><disk type='volume'><source pool='fast' volume='deb12'/></disk></devices>")
    assert files_in(xml).volumes == {("fast", "deb12")}


@pytest.mark.parametrize(
    ("protocol", "name", "path"),
    [
        ("rbd", "libvirt/deb12", "libvirt/deb12"),
        ("iscsi", "iqn.2016-01.org.x:t/2", "ip-192.0.2.1:3260-iscsi-iqn.2016-01.org.x:t-lun-2"),
        ("iscsi", "iqn.2016-01.org.x:t", "ip-192.0.2.1:3260-iscsi-iqn.2016-01.org.x:t-lun-0"),
    ],
)
@pytest.mark.parametrize("layer", ["disk", "backingStore"])
def test_a_volume_behind_a_server_is_known_by_what_pools_call_it(
    protocol: str, name: str, path: str, layer: str
) -> None:
    source = f"<{layer} type='network'><source protocol='{protocol}' name='{name}'><host name='h'/></source></{layer}>"
    files = files_in(_domain(f"<devices>{source}</devices>"))
    assert files.reaches(path)
    assert not files.reaches(f"{path}1")
    assert not files.reaches(f"{path[:-1]}")


def test_only_a_disk_whose_chain_is_not_told_and_that_may_have_one_is_open_ended() -> None:
    told = f"<disk type='file'>{QCOW2}<source file='/told'/><backingStore/></disk>"
    silent = f"<disk type='file'>{QCOW2}<source file='/silent'/></disk>"
    raw = "<disk type='file'><driver name='qemu' type='raw'/><source file='/raw'/></disk>"
    middle = (
        f"<disk type='file'>{QCOW2}<source file='/top'/><backingStore type='file'><format type='qcow2'/>"
        "<source file='/middle'/></backingStore></disk>"
    )
    found = files_in(_domain(f"<devices>{told}{silent}{raw}{middle}</devices>"))
    assert found.open_ended == {"/silent", "/middle"}


def test_what_the_live_description_tells_counts_for_the_persistent_one() -> None:
    live = _domain(f"<devices><disk type='file'>{QCOW2}<source file='/vm1'/><backingStore/></disk></devices>")
    persistent = _domain(f"<devices><disk type='file'>{QCOW2}<source file='/vm1'/></disk></devices>")
    assert files_in(live, persistent).open_ended == frozenset()


letters = st.text("abcdefghijklmnopqrstuvwxyz0123456789._+-,'={} ", min_size=1, max_size=20)


@given(st.lists(letters, min_size=1, max_size=4), st.integers(0, 4))
def test_no_path_is_missed_however_deep_its_element(parts: list[str], depth: int) -> None:
    path = "/" + "/".join(part.strip() or "x" for part in parts)
    xml = "<a>" * depth + f'<source file="{path}"/>' + "</a>" * depth
    assert path in files_in(_domain(xml)).paths
