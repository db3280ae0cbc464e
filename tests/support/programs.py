"""Programs that are not Python and that a test needs."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest


def require_program(name: str) -> Path:
    """Return the program's path: beside this Python (wheels bring some), on PATH, or in the sbin folders.

    Where it is missing the test is skipped with the reason; with CI=true in the environment it fails.
    """
    folders = [str(Path(sys.executable).parent), os.environ.get("PATH", ""), "/usr/sbin", "/sbin"]
    found = shutil.which(name, path=os.pathsep.join(folders))
    if found is not None:
        return Path(found)
    reason = f"the program {name!r} is not installed"
    if os.environ.get("CI", "").lower() == "true":
        pytest.fail(f"{reason}, and with CI=true nothing may be skipped")
    pytest.skip(reason)
