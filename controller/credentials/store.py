"""The credentials on the controller's disk: a file each, 0600, replaced whole. The calls block, for milliseconds."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import AsyncGenerator
from pathlib import Path

from pydantic import ValidationError

from controller.credentials.record import Record
from controller.errors import ControlError, UnreachableError
from controller.keys import files
from kvmwire.names import is_name

_SUFFIX = ".json"
_STEP_S = 0.05


class CredentialStore:
    """Reads and writes ``state_dir/credentials``. Whoever changes something, or hands something out, holds ``changing``."""

    def __init__(self, state_dir: Path) -> None:
        self.folder = state_dir / "credentials"

    def names(self) -> tuple[str, ...]:
        """Name what is kept, revoked ones too."""
        try:
            found = [path.name for path in self.folder.iterdir() if path.suffix == _SUFFIX]
        except FileNotFoundError:
            return ()
        except OSError as exc:
            raise self._unusable(self.folder, exc.strerror or str(exc)) from exc
        return tuple(sorted(name for one in found if is_name(name := one.removesuffix(_SUFFIX))))

    def read(self, name: str) -> Record | None:
        """Give a credential; None for one that was never handed out from here. Raises ControlError."""
        path = self._path(name)
        try:
            return Record.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise self._unusable(path, exc.strerror or str(exc)) from exc
        except ValidationError as exc:
            first = exc.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"])) or "it"
            raise self._unusable(path, f"{where}: {first['msg']}") from exc

    def all(self) -> tuple[Record, ...]:
        """Give everything that is kept. Raises ControlError."""
        return tuple(record for name in self.names() if (record := self.read(name)) is not None)

    def write(self, record: Record) -> None:
        """Keep a credential in place of the one of its name. Raises ControlError; then the old one is still there."""
        path = self._path(record.name)
        try:
            self._make_folder()
            files.write(path, record.model_dump_json(exclude_defaults=True).encode() + b"\n")
        except OSError as exc:
            raise self._unusable(path, exc.strerror or str(exc)) from exc

    def version(self) -> int:
        """Give what changes with every write: nanoseconds."""
        try:
            return self.folder.stat().st_mtime_ns
        except OSError:
            return 0

    @contextlib.asynccontextmanager
    async def changing(self, *, patience_s: float) -> AsyncGenerator[None, None]:
        """Let no other kvmctl hand out or change anything meanwhile. Raises UnreachableError where one does so all the time."""
        path = self.folder.with_name("credentials.lock")
        try:
            self._make_folder()
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, files.PRIVATE)
            files.give_to_owner_of(path.parent, path)
        except OSError as exc:
            raise self._unusable(path, exc.strerror or str(exc)) from exc
        try:
            await _lock(descriptor, patience_s)
            yield
        finally:
            os.close(descriptor)

    def _make_folder(self) -> None:
        self.folder.parent.mkdir(parents=True, exist_ok=True, mode=files.FOLDER)
        if not self.folder.exists():
            self.folder.mkdir(mode=files.FOLDER, exist_ok=True)
            files.give_to_owner_of(self.folder.parent, self.folder)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}{_SUFFIX}"

    def _unusable(self, path: Path, why: str) -> ControlError:
        return ControlError(
            f"credentials: {path}: {why}.",
            hint="Let this user read and write the folder, with free space on its disk; or hand the credential out anew.",
        )


async def _lock(descriptor: int, patience_s: float) -> None:
    """Take the lock without a thread that could not be interrupted."""
    try:
        async with asyncio.timeout(patience_s):
            while True:
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return
                await asyncio.sleep(_STEP_S)
    except TimeoutError as exc:
        raise UnreachableError(
            f"credentials: another kvmctl has been handing out credentials for more than {patience_s:g} s; nothing was changed.",
            hint="Wait for it, or end it; what it did not send, `kvmctl credential sync` sends.",
        ) from exc
