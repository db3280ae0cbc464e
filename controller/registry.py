"""The registry: every event of this controller, and every retained one it has seen, in SQLite (WAL, synchronous FULL).

Several processes use the file at once; every call is one short transaction. A damaged file is moved aside and a lost one
made anew: what is retained at the broker fills it again. The calls block: see ``controller.archive`` for the event loop.
"""

from __future__ import annotations

import contextlib
import fcntl
import sqlite3
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from controller import log
from controller.errors import RegistryError
from controller.keys.files import give_to_owner_of
from kvmwire.status import Receipt

SCHEMA_VERSION = 1
KEPT_DAYS = 30
_BUSY_TIMEOUT_S = 10.0
_SCHEMA = """
CREATE TABLE event (
  id TEXT PRIMARY KEY, topic TEXT NOT NULL, generation INTEGER, payload BLOB NOT NULL,
  is_retained INTEGER NOT NULL, is_ours INTEGER NOT NULL, is_current INTEGER NOT NULL,
  created REAL NOT NULL, expires REAL
) STRICT;
CREATE INDEX event_by_topic ON event (topic) WHERE is_current = 1;
CREATE TABLE audience (event TEXT NOT NULL, host TEXT NOT NULL, PRIMARY KEY (event, host)) STRICT, WITHOUT ROWID;
CREATE TABLE receipt (
  event TEXT NOT NULL, host TEXT NOT NULL, document TEXT NOT NULL, PRIMARY KEY (event, host)
) STRICT, WITHOUT ROWID;
"""
_log = log.get("registry")


@dataclass(frozen=True, slots=True)
class Stored:
    """An event as it was, or is to be, published. Times are seconds since the epoch.

    ``is_ours``: this controller published it, and asks for receipts. ``is_current``: nothing newer is on its topic.
    """

    id: str
    topic: str
    payload: bytes
    generation: int | None
    is_retained: bool
    is_ours: bool
    created: float
    expires: float | None = None
    is_current: bool = True


