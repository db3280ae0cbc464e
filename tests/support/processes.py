"""Child processes of a test: a log file, a port to wait for, signals, always reaped."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.ports import accepts
from tests.support.waiting import eventually_blocking


class ChildProcess:
    """One program in a process group of its own; leaving the context kills the group and reaps it.

    All methods block (for milliseconds, as a rule): inside an event loop call them with
    ``await asyncio.to_thread(child.restart)``.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        log: Path,
        port: int | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        """Only remember; ``env`` is added to this process's own environment."""
        self.port = port
        self.log = log
        self._command = [str(word) for word in command]
        self._env = {**os.environ, **(env or {})}
        self._cwd = cwd
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    @property
    def pid(self) -> int:
        """Process id of the running or last child."""
        return self._started().pid

    @property
    def returncode(self) -> int | None:
        """Exit code, minus the signal's number when killed; None while it runs."""
        return self._started().poll()

    @property
    def running(self) -> bool:
        """Whether the child is alive now."""
        return self._process is not None and self._process.poll() is None

    def log_text(self) -> str:
        """Everything that all runs wrote to stdout and stderr."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def log_since_start(self) -> str:
        """Give what the running or last child has written."""
        return self.log_text()[self._log_start :]

    def start(self, *, timeout_s: float = 10) -> None:
        """Start the program; with a port return only when it accepts connections."""
        if self.running:
            raise RuntimeError(f"{self._command[0]} runs already as {self.pid}")
        self._log_start = len(self.log_text())
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._env,
                cwd=self._cwd,
                start_new_session=True,
            )
        if self.port is not None:
            self._wait_for_port(self.port, timeout_s=timeout_s)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the child alone."""
        self._started().send_signal(number)

    def kill(self) -> None:
        """SIGKILL the whole group and reap; nothing happens when there is no child."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def terminate(self, *, timeout_s: float = 10) -> int:
        """SIGTERM, wait, and return the exit code; AssertionError when it does not end in time."""
        process = self._started()
        process.terminate()
        try:
            return process.wait(timeout_s)
        except subprocess.TimeoutExpired as exc:
            self.kill()
            raise AssertionError(f"{self._command[0]} ignored SIGTERM for {timeout_s} s:\n{self.log_text()}") from exc

    def wait(self, *, timeout_s: float = 10) -> int:
        """Wait for the child's own end and return the exit code."""
        return self._started().wait(timeout_s)

    def restart(self) -> None:
        """SIGKILL what runs and start the same command again, on the same port."""
        self.kill()
        self.start()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError(f"{self._command[0]} was not started")
        return self._process

    def _wait_for_port(self, port: int, *, timeout_s: float) -> None:
        eventually_blocking(
            lambda: not self.running or accepts(port),
            timeout_s=timeout_s,
            what=f"{self._command[0]} listens on port {port}; log: {self.log_text()}",
        )
        if not self.running:
            raise AssertionError(f"{self._command[0]} ended with {self.returncode}:\n{self.log_text()}")
