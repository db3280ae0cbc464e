"""Which files a domain's description names, whoever wrote it: disks and their chains, CD-ROMs, firmware, kernels, QEMU's own words."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from xml.etree import ElementTree as ET

_FREE_TEXT = frozenset({"metadata", "title", "description"})
_LAYERS = frozenset({"disk", "backingStore", "mirror"})
_ALONE = frozenset({"raw", "iso", "luks", "vpc", "vdi", "dir"})
"""Formats of disks that never stand on another file."""
_PATH = re.compile(r"/[^,\"'}]+")


@dataclass(frozen=True, slots=True)
class DomainFiles:
    """What a domain needs, as its descriptions say.

    ``paths`` are absolute, of files and devices. ``volumes`` are disks named by libvirt's pool and volume. ``open_ended`` are those of
    the paths that may stand on further files, which the descriptions do not name; ``layers`` those that are disks, or that disks are
    said to stand on. ``images`` and ``units`` are behind servers: RBD
    images as libvirt's pools name them, and units of iSCSI as the ends of those names.
    """

    paths: frozenset[str] = frozenset()
    volumes: frozenset[tuple[str, str]] = frozenset()
    open_ended: frozenset[str] = frozenset()
    layers: frozenset[str] = frozenset()
    images: frozenset[str] = frozenset()
    units: frozenset[str] = frozenset()

    def reaches(self, path: str) -> bool:
        """Whether the volume of a pool behind a server is needed. A server has many names: of a unit only its target's counts."""
        return path in self.images or any(map(path.endswith, self.units))


def files_in(*descriptions: str) -> DomainFiles:
    """Read a domain's descriptions in XML: live, persistent, and of its snapshots. Raises ET.ParseError."""
    paths, volumes, ends, known = set[str](), set[tuple[str, str]](), set[str](), set[str]()
    images, units, layers = set[str](), set[str](), set[str]()
    for xml in descriptions:
        for element in _elements(ET.fromstring(xml)):  # noqa: S314 - libvirt's own words
            for text in (*element.attrib.values(), (element.text or "").strip()):
                paths.update([text] if text.startswith("/") else (), _PATH.findall(text))
            source = element.find("source") if element.tag in _LAYERS else None
            if source is None:
                continue
            if volume := source.get("volume"):
                volumes.add((source.get("pool", ""), volume))
            if source.get("protocol") == "rbd":
                images.add(source.get("name", ""))
            if source.get("protocol") == "iscsi":
                units.add(_unit(source.get("name", "")))
            path = source.get("file") or source.get("dev")
            layers.update([path] if path else ())
            if path is not None and element.find("backingStore") is not None:
                known.add(path)
            elif path is not None and _format(element) not in _ALONE:
                ends.add(path)
    return DomainFiles(
        frozenset(paths),
        frozenset(volumes),
        frozenset(ends - known),
        layers=frozenset(layers),
        images=frozenset(images),
        units=frozenset(units),
    )


def _unit(name: str) -> str:
    """Give the end of the name that a pool's volume has, for a disk's ``TARGET/LUN`` or ``TARGET``."""
    target, _, unit = name.partition("/")
    return f"-iscsi-{target}-lun-{unit or 0}"


def _elements(root: ET.Element) -> Iterator[ET.Element]:
    yield root
    for child in root:
        if child.tag not in _FREE_TEXT:
            yield from _elements(child)


def _format(layer: ET.Element) -> str:
    found = layer.find("driver") if layer.tag == "disk" else layer.find("format")
    return found.get("type", "") if found is not None else ""
