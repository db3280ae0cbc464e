"""Landlock (landlock(7)): takes the files of this machine away from this process, which needs no privilege for that."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable
from contextlib import suppress

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, TRUNCATE = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 14
_FIRST = (1 << 13) - 1
_REFER = 1 << 13
_RIGHTS = {1: _FIRST, 2: _FIRST | _REFER, 3: _FIRST | _REFER | TRUNCATE}
"""What each version of the kernel's interface can deny; later ones add nothing about files that matters here."""
_CREATE, _ADD_RULE, _RESTRICT = 444, 445, 446
_PATH_BENEATH = 1
_NO_NEW_PRIVS = 38

_libc = ctypes.CDLL(None, use_errno=True)


def version() -> int:
    """Give the version of the kernel's interface; 0 where it has none."""
    return max(0, int(_libc.syscall(_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint32(1))))


def restrict(
    *, readable: Iterable[str], writable: Iterable[str], descriptors: Iterable[int], targets: Iterable[int]
) -> bool:
    """Leave only what is named: folders to read and run programs from, files to write, open files to be opened again.

    Those of ``descriptors`` for reading, those of ``targets`` for writing, too.

    For ever, for this process and its children. False, and nothing is taken away, where the kernel cannot.
    """
    _libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0)
    known = version()
    if not known:
        return False
    rules = _Rules(_RIGHTS[min(known, max(_RIGHTS))])
    for path in readable:
        rules.allow_path(path, EXECUTE | READ_FILE | READ_DIR)
    for path in writable:
        rules.allow_path(path, READ_FILE | WRITE_FILE)
    for fd in descriptors:
        rules.allow(fd, READ_FILE)
    for fd in targets:
        rules.allow(fd, READ_FILE | WRITE_FILE)
    return rules.enforce()


class _Rules:
    """A set of rules that is being made."""

    def __init__(self, rights: int) -> None:
        denied = ctypes.create_string_buffer(struct.pack("=Q", rights), 8)
        self._fd = _libc.syscall(_CREATE, denied, ctypes.c_size_t(8), ctypes.c_uint32(0))

    def allow_path(self, path: str, rights: int) -> None:
        """Allow the rights on what is there, and beneath it."""
        with suppress(OSError):  # a path that is not there needs no rule
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
            try:
                self.allow(fd, rights if os.path.isdir(path) else rights & ~READ_DIR)  # noqa: PTH112 - no import of pathlib
            finally:
                os.close(fd)

    def allow(self, fd: int, rights: int) -> None:
        """Allow the rights on an open file."""
        rule = ctypes.create_string_buffer(struct.pack("=Qi", rights, fd), 12)
        _libc.syscall(_ADD_RULE, self._fd, _PATH_BENEATH, rule, ctypes.c_uint32(0))

    def enforce(self) -> bool:
        """Put the rules into force."""
        try:
            return int(_libc.syscall(_RESTRICT, self._fd, ctypes.c_uint32(0))) == 0
        finally:
            os.close(self._fd)
