"""The registry: several processes, damage, and what counts as current."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from controller.errors import RegistryError
from controller.registry import Registry, Stored
from kvmwire.status import Outcome, Receipt
from tests.controller.test_fleet import NOW

WRITER = """
import sys
from pathlib import Path
from controller.registry import Registry, Stored
registry = Registry(Path(sys.argv[1]))
for n in range(50):
    name = f"{sys.argv[2]}-{n}"
    registry.store(Stored(name, "topic/" + name, b"", n, True, True, 0.0), ["kvm01"])
registry.close()
"""


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    with contextlib.closing(Registry(tmp_path)) as opened:
        yield opened


def stored(
    name: str, *, generation: int | None = 1, topic: str = "a", is_ours: bool = True, is_retained: bool = True
) -> Stored:
    return Stored(name, topic, name.encode(), generation, is_retained=is_retained, is_ours=is_ours, created=100.0)


def receipt(event: str, host: str, outcome: Outcome = Outcome.ACCEPTED) -> Receipt:
    return Receipt(event=event, host=host, outcome=outcome, topic="a", time=NOW)


def test_what_is_stored_can_be_read_by_the_next_process(registry: Registry, tmp_path: Path) -> None:
    registry.store(stored("e1"), ["kvm01", "kvm02"])
    registry.record([receipt("e1", "kvm01")])
    with contextlib.closing(Registry(tmp_path)) as other:
        assert [e.id for e in other.history(limit=10)] == ["e1"]
        assert other.audience("e1") == {"kvm01", "kvm02"}
        assert other.receipted() == {"e1": {"kvm01"}}


def test_the_newest_of_a_topic_is_current(registry: Registry) -> None:
    registry.store(stored("new", generation=2), [])
    registry.adopt([stored("old", generation=1, is_ours=False), stored("elsewhere", topic="b", is_ours=False)])
    assert {e.id for e in registry.retained()} == {"new", "elsewhere"}
    assert {e.id for e in registry.awaited(0.0)} == {"new"}
    registry.adopt([stored("bare", generation=None, is_ours=False)])
    assert {e.id for e in registry.retained()} == {"bare", "elsewhere"}
    assert registry.generation(["a", "b"]) == 2


def test_commands_do_not_supersede_each_other_and_expire(registry: Registry) -> None:
    for name in ("c1", "c2"):
        command = Stored(name, "command", b"", None, is_retained=False, is_ours=True, created=0.0, expires=50.0)
        registry.store(command, [])
    assert {e.id for e in registry.awaited(49.0)} == {"c1", "c2"}
    assert registry.awaited(50.0) == []
    assert registry.retained() == []


def test_only_the_first_receipt_of_a_known_event_stays(registry: Registry) -> None:
    registry.store(stored("e1"), [])
    registry.record([receipt("e1", "kvm01"), receipt("e1", "kvm01", Outcome.DUPLICATE), receipt("unknown", "kvm01")])
    assert [r.outcome for r in registry.receipts("e1")] == [Outcome.ACCEPTED]
    assert registry.receipts("unknown") == []


def test_a_cleared_topic_is_kept_no_longer(registry: Registry) -> None:
    registry.store(stored("e1"), [])
    registry.drop_topics(["a"])
    assert registry.retained() == []
    assert [e.is_current for e in registry.history(limit=1)] == [False]


def test_old_history_is_pruned_but_never_what_is_current(registry: Registry) -> None:
    registry.store(stored("old", generation=1), ["kvm01"])
    registry.record([receipt("old", "kvm01")])
    registry.store(stored("new", generation=2), [])
    registry.prune(now=100.0 + 31 * 86400)
    assert [e.id for e in registry.history(limit=10)] == ["new"]
    assert (registry.audience("old"), registry.receipts("old")) == (set(), [])


def test_several_processes_write_at_once(registry: Registry, tmp_path: Path) -> None:
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, tmp_path, name], stderr=subprocess.PIPE) for name in ("x", "y")
    ]
    ends = [writer.communicate(timeout=15) for writer in writers]
    assert [(writer.returncode, err) for writer, (_, err) in zip(writers, ends, strict=True)] == [(0, b"")] * 2
    assert len(registry.history(limit=1000)) == 100


def test_the_version_tells_of_other_writers(registry: Registry, tmp_path: Path) -> None:
    before = registry.version()
    with contextlib.closing(Registry(tmp_path)) as other:
        other.store(stored("e1"), [])
    assert registry.version() != before


def test_a_deleted_file_is_made_anew(registry: Registry) -> None:
    registry.store(stored("e1"), [])
    before = registry.version()
    for file in registry.path.parent.glob("registry.sqlite*"):
        file.unlink()
    assert registry.history(limit=1) == []
    assert registry.version()[0] == before[0] + 1


@pytest.mark.parametrize("damage", [b"rubbish" * 1000, b"SQLite format 3\0" + b"\xff" * 8176])
def test_a_damaged_file_is_put_aside(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "registry.sqlite").write_bytes(damage)
    with contextlib.closing(Registry(tmp_path)) as registry:
        registry.store(stored("e1"), [])
        assert [e.id for e in registry.history(limit=1)] == ["e1"]
    assert (tmp_path / "registry.sqlite.damaged-1").read_bytes() == damage


def test_a_file_of_a_later_version_is_left_alone(registry: Registry, tmp_path: Path) -> None:
    registry.store(stored("e1"), [])
    registry.close()
    with contextlib.closing(sqlite3.connect(registry.path)) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(RegistryError, match="later version"):
        registry.history(limit=1)
    assert not list(tmp_path.glob("*.damaged-*"))


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RegistryError, match="file/state") as caught:
        Registry(tmp_path / "file/state").history(limit=1)
    assert "KVMCTL_STATE_DIR" in caught.value.hint


def test_bytes_are_replaced_where_the_event_is_known_and_nothing_else_changes(registry: Registry) -> None:
    registry.store(stored("e1"), ["kvm01"])
    registry.record([receipt("e1", "kvm01")])

    registry.replace_payloads({"e1": b"signed anew", "e2": b"nobody knows it"})

    assert [(e.id, e.payload) for e in registry.retained()] == [("e1", b"signed anew")]
    assert registry.receipted() == {"e1": {"kvm01"}}


def test_topics_under_a_start_are_found_literally(registry: Registry) -> None:
    for name, topic in (("e1", "x/kvm01/a"), ("e2", "x/kvm01/b"), ("e3", "x/kvm0_/c"), ("e4", "x/kvm01b/d")):
        registry.store(stored(name, topic=topic), [])

    assert registry.topics_under("x/kvm01/") == {"x/kvm01/a", "x/kvm01/b"}
    assert registry.topics_under("x/kvm0_/") == {"x/kvm0_/c"}
