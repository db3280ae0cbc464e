"""What kvmd and its inspector say to each other: one request with open files, one answer, both JSON.

Nothing but the standard library: the inspector starts for every image, and what it imports it can be attacked through.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import cast

MAX_REQUEST = 4096
MAX_OUTPUT = 64 * 1024
"""So many bytes may qemu-img write before it is ended; what it has to say of an image are a few hundred."""
MAX_ANSWER = 16 * MAX_OUTPUT
"""JSON writes a byte as up to six characters; two runs."""


LEAST_RATE = 4 << 20
"""Bytes a second: a conversion that is slower all in all is ended, whatever progress it makes."""


class Task(StrEnum):
    """What is to be done: look (``info``, ``check``), ``measure``, or ``convert`` into a second open file."""

    LOOK = "look"
    MEASURE = "measure"
    CONVERT = "convert"


@dataclass(frozen=True, slots=True)
class Request:
    """Do something with the image that came along. ``format`` is qemu's name; ``memory`` is in bytes.

    ``timeout_s`` is for each run; a conversion is ended after so long without progress. It makes ``size`` bytes.
    """

    format: str
    timeout_s: float
    memory: int
    task: Task = Task.LOOK
    size: int = 0
    writes_zeros: bool = False

    @property
    def longest_s(self) -> float:
        """The time that each run may take in all."""
        return self.timeout_s + self.size / LEAST_RATE

    def encode(self) -> bytes:
        """Give the request as it is sent."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def decode(cls, text: bytes) -> Request:
        """Read a request; ValueError for anything else."""
        fields = _table(text)
        kind, timeout_s, memory = fields.get("format"), fields.get("timeout_s"), fields.get("memory")
        task, size, writes_zeros = fields.get("task"), fields.get("size"), fields.get("writes_zeros")
        if not (isinstance(kind, str) and isinstance(timeout_s, int | float) and isinstance(memory, int)):
            raise ValueError("expected format, timeout_s and memory")  # noqa: TRY004 - any bad message is one kind of error
        if not (isinstance(task, str) and isinstance(size, int) and isinstance(writes_zeros, bool) and size >= 0):
            raise ValueError("expected task, size and writes_zeros")
        return cls(kind, timeout_s, memory, Task(task), size, writes_zeros)


@dataclass(frozen=True, slots=True)
class Run:
    """How one run of qemu-img went: its exit code (minus the signal's number), and what it wrote.

    ``ended_for`` is ``time`` or ``output`` where a limit ended it, else empty.
    """

    exit_code: int
    told: str
    said: str
    ended_for: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """How the runs of qemu-img went; the first that went wrong is the last. ``problem`` tells why there are none."""

    runs: tuple[Run, ...] = ()
    is_missing: bool = False
    problem: str = ""

    def encode(self) -> bytes:
        """Give the answer as it is sent."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def decode(cls, text: bytes) -> Answer:
        """Read an answer; ValueError for anything else."""
        fields = _table(text)
        runs, is_missing, problem = fields.get("runs"), fields.get("is_missing"), fields.get("problem")
        if not (isinstance(runs, list) and isinstance(is_missing, bool) and isinstance(problem, str)):
            raise ValueError("expected runs, is_missing and problem")  # noqa: TRY004 - see Request
        return cls(tuple(map(_run, cast("list[object]", runs))), is_missing, problem)


def _run(value: object) -> Run:
    fields = cast("dict[str, object]", value if isinstance(value, dict) else {})
    exit_code, texts = fields.get("exit_code"), [fields.get(name) for name in ("told", "said", "ended_for")]
    if not isinstance(exit_code, int):
        raise ValueError("expected an exit code")  # noqa: TRY004 - see Request
    told, said, ended_for = (text if isinstance(text, str) else "" for text in texts)
    return Run(exit_code, told, said, ended_for)


def _table(text: bytes) -> dict[str, object]:
    try:
        value: object = json.loads(text)
    except RecursionError as exc:
        raise ValueError("nested too deeply") from exc
    if not isinstance(value, dict):
        raise ValueError("expected an object")  # noqa: TRY004 - see Request
    return cast("dict[str, object]", value)
