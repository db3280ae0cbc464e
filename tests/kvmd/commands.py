"""The command ``kvmd`` as a person or a program runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KVMD = (sys.executable, "-m", "kvmd")
QUICK = """
[transfer]
stall_timeout_s = 0.5
connect_timeout_s = 2.0
"""


@dataclass(frozen=True)
class Ran:
    """How a command ended and what it wrote."""

    code: int
    stdout: str
    stderr: str

    @property
    def result(self) -> dict[str, Any]:
        """The last line on stdout, as programs read it."""
        found: dict[str, Any] = json.loads(self.stdout.splitlines()[-1])
        return found


def kvmd(
    *arguments: str | Path,
    under: Sequence[str | Path] = (),
    program: Sequence[str | Path] = KVMD,
    env: dict[str, str] | None = None,
    cwd: Path | None = None,
) -> Ran:
    """Run it to its end; ``under`` is a program that runs it, such as strace with its options."""
    command = [str(word) for word in (*under, *program, *arguments)]
    ended = subprocess.run(
        command,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=15,
        check=False,
        env={**os.environ, "COLUMNS": "80", **(env or {})},
        cwd=cwd,
    )
    assert "Traceback" not in ended.stderr, ended.stderr
    return Ran(ended.returncode, ended.stdout, ended.stderr)


def quick_config(folder: Path, *, extra: str = "") -> Path:
    """Write settings whose timeouts suit a test."""
    path = folder / "kvmd.toml"
    path.write_text(QUICK + extra)
    return path
