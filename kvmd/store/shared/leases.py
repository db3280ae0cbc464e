"""Leases in a folder that several hosts share: who makes which volume (docs/decisions/0021-shared-pools.md).

They save work. Nothing here keeps two hosts from the same volume for sure, and nothing needs to.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from kvmd.core.lease import RENEWALS, Lease, Watch, file_of, is_over, numbers, watched
from kvmd.log import get_logger
from kvmd.store.calls import read_small
from kvmd.store.staging import STAGING, open_folder

log = get_logger(__name__)

SHARED = "shared"
"""Folder inside of the staging folder for what the hosts of a pool tell each other."""
_LONGEST_FILE = 4096
_MODE = 0o600


@dataclass(frozen=True, slots=True)
class Taken:
    """Somebody else makes the volume; ``lease`` is what it says of itself, None where that cannot be read."""

    lease: Lease | None


def host_mark(host: str) -> str:
    """Give the first 8 digits of a host's tokens."""
    return hashlib.sha256(host.encode()).hexdigest()[:8]


def new_token(host: str) -> str:
    """Give 24 hexadecimal digits that nobody has used, nor will."""
    return host_mark(host) + secrets.token_hex(8)


def open_shared(pool: Path) -> int:
    """Open the folder for what the hosts tell each other, and make it where it is missing. Raises OSError."""
    outer = open_folder(pool)
    try:
        for name in (STAGING, SHARED):
            inner = _open_or_make(name, within=outer)
            os.close(outer)
            outer = inner
    except BaseException:
        os.close(outer)
        raise
    return outer


def _open_or_make(name: str, *, within: int) -> int:
    try:
        return open_folder(name, within=within)
    except FileNotFoundError:
        with suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=within)
        return open_folder(name, within=within)


class Leases:
    """The leases of one pool, as one host sees and takes them. Blocking: call it from a thread."""

    def __init__(
        self, pool: Path, *, host: str, lease_s: float, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._pool = pool
        self._host = host
        self._lease_s = lease_s
        self._monotonic = monotonic
        self._watches: dict[str, Watch] = {}
        self._held: set[str] = set()

    def look(self, volume: str) -> Taken | None:
        """Tell who makes the volume; None where nobody does, or the one that did shows no life any more. Raises OSError."""
        folder = open_shared(self._pool)
        try:
            return self._look(folder, volume)[1]
        finally:
            os.close(folder)

    def take(self, volume: str) -> Holding | Taken:
        """Become the one that makes the volume, or tell who is. Raises OSError."""
        folder = open_shared(self._pool)
        try:
            highest, taken = self._look(folder, volume)
            lease = Lease(self._host, new_token(self._host), self._lease_s)
            fd = None if taken is not None else _write_down(folder, volume, highest + 1, lease)
            if fd is None:
                os.close(folder)
                return taken or Taken(None)
        except BaseException:
            os.close(folder)
            raise
        self._watches.pop(volume, None)
        self._held.add(lease.token)
        return Holding(folder, fd, volume, highest + 1, lease, on_release=lambda: self._held.discard(lease.token))

    def _look(self, folder: int, volume: str) -> tuple[int, Taken | None]:
        """Give the highest number so far, 0 for none, and who holds it."""
        asked = self._monotonic()
        highest = max(numbers(volume, os.listdir(folder)), default=0)
        seen = read_small(file_of(volume, highest), folder=folder, most=_LONGEST_FILE) if highest else None
        if seen is None:
            self._watches.pop(volume, None)
            return highest, None
        watch = watched(self._watches.get(volume), highest, seen, answered=self._monotonic())
        self._watches[volume] = watch
        lease = Lease.decode(seen)
        is_own = lease is not None and lease.token in self._held
        if not is_own and is_over(watch, asked=asked, host=self._host, lease_s=self._lease_s):
            return highest, None
        return highest, Taken(lease)


class Holding:
    """One's own lease: renewed by a thread until it is released. ``is_lost``: another host has taken over."""

    def __init__(
        self, folder: int, fd: int, volume: str, number: int, lease: Lease, *, on_release: Callable[[], None]
    ) -> None:
        self._folder = folder
        self._fd = fd
        self._volume = volume
        self._number = number
        self._lease = lease
        self._on_release = on_release
        self._is_lost = False
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._renew_regularly, name="kvmd-lease", daemon=True)
        self._thread.start()

    @property
    def token(self) -> str:
        """What no other holding has."""
        return self._lease.token

    @property
    def is_lost(self) -> bool:
        """Whether somebody else was seen to hold it."""
        return self._is_lost

    def tell(self, *, done: int, size: int | None) -> None:
        """Say how far it is, with the next renewal."""
        self._lease = replace(self._lease, done=done, size=size)

    def confirm(self) -> bool:
        """Look whether it is still one's own. It may be another's a moment later."""
        try:
            named = os.stat(file_of(self._volume, self._number), dir_fd=self._folder, follow_symlinks=False)
            is_mine = os.path.samestat(named, os.fstat(self._fd))
            is_mine = is_mine and max(numbers(self._volume, os.listdir(self._folder))) == self._number
        except OSError:
            is_mine = False
        self._is_lost = self._is_lost or not is_mine
        return not self._is_lost

    def release(self) -> None:
        """Let others have it. Whatever of it cannot be deleted ends by itself."""
        self._stopped.set()
        self._thread.join()
        try:
            if self.confirm():
                self._delete()
        except OSError as exc:
            log.warning("lease could not be deleted", volume=self._volume, exc=exc)
        finally:
            os.close(self._fd)
            os.close(self._folder)
            self._on_release()

    def _delete(self) -> None:
        """Delete the lease and those of former holders, the highest last: until then nobody else can take the volume."""
        names = os.listdir(self._folder)
        for name in names:
            if name.startswith(f"{self._volume}@") and name.endswith(".new"):
                _unlink(self._folder, name)
        for number in numbers(self._volume, names):
            _unlink(self._folder, file_of(self._volume, number))

    def _renew_regularly(self) -> None:
        while not self._stopped.wait(self._lease.lease_s / RENEWALS):
            try:
                if not self.confirm():
                    log.warning("another host has taken over", volume=self._volume)
                    return
                self._lease = replace(self._lease, beat=self._lease.beat + 1)
                os.pwrite(self._fd, self._lease.encode(), 0)
                os.fsync(self._fd)
            except OSError as exc:  # others judge by what they see; it may pass
                log.warning("lease could not be renewed", volume=self._volume, exc=exc)


def _write_down(folder: int, volume: str, number: int, lease: Lease) -> int | None:
    """Take the number, and give the descriptor of the lease's file; None where somebody was faster."""
    fresh, name = f"{volume}@{lease.token}.new", file_of(volume, number)
    fd = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, _MODE, dir_fd=folder)
    try:
        os.pwrite(fd, lease.encode(), 0)
        os.fsync(fd)
        with suppress(FileExistsError):  # also where the first answer of a server was lost: what it did is looked at
            os.link(fresh, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
        _unlink(folder, fresh)
        is_taken = os.path.samestat(os.stat(name, dir_fd=folder, follow_symlinks=False), os.fstat(fd))
        if is_taken and max(numbers(volume, os.listdir(folder)), default=0) > number:
            _unlink(folder, name)  # the list that the number came from was old
            is_taken = False
    except FileNotFoundError:  # whoever let go meanwhile deletes what lies around
        is_taken = False
    except BaseException:
        os.close(fd)
        raise
    if not is_taken:
        os.close(fd)
        return None
    return fd


def _unlink(folder: int, name: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder)
