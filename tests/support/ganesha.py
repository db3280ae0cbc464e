"""A real NFS server in user space: nfs-ganesha on free loopback ports, exporting one folder."""

from __future__ import annotations

import signal
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

from tests.support.ports import free_port
from tests.support.processes import ChildProcess
from tests.support.programs import require_program, require_root
from tests.support.waiting import eventually

NFS_4 = "Protocols = 4;"
NFS_3 = "Protocols = 3;"


class Ganesha:
    """One ganesha process that exports ``root`` as ``/export`` (version 3: by its real path).

    It remembers nothing of files between two calls: what a test does to ``root`` is seen at once. ``protocols`` is NFS_4 or NFS_3,
    ``minor_versions`` those of 4. Version 3 needs a portmapper at port 111.
    """

    def __init__(
        self, folder: Path, *, protocols: str = NFS_4, minor_versions: str = "0,1", pnfs: bool = False
    ) -> None:
        require_root("alone may open files by handle, as nfs-ganesha does")
        self.root = folder / "root"
        self.root.mkdir(parents=True)
        self.port = free_port()
        self.mount_port = free_port()
        self.export = "/export" if protocols == NFS_4 else str(self.root)
        self._folder = folder
        self._protocols = protocols
        self._minor_versions = minor_versions
        self._pnfs = pnfs
        self._config = folder / "ganesha.conf"
        self._config.write_text(self._core() + self._export(1))
        self._log = folder / "ganesha.log"
        command = [
            require_program("ganesha.nfsd"),
            "-F",
            "-f",
            self._config,
            "-L",
            self._log,
            "-p",
            folder / "pid",
            "-N",
            "EVENT",
        ]
        self.process = ChildProcess(command, log=folder / "output.log", port=self.port)

    def __enter__(self) -> Self:
        self.process.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.__exit__(kind, error, trace)

    def url(self, path: str) -> str:
        """URL of a file below ``root``."""
        return f"nfs://127.0.0.1:{self.port}{self.export}/{quote(path)}"

    async def export_anew(self, *, export_id: int) -> None:
        """Take the export away and give it under another id: every handle is stale from then on."""
        self._config.write_text(self._core())
        await self._reread()
        self._config.write_text(self._core() + self._export(export_id))
        await self._reread()

    async def _reread(self) -> None:
        before = self._rereads()
        self.process.signal(signal.SIGHUP)
        await eventually(lambda: self._rereads() > before, what="ganesha has read its exports again")

    def _rereads(self) -> int:
        return self._log.read_text().count("Reread exports complete")

    def _core(self) -> str:
        return f"""
            NFS_CORE_PARAM {{
                {self._protocols} NFS_Port = {self.port}; MNT_Port = {self.mount_port}; Bind_addr = 127.0.0.1;
                mount_path_pseudo = {str(self._protocols == NFS_4).lower()};
                Enable_UDP = false; Enable_NLM = false; Enable_RQUOTA = false;
            }}
            NFSv4 {{
                Graceless = true; RecoveryBackend = fs; RecoveryRoot = {self._folder}/recovery;
                Minor_Versions = {self._minor_versions}; pnfs_mds = {str(self._pnfs).lower()};
            }}
            EXPORT_DEFAULTS {{ Attr_Expiration_Time = 0; }}
            """

    def _export(self, export_id: int) -> str:
        return f"""
            EXPORT {{
                Export_Id = {export_id}; Path = {self.root}; Pseudo = /export; Access_Type = RO; SecType = sys;
                {self._protocols} Squash = No_Root_Squash; FSAL {{ Name = VFS; }}
            }}
            """
