"""Counts by which calls a program changes a folder, and lets any one of them fail, be the last, or be where the power is cut.

``faults.c`` is loaded into the program and its children. What counts is the number of the call, over all threads and processes, so a
test need not know the steps of what it attacks: it counts them once, and then hits each in turn.
"""

from __future__ import annotations

import errno
import functools
import mmap
import os
import struct
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.programs import require_program

_PLAN = struct.Struct("=7I256s256s512s")
_EVER = 2**32 - 1


class Action(IntEnum):
    """What happens at the call; its numbers are those of faults.c."""

    WATCH = 0
    KILL = 1
    CUT = 2
    FAIL = 3


@dataclass(frozen=True)
class Step:
    """The ``number``-th call of this name, counted from 1, on the file ``path`` below the folder."""

    call: str
    path: str
    number: int

    def __str__(self) -> str:
        return f"{self.call} {self.path or '/'} {self.number}"


@dataclass(frozen=True)
class Fault:
    """The calls from the ``first`` to the ``last`` that are hit, counted from 1 over those that the other fields choose.

    ``argument`` is the errno, or the flag of FS_IOC_SHUTDOWN; ``only`` are names of calls, ``path`` is a file below the folder.
    """

    first: int = 0
    last: int = 0
    action: Action = Action.WATCH
    argument: int = 0
    only: Sequence[str] = ()
    path: str | None = None
    with_reads: bool = False

    @classmethod
    def kill(cls, step: Step) -> Fault:
        """Kill the process group by SIGKILL as it enters the call."""
        return cls(step.number, step.number, Action.KILL, 0, [step.call], step.path)

    @classmethod
    def cut(cls, step: Step, *, keeps_log: bool) -> Fault:
        """Cut the power there: nothing that was not synced is kept, or all names and sizes are, without their bytes."""
        return cls(step.number, step.number, Action.CUT, 1 if keeps_log else 2, [step.call], step.path)

    @classmethod
    def fail(cls, step: Step, error: str) -> Fault:
        """Let one call fail."""
        return cls(step.number, step.number, Action.FAIL, getattr(errno, error), [step.call], step.path)

    @classmethod
    def fail_from(cls, number: int, error: str, *, only: Sequence[str] = (), with_reads: bool = False) -> Fault:
        """Let a call and every later one fail."""
        return cls(number, _EVER, Action.FAIL, getattr(errno, error), only, None, with_reads)


@dataclass
class Faults:
    """What happens to programs that run with ``env``, when they change what is below ``under``."""

    under: Path
    _folder: tempfile.TemporaryDirectory[str] = field(
        default_factory=lambda: tempfile.TemporaryDirectory(prefix="faults")
    )

    def __enter__(self) -> Self:
        self._library = Path(self._folder.name) / "faults.so"
        self._library.write_bytes(_compiled())
        self._plan = Path(self._folder.name) / "plan"
        self._log = Path(self._folder.name) / "log"
        self._plan.write_bytes(bytes(_PLAN.size))
        with self._plan.open("r+b") as file:
            self._shared = mmap.mmap(file.fileno(), _PLAN.size)
        self.arm(Fault())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._shared.close()
        self._folder.cleanup()

    @property
    def env(self) -> Mapping[str, str]:
        """Give the environment of a program that is to be hit."""
        return {"LD_PRELOAD": str(self._library), "FAULTS_PLAN": str(self._plan), "FAULTS_LOG": str(self._log)}

    def arm(self, fault: Fault) -> None:
        """Count from 1 again, and hit as the fault says."""
        self._log.write_bytes(b"")
        only = f"|{'|'.join(fault.only)}|" if fault.only else ""
        fields = (fault.first, fault.last, fault.action, fault.argument, fault.with_reads, fault.path is not None)
        path = os.fsencode(fault.path or "")
        self._shared[:] = _PLAN.pack(0, *fields, only.encode(), path, os.fsencode(self.under))

    @property
    def count(self) -> int:
        """How many calls there were since it was armed."""
        (count,) = struct.unpack_from("=I", self._shared)
        return int(count)

    def steps(self) -> Sequence[Step]:
        """Name each call since, in their order, with the file: the new name of a renamed one."""
        seen = Counter[tuple[str, str]]()
        steps = list[Step]()
        for line in self._log.read_text(errors="replace").splitlines():
            _, call, path = line.split(" ", 2)
            seen[call, path] += 1
            steps.append(Step(call, path, seen[call, path]))
        return steps


@functools.cache
def _compiled() -> bytes:
    """Compile the library, once for all tests of this process."""
    source = Path(__file__).with_suffix(".c")
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "faults.so"
        options = ["-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror"]
        subprocess.run([require_program("cc"), *options, "-o", made, source, "-ldl"], check=True)
        return made.read_bytes()
