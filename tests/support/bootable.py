"""Bootable templates of 620 KB: GRUB greets on the serial console, shows what is in a seed, and halts or waits.

The same file boots as a CD and as a disk. Under emulation it greets after 0.3 s.
"""

from __future__ import annotations

import subprocess
import tempfile
from enum import Enum
from functools import cache
from pathlib import Path

from tests.support.programs import require_program

_GRUB = """
for module in {modules}; do insmod $module; done
serial --unit=0
terminal_output serial
terminal_input serial
echo "{marker}"
insmod ahci
if search --no-floppy --set=seed --label cidata; then
  cat ($seed)/meta-data
  cat ($seed)/user-data
fi
{end}
"""
_MODULES = "serial terminal echo cat search search_label scsi iso9660 halt sleep test"
"""Loaded first: after its driver for AHCI, which reads the seed, GRUB sees no disks of the firmware any more."""


class Then(Enum):
    """What the guest does after its greeting."""

    WAITS = "sleep 600"
    HALTS = "halt"


@cache
def iso(marker: str, then: Then = Then.WAITS) -> bytes:
    """Give a hybrid ISO that greets with the marker."""
    require_program("mformat")
    require_program("xorriso")
    if not Path("/usr/lib/grub/i386-pc").is_dir():
        require_program("grub-pc-bin")
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        config = folder / "tree" / "boot" / "grub" / "grub.cfg"
        config.parent.mkdir(parents=True)
        config.write_text(_GRUB.format(marker=marker, end=then.value, modules=_MODULES))
        subprocess.run(
            [
                require_program("grub-mkrescue"),
                "--output",
                folder / "image.iso",
                "--directory=/usr/lib/grub/i386-pc",
                "--compress=xz",
                "--fonts=",
                "--locales=",
                "--themes=",
                f"--install-modules={_MODULES} biosdisk ahci normal",
                folder / "tree",
            ],
            check=True,
            capture_output=True,
        )
        return (folder / "image.iso").read_bytes()


@cache
def qcow2(marker: str, then: Then = Then.WAITS) -> bytes:
    """Give the same as a disk of 4 MiB in qcow2."""
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        disk = folder / "disk.raw"
        disk.write_bytes(iso(marker, then).ljust(4 << 20, b"\0"))
        subprocess.run(
            [require_program("qemu-img"), "convert", "-f", "raw", "-O", "qcow2", disk, folder / "disk.qcow2"],
            check=True,
        )
        return (folder / "disk.qcow2").read_bytes()
