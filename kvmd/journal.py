"""The host's journal: SQLite in WAL mode, every transaction synced before it counts.

One table a kind of record, each row a JSON document that the pure core's types define. The daemon keeps the same records in memory
and changes them only together with the journal.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from kvmd.core.desired import (
    CredentialRecord,
    Desired,
    HostRecord,
    MachineRecord,
    MachineWish,
    ProbeRecord,
    Recorded,
    Replica,
    TemplateRecord,
)
from kvmd.errors import StoreIoError
from kvmd.log import get_logger
from kvmwire.status import Outcome, Receipt

log = get_logger(__name__)

FILE = "journal.db"
KEPT_RECEIPTS = 5000
"""Receipts kept to recognise repeated events by their id, and as many refusals; older ones are recognised by generation and content."""
_VERSION = 3
_SCHEMA = """
CREATE TABLE receipt (event TEXT PRIMARY KEY, sequence INTEGER NOT NULL, unsent INTEGER NOT NULL, document TEXT NOT NULL) STRICT;
CREATE INDEX receipt_sequence ON receipt (sequence);
CREATE TABLE template (name TEXT PRIMARY KEY, document TEXT NOT NULL) STRICT;
CREATE TABLE desired (pool TEXT NOT NULL, template TEXT NOT NULL, document TEXT NOT NULL, PRIMARY KEY (pool, template)) STRICT;
CREATE TABLE replica (pool TEXT NOT NULL, template TEXT NOT NULL, document TEXT NOT NULL, PRIMARY KEY (pool, template)) STRICT;
CREATE TABLE probe (template TEXT PRIMARY KEY, document TEXT NOT NULL) STRICT;
"""
_SINCE_2 = """
CREATE TABLE credential (name TEXT PRIMARY KEY, document TEXT NOT NULL) STRICT;
CREATE TABLE wished_machine (name TEXT PRIMARY KEY, document TEXT NOT NULL) STRICT;
CREATE TABLE machine (name TEXT PRIMARY KEY, document TEXT NOT NULL) STRICT;
"""
"""What came with version 2."""
_TO_3 = """
UPDATE replica SET document = json_set(document, '$.status.last_used', strftime('%Y-%m-%dT%H:%M:%SZ', 'now'));
"""
"""Since version 3 it is known when a replica was last used; one of before counts as used just now."""
_STEPS = {1: _SINCE_2 + _TO_3, 2: _TO_3}
"""What takes a journal of an older version over."""
T = TypeVar("T")
_RECEIPT = TypeAdapter(Receipt)
_TEMPLATE = TypeAdapter(TemplateRecord)
_DESIRED = TypeAdapter(Desired)
_REPLICA = TypeAdapter(Replica)
_PROBE = TypeAdapter(ProbeRecord)
_CREDENTIAL = TypeAdapter(CredentialRecord)
_WISHED_MACHINE = TypeAdapter(MachineWish)
_MACHINE = TypeAdapter(MachineRecord)


def read_record(folder: Path) -> HostRecord:
    """Read what the journal holds, and change nothing: also while the daemon runs. Raises StoreIoError. Blocking.

    Where there is no journal nothing is known. One that was not closed is read with what its log holds.
    """
    path = folder / FILE
    if not path.exists():
        return HostRecord()
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=5)) as database:
            (version,) = database.execute("PRAGMA user_version").fetchone()
            if version not in {_VERSION, *_STEPS}:
                raise sqlite3.DatabaseError(f"version {version}, expected {_VERSION}")
            if version in _STEPS:
                return _taken_over(database, version)
            database.execute("BEGIN")  # all of it as of one moment
            return _load(database)
    except (sqlite3.Error, ValidationError) as exc:
        raise _unusable(path, exc) from exc


def _taken_over(database: sqlite3.Connection, version: int) -> HostRecord:
    """Give what a journal of an older version will hold when the daemon has taken it over."""
    with closing(sqlite3.connect(":memory:")) as copy:
        database.backup(copy)
        copy.executescript(_STEPS[version])
        return _load(copy)


class SqliteJournal:
    """Implements the port ``Journal``. One thread talks to SQLite."""

    def __init__(self, database: sqlite3.Connection, executor: ThreadPoolExecutor) -> None:
        self._database = database
        self._executor = executor

    @classmethod
    async def open(cls, folder: Path) -> SqliteJournal:
        """Open or make the journal. A damaged one is moved aside: retained events and the pools rebuild it. Raises StoreIoError."""
        executor = ThreadPoolExecutor(1, thread_name_prefix="kvmd-journal")
        try:
            database = await asyncio.get_running_loop().run_in_executor(executor, _open, folder / FILE)
        except BaseException:
            executor.shutdown(wait=False)
            raise
        return cls(database, executor)

    async def close(self) -> None:
        """Close the database and end its thread."""
        await self._perform(self._database.close)
        self._executor.shutdown()

    async def record(self, event: Recorded) -> None:
        """See the port."""
        await self._perform(self._record, event)

    async def load(self) -> HostRecord:
        """See the port."""
        return await self._perform(_load, self._database)

    async def save_replica(self, replica: Replica) -> None:
        """See the port."""
        await self._perform(self._execute, _PUT["replica"], (*replica.key, _text(_REPLICA, replica)))

    async def save_probe(self, probe: ProbeRecord) -> None:
        """See the port."""
        await self._perform(self._execute, _PUT["probe"], (probe.status.template, _text(_PROBE, probe)))

    async def save_machine(self, machine: MachineRecord) -> None:
        """See the port."""
        await self._perform(self._execute, _PUT["machine"], (machine.name, _text(_MACHINE, machine)))

    async def forget_machine(self, name: str) -> None:
        """See the port."""
        await self._perform(self._execute, "DELETE FROM machine WHERE name = ?", (name,))

    async def receipt_sent(self, event_id: str) -> None:
        """See the port."""
        await self._perform(self._execute, "UPDATE receipt SET unsent = 0 WHERE event = ?", (event_id,))

    async def _perform(self, work: Callable[..., T], *arguments: object) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, work, *arguments)
        except sqlite3.Error as exc:
            raise StoreIoError(
                f"the journal could not be written or read: {exc}; nothing of it counts.",
                hint="Check the disk that holds state_dir, and its free space.",
            ) from exc

    def _execute(self, statement: str, values: tuple[object, ...]) -> None:
        with self._database:
            self._database.execute(statement, values)

    def _record(self, event: Recorded) -> None:
        receipt = event.receipt
        with self._database as database:
            database.execute(_PUT_RECEIPT, (receipt.event, _text(_RECEIPT, receipt)))
            for template in event.templates:
                database.execute(_PUT["template"], (template.data.template, _text(_TEMPLATE, template)))
                if not template.is_present:
                    database.execute("DELETE FROM probe WHERE template = ?", (template.data.template,))
            for desired in event.desired:
                database.execute(_PUT["desired"], (*desired.key, _text(_DESIRED, desired)))
            for credential in event.credentials:
                database.execute(_PUT["credential"], (credential.name, _text(_CREDENTIAL, credential)))
            for wish in event.machines:
                database.execute(_PUT["wished_machine"], (wish.machine.name, _text(_WISHED_MACHINE, wish)))
            database.execute(_PRUNE, (receipt.outcome is Outcome.REFUSED, KEPT_RECEIPTS))


_PUT_RECEIPT = """INSERT OR REPLACE INTO receipt (event, sequence, unsent, document)
VALUES (?1, (SELECT coalesce(max(sequence), 0) + 1 FROM receipt), 1, ?2)"""
_IS_REFUSAL = "json_extract(document, '$.outcome') = 'refused'"
_INDEX = f"CREATE INDEX IF NOT EXISTS receipt_by_kind ON receipt (({_IS_REFUSAL}), sequence)"
_OF_KIND = f"FROM receipt WHERE unsent = 0 AND ({_IS_REFUSAL}) = ?1"
_PRUNE = f"DELETE {_OF_KIND} AND sequence <= (SELECT sequence {_OF_KIND} ORDER BY sequence DESC LIMIT 1 OFFSET ?2)"
_PUT = {
    "template": "INSERT OR REPLACE INTO template (name, document) VALUES (?, ?)",
    "desired": "INSERT OR REPLACE INTO desired (pool, template, document) VALUES (?, ?, ?)",
    "replica": "INSERT OR REPLACE INTO replica (pool, template, document) VALUES (?, ?, ?)",
    "probe": "INSERT OR REPLACE INTO probe (template, document) VALUES (?, ?)",
    "credential": "INSERT OR REPLACE INTO credential (name, document) VALUES (?, ?)",
    "wished_machine": "INSERT OR REPLACE INTO wished_machine (name, document) VALUES (?, ?)",
    "machine": "INSERT OR REPLACE INTO machine (name, document) VALUES (?, ?)",
}


def _load(database: sqlite3.Connection) -> HostRecord:
    record = HostRecord()
    for unsent, document in database.execute("SELECT unsent, document FROM receipt ORDER BY sequence"):
        receipt = _RECEIPT.validate_json(document)
        record.receipts[receipt.event] = receipt
        if unsent:
            record.unsent.add(receipt.event)
    record.templates = {one.data.template: one for one in _documents(database, "template", _TEMPLATE)}
    record.desired = {one.key: one for one in _documents(database, "desired", _DESIRED)}
    record.replicas = {one.key: one for one in _documents(database, "replica", _REPLICA)}
    record.probes = {one.status.template: one for one in _documents(database, "probe", _PROBE)}
    record.credentials = {one.name: one for one in _documents(database, "credential", _CREDENTIAL)}
    record.wished_machines = {one.machine.name: one for one in _documents(database, "wished_machine", _WISHED_MACHINE)}
    record.machines = {one.name: one for one in _documents(database, "machine", _MACHINE)}
    return record


def _documents(database: sqlite3.Connection, table: str, adapter: TypeAdapter[T]) -> list[T]:
    rows = database.execute(f"SELECT document FROM {table}")  # noqa: S608 - one of our own names
    return [adapter.validate_json(document) for (document,) in rows]


def _text(adapter: TypeAdapter[T], value: T) -> str:
    return adapter.dump_json(value, exclude_none=True).decode()


def _open(path: Path) -> sqlite3.Connection:
    try:
        return _open_sound(path)
    except (sqlite3.DatabaseError, ValidationError) as exc:
        if isinstance(exc, sqlite3.OperationalError):
            raise _unusable(path, exc) from exc
        aside = _move_aside(path)
        log.error("journal damaged: moved aside, the state is rebuilt", journal=path, aside=aside, exc=exc)
        return _open_sound(path)
    except OSError as exc:
        raise _unusable(path, exc) from exc


def _open_sound(path: Path) -> sqlite3.Connection:
    """Open the database. Raises sqlite3.DatabaseError or ValidationError where it is damaged or of another version."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.touch(mode=0o600)  # before SQLite makes it: the files it puts beside get the same mode
    database = sqlite3.connect(path, check_same_thread=False, timeout=5)
    try:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        (version,) = database.execute("PRAGMA user_version").fetchone()
        (tables,) = database.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if version == 0 and tables == 0:
            database.executescript(f"BEGIN; {_SCHEMA} {_SINCE_2} PRAGMA user_version = {_VERSION}; COMMIT;")
        elif version in _STEPS:
            database.executescript(f"BEGIN; {_STEPS[version]} PRAGMA user_version = {_VERSION}; COMMIT;")
        elif version != _VERSION:
            raise sqlite3.DatabaseError(f"version {version}, expected {_VERSION}")
        (answer,) = database.execute("PRAGMA quick_check(1)").fetchone()
        if answer != "ok":
            raise sqlite3.DatabaseError(answer)
        _load(database)
        database.execute(_INDEX)
    except BaseException:
        database.close()
        raise
    path.chmod(0o600)
    return database


def _move_aside(path: Path) -> Path:
    number = 1
    while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    for suffix in ("", "-wal", "-shm"):
        part = path.with_name(path.name + suffix)
        if part.exists():
            part.rename(aside.with_name(aside.name + suffix))
    return aside


def _unusable(path: Path, exc: Exception) -> StoreIoError:
    return StoreIoError(
        f"the journal {path} cannot be opened: {exc}.",
        hint="Check that state_dir exists and that the daemon may write there.",
    )
