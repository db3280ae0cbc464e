"""Nothing that kvmd does may block the event loop; and programs that pretend to be qemu-img."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from blockbuster import BlockBuster, blockbuster_ctx


@pytest.fixture(autouse=True)
def no_blocking() -> Iterator[BlockBuster]:
    """Fail the test in which code of kvmd blocks the event loop."""
    with blockbuster_ctx("kvmd") as watching:
        # At the end of a command, when nothing else runs in the loop any more, its idle threads are waited for.
        watching.functions["threading.Lock.acquire"].can_block_in("concurrent/futures/thread.py", "shutdown")
        yield watching


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Path]]:
    """Give a function that puts a shell script named qemu-img in front of the PATH, where every user can run it."""
    folder = Path(tempfile.mkdtemp(prefix="kvmd-fake-"))
    folder.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def write(script: str) -> Path:
        program = folder / "qemu-img"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        return program

    yield write
    shutil.rmtree(folder)
