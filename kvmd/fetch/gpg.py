"""OpenPGP signatures, checked by ``gpgv``, which knows the keys of one file and nothing else."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
from concurrent.futures import Executor
from contextlib import suppress
from pathlib import Path

from kvmd.errors import InternalError, SignatureError

TIMEOUT_S = 10.0
_MAX_WORDS = 400


class GpgKeyring:
    """Implements the port ``Keyring`` with a file of public keys, as ``gpg --export`` writes it (not armored)."""

    def __init__(self, path: Path, executor: Executor) -> None:
        self._path = path
        self._executor = executor

    async def verify(self, document: bytes, signature: bytes) -> None:
        """See the port."""
        loop = asyncio.get_running_loop()
        folder = await loop.run_in_executor(self._executor, _written, document, signature)
        try:
            await self._run(folder)
        finally:
            await asyncio.shield(loop.run_in_executor(self._executor, _removed, folder))

    async def _run(self, folder: Path) -> None:
        words = (
            "gpgv",
            "--status-fd",
            "1",
            "--keyring",
            str(self._path),
            str(folder / "signature"),
            str(folder / "document"),
        )
        try:
            process = await asyncio.create_subprocess_exec(
                *words,
                env={"PATH": os.environ.get("PATH", os.defpath), "GNUPGHOME": str(folder), "LC_ALL": "C"},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as exc:
            raise InternalError(
                f"policy.keyring is set, but gpgv cannot be run: {exc.strerror}.", hint="Install gpgv on the host."
            ) from exc
        try:
            async with asyncio.timeout(TIMEOUT_S):
                told, said = await process.communicate()
        except TimeoutError:
            raise SignatureError(f"gpgv did not end within {TIMEOUT_S:g} s; not believed.") from None
        finally:
            await _reap(process)
        if process.returncode != 0 or not _is_good(told):
            words_said = " ".join(said.decode(errors="replace").split())[:_MAX_WORDS]
            raise SignatureError(f"the signature was refused; gpgv says: {words_said or process.returncode}")


def _is_good(status: bytes) -> bool:
    """Whether every signature is good, and at least one is there.

    For an expired or revoked key, too, gpgv says VALIDSIG and ends with 0 (2.2.40): only GOODSIG means that nothing speaks against it.
    """
    words = [line.split()[1] for line in status.splitlines() if line.startswith(b"[GNUPG:] ") and line.split()[1:]]
    return 0 < words.count(b"GOODSIG") == words.count(b"VALIDSIG") == words.count(b"NEWSIG")


async def _reap(process: asyncio.subprocess.Process) -> None:
    """End it, with all that it has started, and wait for it: shortly, for it has been killed."""
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await asyncio.shield(process.wait())


def _written(document: bytes, signature: bytes) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="kvmd-gpgv-"))
    (folder / "document").write_bytes(document)
    (folder / "signature").write_bytes(signature)
    return folder


def _removed(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
