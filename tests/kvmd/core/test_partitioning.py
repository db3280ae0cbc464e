"""Identifiers of partitions, from real tables and from bytes of any kind."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kvmd.core.partitioning import HEAD, partition_ids
from tests.support.programs import require_program


def table(path: Path, kind: str, *partitions: tuple[int, int]) -> bytes:
    """Have parted make a table with partitions from and to these MiB, and give its head."""
    with path.open("wb") as file:
        file.truncate(16 << 20)
    words = [word for start, end in partitions for word in ("mkpart", "primary", f"{start}MiB", f"{end}MiB")]
    subprocess.run([require_program("parted"), "-s", path, "mklabel", kind, *words], check=True, capture_output=True)
    return path.read_bytes()[:HEAD]


@pytest.mark.parametrize("kind", ["gpt", "msdos"])
def test_each_partition_has_an_identifier_that_no_other_disks_has(tmp_path: Path, kind: str) -> None:
    one = partition_ids(table(tmp_path / "one", kind, (1, 3), (5, 8)))
    other = partition_ids(table(tmp_path / "other", kind, (1, 3), (5, 8)))
    assert set(one) == set(other) == {1 << 20, 5 << 20}
    assert len({*one.values(), *other.values()}) == 4


def test_a_partition_that_is_made_anew_at_the_same_place_is_another_one(tmp_path: Path) -> None:
    before = partition_ids(table(tmp_path / "disk", "gpt", (1, 3)))
    words = ["-s", str(tmp_path / "disk"), "rm", "1", "mkpart", "primary", "1MiB", "3MiB"]
    subprocess.run([require_program("parted"), *words], check=True, capture_output=True)
    after = partition_ids((tmp_path / "disk").read_bytes()[:HEAD])
    assert set(before) == set(after)
    assert before != after


@example(bytes(512) + b"EFI PART".ljust(72) + b"\xff" * 16)
@given(st.binary(max_size=2048) | st.binary(max_size=2048).map(lambda rest: bytes(512) + b"EFI PART" + rest))
def test_any_bytes_give_something(head: bytes) -> None:
    partition_ids(head)
    partition_ids(bytes(446) + head[:64].ljust(64) + b"\x55\xaa")


def test_what_is_no_table_has_none() -> None:
    assert partition_ids(b"") == partition_ids(bytes(HEAD)) == {}
