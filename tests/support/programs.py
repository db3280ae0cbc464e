"""Programs that are not Python and that a test needs."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import NoReturn

import pytest


def require_program(name: str) -> Path:
    """Return the program's path: beside this Python (wheels bring some), on PATH, or in the sbin folders.

    Where it is missing the test is skipped with the reason; with CI=true in the environment it fails.
    """
    folders = [str(Path(sys.executable).parent), os.environ.get("PATH", ""), "/usr/sbin", "/sbin"]
    found = shutil.which(name, path=os.pathsep.join(folders))
    if found is None:
        _skip(f"the program {name!r} is not installed")
    return Path(found)


def require_root(why: str) -> None:
    """Skip the test where it does not run as root; with CI=true it fails instead. ``why`` says what root does."""
    if os.geteuid() != 0:
        _skip(f"this test needs root, which {why}")


def require_kernel(feature: str, *, is_there: bool) -> None:
    """Skip the test where the kernel lacks a feature; with CI=true it fails instead."""
    if not is_there:
        _skip(f"this kernel has no {feature}")


def _skip(reason: str) -> NoReturn:
    if os.environ.get("CI", "").lower() == "true":
        pytest.fail(f"{reason}, and with CI=true nothing may be skipped")
    pytest.skip(reason)
