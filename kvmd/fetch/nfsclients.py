"""Connections to NFS servers through nfs-rs: the one module that knows this library. Its exceptions become ours here.

Only addresses are given to the library, never names, and only those that the policy allows. With NFS 4.1 a server may send its
clients on to other servers (pNFS), which would be dialled unchecked: 4.0 is asked for first, and 4.1 is used only where the
server offers no pNFS. A server with neither is asked for version 3, whose exports only its mount service knows.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from typing import Any
from urllib.parse import quote

from kvmd.core.entity import Entity
from kvmd.errors import (
    ConfigError,
    ProtocolError,
    SourceError,
    SourceStalledError,
    SourceStatusError,
    SourceUnreachableError,
    UrlForbiddenError,
)
from kvmd.fetch.files import SourceForgottenError, entity_of
from kvmd.plugin import Environment
from kvmwire.source import Origin, SourceUrl

try:
    import nfs_rs

    import_module("nfs_rs._internal")  # its native part, which else would be loaded in the event loop
except ImportError as exc:
    raise ImportError(
        f"the package nfs-rs cannot be used ({exc}); install it with: pip install 'kvmd[nfs]' (Linux on x86_64 with glibc)"
    ) from exc

_IDLE_S = 60.0
"""A connection that nothing used for so long is closed when the next one is asked for."""
_CLOSE_S = 0.5
"""What a server gets for its part of closing a file, and a connection."""
_OPTIONS = frozenset({"uid", "gid", "mount_port"})
_FORGOTTEN = frozenset({"STALE", "BADHANDLE", "FHEXPIRED", "EXPIRED", "STALE_STATEID", "STALE_CLIENTID", "BAD_STATEID"})
_NOT_REGULAR = frozenset({"SYMLINK", "ISDIR", "NOTDIR", "INVAL", "WRONG_TYPE"})
_DENIED = frozenset({"WRONGSEC", "NAMETOOLONG", "BADNAME", "BADCHAR"})
_HINT = "Write the path of the regular file itself; symbolic links are not followed."


@dataclass(frozen=True, slots=True)
class Identity:
    """Who the server is told is asking (AUTH_SYS), None for this process's own, and the port of version 3's mount service."""

    uid: int | None = None
    gid: int | None = None
    mount_port: int | None = None

    @classmethod
    def of(cls, environment: Environment) -> Identity:
        """Read the table ``[protocols.nfs]``. Raises ConfigError."""
        options = environment.options
        for name, value in options.items():
            if name not in _OPTIONS or isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ConfigError(
                    f"[protocols.nfs] {name} = {value!r}: expected whole numbers named {', '.join(sorted(_OPTIONS))}."
                )
        return cls(**options)

    def arguments(self) -> dict[str, Any]:
        """Give the library's keyword arguments."""
        return {"uid": self.uid, "gid": self.gid}


class Connection:
    """One connection, for one stream at a time: nfs-rs 0.8.7 mixes up two streams that have the same file open.

    ``root`` is the path that it is mounted at. Every call is bounded in time.
    """

    def __init__(self, client: nfs_rs.AsyncClient, root: tuple[str, ...], *, stall_timeout_s: float) -> None:
        self.root = root
        self.idle_since = 0.0
        self._client = client
        self._stall_timeout_s = stall_timeout_s
        self._file: nfs_rs.AsyncFile | None = None

    async def entity(self, url: SourceUrl, parts: tuple[str, ...]) -> Entity:
        """Ask what stands at the path now. Raises UrlForbiddenError where that is no regular file."""
        async with self._answering(url):
            found = await self._client.stat(self._path(parts))
        if found.type is not nfs_rs.FileType.FILE:
            kind = found.type.value.replace("_", " ")
            raise UrlForbiddenError(f"source {url}: expected a regular file, got a {kind}; not opened.", hint=_HINT)
        return entity_of(url, file_id=found.fileid, mtime_ns=found.mtime, size=found.size)

    async def open(self, url: SourceUrl, parts: tuple[str, ...]) -> None:
        """Open the file for ``read``."""
        async with self._answering(url):
            self._file = await self._client.open(self._path(parts), "rb")

    async def read(self, url: SourceUrl, target: memoryview, offset: int) -> int:
        """Fill the target from the offset on, and say how far: less than all only at the file's end."""
        if self._file is None:
            raise SourceForgottenError(f"source {url}: the file is not open.")
        async with self._answering(url):
            return await self._file.readinto_at(target, offset)

    async def close_file(self, url: SourceUrl) -> None:
        """Close the open file."""
        if self._file is not None:
            async with self._answering(url):
                await self._file.close()
        self._file = None

    async def close(self) -> None:
        """Close the connection, politely if that is quick; where it is not, the library does the rest by itself."""
        for thing in (self._file, self._client):
            with suppress(TimeoutError, nfs_rs.NfsError):
                async with asyncio.timeout(_CLOSE_S):
                    if thing is not None:
                        await thing.close()

    def _path(self, parts: tuple[str, ...]) -> str:
        return "/".join(parts[len(self.root) :])

    @asynccontextmanager
    async def _answering(self, url: SourceUrl) -> AsyncGenerator[None]:
        try:
            async with asyncio.timeout(self._stall_timeout_s):
                with translated(url):
                    yield
        except TimeoutError as exc:
            raise SourceStalledError(
                f"source {url}: no answer from the NFS server for {self._stall_timeout_s:g} s; the connection was cut."
            ) from exc


