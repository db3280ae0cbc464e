"""Several hosts on one machine: network namespaces on a bridge, which nothing outside reaches."""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.programs import require_program, require_root

HUB = "hub"


class Network:
    """The namespace ``hub``, which has the bridge, and one for each host; leaving the context deletes them."""

    def __init__(self, hosts: Sequence[str]) -> None:
        require_root("makes network namespaces")
        self._ip = require_program("ip")
        self._prefix = uuid.uuid4().hex[:6]  # of this run alone: names of namespaces are the machine's
        self._numbers = {name: number for number, name in enumerate((HUB, *hosts), 1)}

    def __enter__(self) -> Self:
        try:
            for name in self._numbers:
                self._run("netns", "add", self._namespace(name))
                self._run("link", "set", "lo", "up", inside=name)
            self._run("link", "add", "bridge", "type", "bridge", inside=HUB)
            self._run("address", "add", f"{self.address(HUB)}/24", "dev", "bridge", inside=HUB)
            self._run("link", "set", "bridge", "up", inside=HUB)
            for name in [name for name in self._numbers if name != HUB]:
                self._join(name)
        except BaseException:
            self._delete()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._delete()

    def address(self, name: str) -> str:
        """Give the IPv4 address of a host, or of the hub."""
        return f"10.77.0.{self._numbers[name]}"

    def inside(self, name: str) -> list[str]:
        """Give the words that run a command there."""
        return ["nsenter", f"--net={self._path(name)}"]

    def processes(self, name: str) -> list[str]:
        """Give the ids of the processes that run there."""
        command = [self._ip, "netns", "pids", self._namespace(name)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()

    def _join(self, name: str) -> None:
        self._run(
            "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", self._namespace(name), inside=HUB
        )
        self._run("link", "set", name, "up", "master", "bridge", inside=HUB)
        self._run("address", "add", f"{self.address(name)}/24", "dev", "eth0", inside=name)
        self._run("link", "set", "eth0", "up", inside=name)

    def _run(self, *words: str, inside: str | None = None) -> None:
        where = ["-n", self._namespace(inside)] if inside else []
        done = subprocess.run([self._ip, *where, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"

    def _delete(self) -> None:
        for name in self._numbers:
            if self._path(name).exists():
                self._run("netns", "delete", self._namespace(name))

    def _namespace(self, name: str) -> str:
        return f"{self._prefix}-{name}"

    def _path(self, name: str) -> Path:
        return Path("/run/netns") / self._namespace(name)
