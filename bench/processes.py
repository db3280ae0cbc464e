"""Programs that are measured, programs that serve them, and our own ones in C."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import tempfile
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

Command = Sequence[str | Path]

_LISTEN_S = 5.0
_END_S = 10.0


@dataclass(frozen=True)
class Run:
    """What one or several programs, one after the other, have cost together."""

    seconds: float
    cpu_s: float
    """User and system time."""
    peak: int
    """Largest resident memory of one of them, in bytes."""


def run(commands: Sequence[Command]) -> Run:
    """Run the commands one after the other; SystemExit with the output of the first one that fails."""
    started = time.monotonic()
    used = [_run(command) for command in commands]
    seconds = time.monotonic() - started
    return Run(seconds, sum(one.ru_utime + one.ru_stime for one in used), max(one.ru_maxrss for one in used) << 10)


def _run(command: Command) -> resource.struct_rusage:
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        with ended(process):
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            raise SystemExit(f"{command[0]} ended with {process.returncode}: {output.read().decode(errors='replace')}")
    return used


@contextmanager
def serving(command: Command, port: int) -> Generator[subprocess.Popen[bytes]]:
    """Run a server that listens on ``port`` when the context is entered, and end it when it is left."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with ended(process):
        _wait_for(port, process)
        yield process


@contextmanager
def ended(process: subprocess.Popen[bytes]) -> Generator[None]:
    """Have the process ended and reaped when the context is left, whichever way."""
    try:
        yield
    finally:
        if process.returncode is None:
            process.terminate()
            try:
                process.wait(_END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _LISTEN_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise SystemExit(f"{process.args!r} did not listen on port {port} within {_LISTEN_S} s")


def free_port() -> int:
    """Give a loopback port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def compiled(name: str, folder: Path) -> Path:
    """Compile bench/NAME.c into ``folder`` and give the program's path."""
    source, program = Path(__file__).with_name(f"{name}.c"), folder / name
    command: list[str | Path] = [
        "cc",
        "-O2",
        "-Wall",
        "-Wextra",
        "-o",
        program,
        source,
        "-pthread",
        "-lssl",
        "-lcrypto",
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise SystemExit("cc is missing: apt-get install gcc libc6-dev libssl-dev") from None
    if done.returncode:
        raise SystemExit(f"{source} does not compile (apt-get install gcc libc6-dev libssl-dev):\n{done.stderr}")
    return program