class Clients:
    """Makes connections and keeps those that are idle for the next stream."""

    def __init__(self, environment: Environment, identity: Identity) -> None:
        self._environment = environment
        self._identity = identity
        self._idle: dict[Origin, list[Connection]] = {}
        self._is_privileged = True

    async def take(self, url: SourceUrl, parts: tuple[str, ...]) -> Connection:
        """Give a connection on which the path can be reached, for the caller alone; give it back or close it."""
        await self._close_idle(before=time.monotonic() - _IDLE_S)
        fitting = [one for one in self._idle.get(url.origin, []) if parts[: len(one.root)] == one.root]
        if fitting:
            self._idle[url.origin].remove(fitting[-1])
            return fitting[-1]
        return await self.dial(url, parts)

    def give_back(self, url: SourceUrl, connection: Connection) -> None:
        """Keep a connection on which nothing is under way."""
        connection.idle_since = time.monotonic()
        self._idle.setdefault(url.origin, []).append(connection)

    async def close(self) -> None:
        """Close every idle connection."""
        await self._close_idle(before=float("inf"))

    async def _close_idle(self, *, before: float) -> None:
        old = [one for idle in self._idle.values() for one in idle if one.idle_since < before]
        self._idle = {
            origin: kept for origin, idle in self._idle.items() if (kept := [one for one in idle if one not in old])
        }
        for connection in old:
            await connection.close()

    async def dial(self, url: SourceUrl, parts: tuple[str, ...]) -> Connection:
        """Connect to the first of the host's allowed addresses that answers."""
        failed: SourceError | None = None
        for address in await self._allowed_addresses(url):
            try:
                async with asyncio.timeout(self._environment.connect_timeout_s):
                    return await self._mount(url, address, parts)
            except TimeoutError:
                failed = SourceUnreachableError(
                    f"source {url}: no NFS connection to {address} within {self._environment.connect_timeout_s:g} s."
                )
            except SourceUnreachableError as exc:
                failed = exc
        raise failed or SourceUnreachableError(f"source {url}: the host has no address.")

    async def _allowed_addresses(self, url: SourceUrl) -> list[str]:
        host = url.origin.host
        try:
            async with asyncio.timeout(self._environment.connect_timeout_s):
                found = await asyncio.get_running_loop().getaddrinfo(host, url.origin.port, type=socket.SOCK_STREAM)
        except (TimeoutError, OSError) as exc:
            raise SourceUnreachableError(f"source {url}: the host's name cannot be resolved ({exc}).") from exc
        addresses = list(dict.fromkeys(str(address[0]) for *_, address in found))
        allowed = [address for address in addresses if self._environment.allows(address, url.origin)]
        if not allowed:
            raise UrlForbiddenError(
                f"source {url}: its address {', '.join(addresses)} is not allowed by this host's policy; not dialled."
            )
        return allowed

    async def _mount(self, url: SourceUrl, address: str, parts: tuple[str, ...]) -> Connection:
        """Connect with the first version that is safe to use; see the module."""
        server = f"nfs://[{address}]:{url.origin.port}" if ":" in address else f"nfs://{address}:{url.origin.port}"
        refused: list[str] = []
        for version in ("4.0", "4.1"):
            try:
                client = await self._connect(url, f"{server}/", version)
            except SourceError as exc:
                if not _refuses_version(exc.__cause__):
                    raise
                refused.append(f"{version}: {exc.__cause__}")
                continue
            connection = Connection(client, (), stall_timeout_s=self._environment.stall_timeout_s)
            if not client.capabilities.pnfs:
                return connection
            refused.append(f"{version}: it offers pNFS")
            await connection.close()
        return await self._mount_export(url, server, parts, refused=refused)

    async def _mount_export(
        self, url: SourceUrl, server: str, parts: tuple[str, ...], *, refused: list[str]
    ) -> Connection:
        """Connect with version 3, to the innermost export that holds the path."""
        told = "; ".join(refused)
        try:
            with translated(url):
                listed = await nfs_rs.list_exports_async(f"{server}/", **self._version_3())
        except SourceError as exc:
            raise ProtocolError(
                f"source {url}: no version of NFS that can be used with this server ({told}; 3: {exc.__cause__})."
            ) from exc
        exports = [tuple(name for name in one.path.split("/") if name) for one in listed]
        fitting = [export for export in exports if parts[: len(export)] == export]
        if not fitting:
            raise UrlForbiddenError(
                f"source {url}: in none of the server's {len(exports)} exports for version 3 ({told}); refused.",
                hint="Write the path as the server exports it: `showmount -e` lists the exports.",
            )
        root = max(fitting, key=len)
        client = await self._connect(url, f"{server}/{quote('/'.join(root))}", "3")
        return Connection(client, root, stall_timeout_s=self._environment.stall_timeout_s)

    def _version_3(self) -> dict[str, Any]:
        return {
            **self._identity.arguments(),
            "mount_port": self._identity.mount_port,
            "noresvport": not self._is_privileged,
        }

    async def _connect(self, url: SourceUrl, target: str, version: str) -> nfs_rs.AsyncClient:
        """Connect from a port below 1024, which many servers ask for, as long as this process may use one."""
        options = (
            self._version_3()
            if version == "3"
            else {**self._identity.arguments(), "noresvport": not self._is_privileged}
        )
        try:
            with translated(url):
                return await nfs_rs.AsyncClient.connect(target, versions=[version], **options)
        except SourceStatusError as exc:
            cause = exc.__cause__
            is_ours = (
                isinstance(cause, nfs_rs.NfsPermissionError) and cause.errno == errno.EACCES and not cause.code_name
            )
            if not (is_ours and self._is_privileged):
                raise
            self._is_privileged = False
        return await self._connect(url, target, version)


