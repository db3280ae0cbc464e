"""What a container without a network needs to install kvmd from: the wheel, its dependencies, the files of systemd/."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from email import message_from_bytes
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
HOW_TO = ROOT / "docs/how-to/install.md"


def gather(folder: Path, *, extra: str = "") -> None:
    """Put into the folder what the how-to copies, a wheel of this tree, and the packages it depends on, as they are installed here.

    Those of one ``extra``, too.
    """
    shutil.copytree(ROOT / "systemd", folder / "systemd")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run(
        [*command, "--no-build-isolation", "--no-index", "--wheel-dir", folder, ROOT], check=True, timeout=120
    )
    (wheel,) = folder.glob("kvmd-*.whl")
    packages = folder / "packages"
    for one in _needed(_requirements(wheel), extra):
        for file in one.files or ():
            if ".." not in file.parts:
                target = packages / file
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(str(file.locate()), target)


def install_commands(section: str) -> Iterator[str]:
    """Give the commands of the how-to's first shell block in that section, except those that need a network."""
    text = HOW_TO.read_text().partition(f"\n## {section}\n")[2]
    block = re.search(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert block is not None
    for line in block[1].splitlines():
        if not line.startswith("apt-get "):
            yield line.replace("pip install .", "pip install --quiet --no-index /source/kvmd-*.whl")


def _requirements(wheel: Path) -> list[str]:
    """Give what the wheel says that it needs."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (one for one in archive.namelist() if one.endswith(".dist-info/METADATA"))
        return message_from_bytes(archive.read(name)).get_all("Requires-Dist", [])


def _needed(requirements: Sequence[str], extra: str) -> Iterator[Distribution]:
    """Give the distributions that these requirements lead to, each once; those of an extra where it is this one."""
    left, seen = list(requirements), set[str]()
    while left:
        needed = Requirement(left.pop())
        name = canonicalize_name(needed.name)
        if name not in seen and (needed.marker is None or needed.marker.evaluate({"extra": extra})):
            seen.add(name)
            found = distribution(needed.name)
            left += found.requires or ()
            yield found
