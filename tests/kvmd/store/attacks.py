"""Sessions that are hit at each of their steps in turn, and what must hold then and when they are run again."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from kvmd.store.zeros import Allocation
from tests.support.faults import Fault, Faults, Step
from tests.support.hostile import HostileServer
from tests.support.images import payload, qcow2, raw

ROOT = Path(__file__).parents[3]
KIB = 1 << 10
_WRITES = {"write", "pwrite64", "fsync", "fdatasync"}
OLD, NEIGHBOUR = raw(320 * KIB, seed=1), raw(64 * KIB, seed=2)
NEW = raw(384 * KIB, seed=3) + bytes(128 * KIB) + payload(200 * KIB, seed=4)


@dataclass(frozen=True)
class Scenario:
    """What a session is to do: ``before`` is the volume's content until then, ``after`` that from then on; None is no volume.

    ``served`` is what the origin gives.
    """

    name: str
    before: bytes | None
    after: bytes | None
    served: bytes = NEW
    allocation: Allocation = Allocation.SPARSE
    is_converted: bool = False


def _digest(content: bytes) -> str:
    return "{SHA-256}" + hashlib.sha256(content).hexdigest()


GZIPPED = gzip.compress(NEW, mtime=0)
QCOW2 = qcow2(2 << 20, data_size=256 * KIB)
PLAIN = Scenario("plain", None, NEW)
PACKED = Scenario("packed", None, NEW, GZIPPED)
CONVERTED = Scenario("converted", None, payload(256 * KIB) + bytes(1792 * KIB), QCOW2, is_converted=True)
TAKE_OVER = Scenario("take-over", OLD, NEW)
PACKED_TAKE_OVER = Scenario("packed take-over", OLD, NEW, GZIPPED, Allocation.FULL)
REMOVAL = Scenario("removal", OLD, None)
SCENARIOS = (PLAIN, PACKED, CONVERTED, TAKE_OVER, PACKED_TAKE_OVER, REMOVAL)


@dataclass(frozen=True)
class Ended:
    """How a session ended: the exit code, what was saved (bytes), what it said in the end, if it did, and whether it downloaded."""

    code: int
    saved: int
    outcome: Mapping[str, Any]
    downloads: bool


@dataclass
class Target:
    """A pool that is attacked. ``comes_back`` is called after the program's end: it may cut the power and bring it back."""

    pool: Path
    origin: HostileServer
    scratch: Path
    comes_back: Callable[[], None] = lambda: None
    faults: Faults = field(init=False)

    def __post_init__(self) -> None:
        self.faults = Faults(self.pool)

    def __enter__(self) -> Self:
        self.faults.__enter__()
        self._program = subprocess.Popen(
            [sys.executable, "-m", "tests.kvmd.store.sessions"],
            cwd=ROOT,
            env={**os.environ, **self.faults.env},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._program.stdin is not None
        assert self._program.stdout is not None
        self._program.stdin.close()
        self._program.wait(10)
        self._program.stdout.close()
        self.faults.__exit__(kind, error, trace)

    def prepare(self, scenario: Scenario) -> None:
        """Make the pool as it is before."""
        self.pool.mkdir(exist_ok=True)
        subprocess.run(["rm", "-rf", self.pool / ".kvmd", self.pool / "disk"], check=True)
        (self.pool / "neighbour").write_bytes(NEIGHBOUR)
        if scenario.before is not None:
            (self.pool / "disk").write_bytes(scenario.before)
        os.sync()
        self._placed = None if scenario.before is None else self._placement(scenario.before)

    def run(self, scenario: Scenario, fault: Fault | None = None) -> Ended:
        """Run a session to its end."""
        name, told = scenario.name.replace(" ", "-"), self.scratch / "told"
        self.origin.add(name, scenario.served)
        told.unlink(missing_ok=True)
        self.faults.arm(fault or Fault())
        order = {
            "pool": str(self.pool),
            "told": str(told),
            "url": self.origin.url(name),
            "expected": _digest(scenario.served),
            "placed": self._placed,
            "removes": scenario.after is None,
            "is_raw": scenario.is_converted,
            "allocation": scenario.allocation.value,
        }
        code = self._ask(json.dumps(order))
        lines: list[Mapping[str, Any]] = (
            [json.loads(line) for line in told.read_text().splitlines()] if told.exists() else []
        )
        saved = max((line["saved"] for line in lines if "saved" in line), default=0)
        downloads = any("downloads" in line for line in lines)
        outcome: Mapping[str, Any] = next((line for line in lines if "state" in line), {"code": None})
        return Ended(code, saved, outcome, downloads=downloads)

    def steps(self, scenario: Scenario) -> Sequence[Step]:
        """Give every step of an undisturbed session."""
        self.prepare(scenario)
        self.see_done(scenario, self.run(scenario))
        return self.faults.steps()

    def look(self, scenario: Scenario) -> None:
        """See that the final name is absent or has the right bytes, and that nothing else was touched."""
        found = {path.name: path for path in self.pool.iterdir()}
        assert self.disk() in (scenario.before, scenario.after), "the volume is neither the old nor the new one"
        assert found.keys() - {".kvmd", "disk"} == {"neighbour"}
        assert found["neighbour"].read_bytes() == NEIGHBOUR

    def see_done(self, scenario: Scenario, ended: Ended) -> None:
        """See that it has done what it was to do, and that nothing is left of it."""
        assert (ended.code, ended.outcome["code"]) == (0, ""), ended
        assert self.disk() == scenario.after
        self.look(scenario)
        assert self.leftovers() == []

    def disk(self) -> bytes | None:
        """Read the volume; None where there is none."""
        path = self.pool / "disk"
        return path.read_bytes() if path.exists() else None

    def leftovers(self) -> list[str]:
        """Name what is in the staging folder; a record may lie there as long as its volume is there."""
        names = {path.name for path in (self.pool / ".kvmd").glob("*")}
        return sorted(names - {"disk.record"} if (self.pool / "disk").exists() else names)

    def hit(self, scenario: Scenario, fault: Fault, *, at: Step) -> bool:
        """End a session by the fault at a step; whether it came to that. It must go on from what is saved."""
        self.prepare(scenario)
        ended = self.run(scenario, fault)
        self.comes_back()
        if self.faults.count < fault.first:
            return False
        assert ended.code == -signal.SIGKILL, f"{at}: {ended}"
        self.look(scenario)
        again = self.run(scenario)
        self.see_done(scenario, again)
        is_kept = not again.downloads or again.outcome["resumed"] >= ended.saved
        assert is_kept, f"{at}: {ended.saved} bytes were saved, {again.outcome}"
        return True

    def fail(self, scenario: Scenario, step: Step, error: str, *, code: str) -> bool:
        """Let a call of a session fail; whether it came to that. The session must say so with the code, or need not care."""
        self.prepare(scenario)
        ended = self.run(scenario, Fault.fail(step, error))
        if self.faults.count < step.number:
            return False
        assert ended.code == 0, step
        assert ended.outcome["code"] in ("", code), f"{step}: {ended.outcome}"
        self.look(scenario)
        if _is_write_of_data(step):
            assert (ended.outcome["code"], self.disk()) == (code, scenario.before), f"{step}: {ended.outcome}"
            assert str(self.pool) in ended.outcome["message"], ended.outcome
        if code == "IO" and "unlink" not in step.call:
            assert self.leftovers() == [], step
        self.see_done(scenario, self.run(scenario))
        return True

    def _placement(self, content: bytes) -> Mapping[str, object]:
        """Describe the volume as the daemon's journal does."""
        path = self.pool / "disk"
        found = path.stat()
        named = {"path": str(path), "device": found.st_dev, "inode": found.st_ino, "size": found.st_size}
        return {**named, "mtime_ns": found.st_mtime_ns, "digest": _digest(content)}

    def _ask(self, line: str) -> int:
        assert self._program.stdin is not None
        assert self._program.stdout is not None
        self._program.stdin.write(line + "\n")
        self._program.stdin.flush()
        return int(self._program.stdout.readline())


def spread(steps: Sequence[Step], count: int) -> Sequence[Step]:
    """Choose so many of the steps, evenly, the last of them included."""
    if count >= len(steps):
        return steps
    return [steps[(index + 1) * len(steps) // count - 1] for index in range(count)]


def _is_write_of_data(step: Step) -> bool:
    """Whether a call writes or syncs the bytes of a partial volume."""
    return step.call in _WRITES and step.path.endswith((".part", ".packed", ".raw"))