def _refuses_version(error: BaseException | None) -> bool:
    is_mismatch = isinstance(error, nfs_rs.NfsError) and error.code_name == "NFS4ERR_MINOR_VERS_MISMATCH"
    return is_mismatch or isinstance(error, nfs_rs.NfsRpcError)


@contextmanager
def translated(url: SourceUrl) -> Generator[None]:
    """Turn what the library raises into our errors."""
    try:
        yield
    except nfs_rs.NfsError as exc:
        raise _error(url, exc) from exc


def _error(url: SourceUrl, exc: nfs_rs.NfsError) -> SourceError:
    code = (exc.code_name or "").removeprefix("NFS4ERR_").removeprefix("NFS3ERR_")
    text = f"source {url}: the NFS server says: {exc.message.removesuffix('.')}"
    match exc:
        case nfs_rs.NfsNotFoundError() | nfs_rs.NfsPermissionError() | nfs_rs.NfsMountError():
            return SourceStatusError(f"{text}; not asked again.")
        case nfs_rs.NfsTimeoutError() | nfs_rs.NfsConnectionError() | nfs_rs.NfsRpcError():
            return SourceUnreachableError(f"source {url}: {exc.message.removesuffix('.')}.")
        case nfs_rs.NfsStateLostError():
            return SourceForgottenError(f"{text}.")
        case _ if code in _FORGOTTEN:
            return SourceForgottenError(f"{text}.")
        case _ if code in _NOT_REGULAR:
            return UrlForbiddenError(f"{text}; not a regular file, or not at this path; refused.", hint=_HINT)
        case _ if code in _DENIED:
            return SourceStatusError(f"{text}; not asked again.")
        case nfs_rs.NfsEncodingError() | nfs_rs.NfsUnsupportedError():
            return ProtocolError(f"{text}; refused.")
        case _:
            return SourceUnreachableError(f"{text}; it is tried again.")
