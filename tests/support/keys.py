"""OpenPGP keys made by gpg, and what they sign."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.programs import require_program

_PAST = "20200101T000000"


class Keys:
    """Keys in a home of their own, whose agent ends with the context. The path is short, because the agent's socket is in it."""

    def __enter__(self) -> Self:
        self._gpg = require_program("gpg")
        require_program("gpgv")
        self._home = Path(tempfile.mkdtemp(prefix="gpg-", dir="/tmp"))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run(require_program("gpgconf"), "--kill", "all")
        shutil.rmtree(self._home, ignore_errors=True)

    def make(self, name: str, *, is_expired: bool = False) -> None:
        """Make a key; one that is expired was valid for a day in the past."""
        when = ("--faked-system-time", _PAST) if is_expired else ()
        identity, days = f"{name} <{name}@example.org>", "1d" if is_expired else "0"
        self._run(self._gpg, *when, "--passphrase", "", "--quick-gen-key", identity, "ed25519", "sign", days)

    def sign(self, document: bytes, *names: str, is_armored: bool = False, is_past: bool = False) -> bytes:
        """Give a detached signature by each of the keys."""
        when = ("--faked-system-time", _PAST) if is_past else ()
        users = [word for name in names for word in ("-u", f"{name}@example.org")]
        armor = ("--armor",) if is_armored else ()
        return self._run(self._gpg, *when, *armor, *users, "--detach-sign", given=document)

    def export(self, path: Path, *names: str) -> Path:
        """Write a keyring of the public keys."""
        path.write_bytes(self._run(self._gpg, "--export", *(f"{name}@example.org" for name in names)))
        return path

    def _run(self, program: Path, *words: str, given: bytes = b"") -> bytes:
        batch = ("--batch", "--quiet", "--no-tty") if program == self._gpg else ()
        done = subprocess.run(
            [program, *batch, *words],
            input=given,
            capture_output=True,
            check=True,
            timeout=10,
            env={**os.environ, "GNUPGHOME": str(self._home)},
        )
        return done.stdout
