"""Child processes of the lab: each with a log file and a process group of its own, all ended at the end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Sequence
from pathlib import Path

from controller.errors import ControlError

_TERM_S = 12.0
_TAIL_LINES = 15
_NOT_FOR_CHILDREN = ("KVMD_", "KVMCTL_", "NOTIFY_SOCKET", "WATCHDOG_")


class Child:
    """One running program."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: Path) -> None:
        self.name = name
        self.log = log
        self._process = process

    @classmethod
    async def start(cls, name: str, words: Sequence[str | Path], *, log: Path) -> Child:
        """Start a program; what it writes goes to the log.

        Settings in this process's environment are not for it: they could lead the lab to a broker of production.
        """
        env = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_FOR_CHILDREN)}
        with await asyncio.to_thread(log.open, "ab") as stream:
            process = await asyncio.create_subprocess_exec(
                *map(str, words),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                env=env,
                start_new_session=True,
            )
        return cls(name, process, log)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self._process.returncode is None

    async def ended(self) -> ControlError:
        """Wait for its end, and tell what it said last."""
        code = await self._process.wait()
        said = await asyncio.to_thread(self.tail)
        return ControlError(
            f"{self.name} ended with {code}; the lab was ended. The last it said:\n{said}",
            hint=f"See {self.log}",
        )

    def tail(self) -> str:
        """Give the last lines of its log."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-_TAIL_LINES:])

    async def stop(self) -> None:
        """Ask it to end, then make it; returns when it has."""
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        try:
            async with asyncio.timeout(_TERM_S):
                await self._process.wait()
        except TimeoutError:
            pass
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)  # also what a child of ours left behind
        await self._process.wait()