class Registry:
    """The file; opened at the first call, and again when somebody deleted or replaced it meanwhile."""

    def __init__(self, state_dir: Path) -> None:
        self.path = state_dir / "registry.sqlite"
        self._db: sqlite3.Connection | None = None
        self._inode = 0
        self.openings = 0

    def close(self) -> None:
        """Close the file; the next call opens it again."""
        if self._db is not None:
            self._db.close()
            self._db = None

    def store(self, event: Stored, audience: Iterable[str]) -> None:
        """Keep an event before it is published. One with an id that is known already changes nothing."""
        with self._transaction() as db:
            _insert(db, event)
            db.executemany("INSERT OR IGNORE INTO audience VALUES (?, ?)", [(event.id, host) for host in audience])

    def adopt(self, events: Iterable[Stored]) -> None:
        """Keep retained events that were seen at the broker, so that they survive it."""
        with self._transaction() as db:
            for event in events:
                _insert(db, event)

    def drop_topics(self, topics: Iterable[str]) -> None:
        """Stop keeping what was on these topics, because somebody cleared them."""
        with self._transaction() as db:
            db.executemany("UPDATE event SET is_current = 0 WHERE topic = ?", [(topic,) for topic in topics])

    def record(self, receipts: Iterable[Receipt]) -> None:
        """Keep receipts of events that are known; the first of a host and event stays, as later ones are duplicates."""
        rows = [(r.event, r.host, r.model_dump_json(exclude_none=True), r.event) for r in receipts]
        with self._transaction() as db:
            db.executemany(
                "INSERT OR IGNORE INTO receipt SELECT ?, ?, ? WHERE EXISTS (SELECT 1 FROM event WHERE id = ?)", rows
            )

    def replace_payloads(self, payloads: Mapping[str, bytes]) -> None:
        """Keep other bytes for events, by id, whose content has stayed the same: they were signed anew."""
        with self._transaction() as db:
            db.executemany("UPDATE event SET payload = ? WHERE id = ?", [(p, i) for i, p in payloads.items()])

    def topics_under(self, start: str) -> set[str]:
        """Give the topics that begin so and that anything was ever published on, as far as it is remembered."""
        with self._transaction() as db:
            rows = db.execute("SELECT DISTINCT topic FROM event WHERE substr(topic, 1, ?) = ?", (len(start), start))
            return {topic for (topic,) in rows}

    def retained(self) -> list[Stored]:
        """Give what has to be retained at the broker: the newest event of each topic."""
        return self._events("is_current = 1 AND is_retained = 1")

    def awaited(self, now: float) -> list[Stored]:
        """Events of ours whose receipts matter: the newest of each topic, and commands that have not expired."""
        return self._events("is_ours = 1 AND is_current = 1 AND (expires IS NULL OR expires > ?)", now)

    def history(self, *, limit: int) -> list[Stored]:
        """Give what this controller published, the newest first."""
        return self._events("is_ours = 1", limit=limit)

    def receipted(self) -> dict[str, set[str]]:
        """Give the hosts that have answered, by current event of ours."""
        found = dict[str, set[str]]()
        sql = "SELECT event, host FROM receipt JOIN event ON event.id = event WHERE is_ours = 1 AND is_current = 1"
        with self._transaction() as db:
            for event, host in db.execute(sql):
                found.setdefault(event, set()).add(host)
        return found

    def receipts(self, event_id: str) -> list[Receipt]:
        """Answers to one event, by host."""
        with self._transaction() as db:
            rows = db.execute("SELECT document FROM receipt WHERE event = ? ORDER BY host", (event_id,)).fetchall()
        return [Receipt.model_validate_json(document) for (document,) in rows]

    def audience(self, event_id: str) -> set[str]:
        """Hosts that the event was meant for when it was published."""
        with self._transaction() as db:
            return {host for (host,) in db.execute("SELECT host FROM audience WHERE event = ?", (event_id,))}

    def generation(self, topics: Iterable[str]) -> int:
        """Give the highest generation that was published on one of these topics; 0 for none."""
        with self._transaction() as db:
            known = [db.execute("SELECT max(generation) FROM event WHERE topic = ?", (t,)).fetchone() for t in topics]
        return max([0, *(generation or 0 for (generation,) in known)])

    def version(self) -> tuple[int, int]:
        """Give what changes when the file was opened anew, or another process wrote to it."""
        with self._transaction() as db:
            return self.openings, db.execute("PRAGMA data_version").fetchone()[0]

    def prune(self, now: float) -> None:
        """Forget what is neither current nor of the last 30 days."""
        before = now - KEPT_DAYS * 86400
        with self._transaction() as db:
            db.execute("DELETE FROM event WHERE created < ? AND (is_current = 0 OR is_retained = 0)", (before,))
            db.execute("DELETE FROM audience WHERE event NOT IN (SELECT id FROM event)")
            db.execute("DELETE FROM receipt WHERE event NOT IN (SELECT id FROM event)")

    def _events(self, where: str, *values: float, limit: int = -1) -> list[Stored]:
        columns = "id, topic, payload, generation, is_retained, is_ours, created, expires, is_current"
        sql = f"SELECT {columns} FROM event WHERE {where} ORDER BY created DESC, rowid DESC LIMIT ?"  # noqa: S608 - ours
        with self._transaction() as db:
            rows = db.execute(sql, (*values, limit)).fetchall()
        return [_stored(row) for row in rows]

    @contextlib.contextmanager
    def _transaction(self) -> Generator[sqlite3.Connection, None, None]:
        try:
            db = self._opened()
            with db:
                db.execute("BEGIN IMMEDIATE")
                yield db
        except sqlite3.OperationalError as exc:
            raise self._unusable(str(exc)) from exc
        except sqlite3.DatabaseError as exc:
            self.close()
            raise self._unusable(f"{exc}; it is checked, and moved aside if damaged, when it is opened next") from exc

    def _opened(self) -> sqlite3.Connection:
        if self._db is not None and self._inode == _inode(self.path):
            return self._db
        self.close()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with (self.path.parent / "registry.lock").open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                self._db = self._open_or_replace()
                for file in (Path(lock.name), self.path):  # SQLite does so with its own files
                    give_to_owner_of(self.path.parent, file)
        except OSError as exc:
            raise self._unusable(exc.strerror or str(exc)) from exc
        self._inode = _inode(self.path)
        self.openings += 1
        return self._db

    def _open_or_replace(self) -> sqlite3.Connection:
        """Open, and put a damaged file aside; the caller holds the lock."""
        try:
            return self._open()
        except sqlite3.OperationalError:
            raise  # busy, or no right to open it: nothing that a new file mends
        except sqlite3.DatabaseError as exc:
            aside = _free_name(self.path)
            for suffix in ("", "-wal", "-shm"):
                with contextlib.suppress(FileNotFoundError):
                    self.path.with_name(self.path.name + suffix).rename(aside.with_name(aside.name + suffix))
            _log.warning(
                "the registry was damaged; a new one is filled from the broker", error=str(exc), kept=str(aside)
            )
            return self._open()

    def _open(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        try:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
            self._check_and_migrate(db)
        except BaseException:
            db.close()
            raise
        return db

    def _check_and_migrate(self, db: sqlite3.Connection) -> None:
        problem = db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if problem != "ok":
            raise sqlite3.DatabaseError(problem)
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version > SCHEMA_VERSION:
            raise RegistryError(
                f"registry {self.path}: it was written by a later version (schema {version}).",
                hint="Update kvmd on this machine, or use another state_dir.",
            )
        if version == 0:
            db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")

    def _unusable(self, why: str) -> RegistryError:
        return RegistryError(
            f"registry {self.path}: {why}.",
            hint="Give this user a writable state_dir with free space, in kvmctl.toml or KVMCTL_STATE_DIR.",
        )


def _insert(db: sqlite3.Connection, event: Stored) -> None:
    if event.is_retained:
        if _is_outdated(db, event):
            return
        db.execute("UPDATE event SET is_current = 0 WHERE topic = ? AND id <> ?", (event.topic, event.id))
    db.execute(
        "INSERT INTO event VALUES (?, ?, ?, ?, ?, ?, 1, ?, ?) ON CONFLICT (id) DO UPDATE SET is_current = 1",
        (
            event.id,
            event.topic,
            event.generation,
            event.payload,
            event.is_retained,
            event.is_ours,
            event.created,
            event.expires,
        ),
    )


def _is_outdated(db: sqlite3.Connection, event: Stored) -> bool:
    """Whether a higher generation is known on its topic; an event without one is newer than all before."""
    row = db.execute("SELECT generation FROM event WHERE topic = ? AND is_current = 1", (event.topic,)).fetchone()
    return row is not None and row[0] is not None and event.generation is not None and row[0] > event.generation


def _stored(row: tuple[Any, ...]) -> Stored:
    return Stored(
        id=row[0],
        topic=row[1],
        payload=row[2],
        generation=row[3],
        is_retained=bool(row[4]),
        is_ours=bool(row[5]),
        created=row[6],
        expires=row[7],
        is_current=bool(row[8]),
    )


def _inode(path: Path) -> int:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return 0


def _free_name(path: Path) -> Path:
    return next(name for n in range(1, 1_000_000) if not (name := path.with_name(f"{path.name}.damaged-{n}")).exists())
