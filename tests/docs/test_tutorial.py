"""The tutorial, typed as it stands into a shell, against a lab of three hosts."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path

import pytest

from controller.lab.cluster import Lab
from tests.support.ports import free_port
from tests.support.programs import require_program

TUTORIAL = Path(__file__).parents[2] / "docs/tutorial.md"


def what_to_type(folder: Path, port: int) -> str:
    """Give the commands after the lab's start; folder and port are ours, so that tests may run side by side."""
    _, chapters = TUTORIAL.read_text().split("## 2. ", 1)
    blocks = re.findall(r"^```sh\n(.*?)^```$", chapters, flags=re.DOTALL | re.MULTILINE)
    return "\n".join(blocks).replace("/tmp/origin", str(folder)).replace("8000", str(port))  # noqa: S108 - the text's


@pytest.mark.timeout(60)
async def test_what_the_tutorial_says_can_be_typed(tmp_path: Path) -> None:
    require_program("nats-server")
    folder = Path(sys.executable).parent
    async with Lab(tmp_path / "lab") as lab:
        shell = await asyncio.create_subprocess_exec(
            *("bash", "-c", what_to_type(tmp_path / "origin", free_port())),
            env={**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "KVMCTL_CONFIG": str(lab.config)},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        said = (await shell.communicate())[0].decode()
        assert re.search(r"^kvm03 +good +200 +100\.0 MiB +no +raw ", said, flags=re.MULTILINE), said
        assert re.search(r"^kvm03 +default +demo +ready +100\.0 MiB ", said, flags=re.MULTILINE), said
        assert "kvm01, kvm02, kvm03: CHECKSUM_MISMATCH" in said
        assert re.search(r"^kvm03 +absent", said, flags=re.MULTILINE), said
        assert not [path for host in lab.hosts for path in lab.pool(host).glob("[!.]*")]
    assert not (tmp_path / "origin").exists()
