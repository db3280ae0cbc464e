"""What systemd does for the inspector's socket: one process for each connection, with that as its standard input."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Self


class Unit:
    """The socket at ``path``; leaving the context ends every inspector."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._processes: list[subprocess.Popen[bytes]] = []
        self._listening = socket.socket(socket.AF_UNIX)
        self._thread = threading.Thread(target=self._accept)

    def __enter__(self) -> Self:
        self._listening.bind(str(self.path))
        self._listening.listen()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listening.close()
        for one in self._processes:
            one.wait(10)

    @property
    def is_idle(self) -> bool:
        """Whether every inspector has ended."""
        return all(one.poll() is not None for one in self._processes)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            with connection:
                words = [sys.executable, "-m", "kvmd", "inspector"]
                self._processes.append(subprocess.Popen(words, stdin=connection, stderr=subprocess.DEVNULL))
