"""``kvmd fetch --checksum-of``: what the checksum is of, where the file is compressed."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from tests.kvmd.commands import kvmd
from tests.support import images
from tests.support.hostile import HostileServer, hexdigest

IMAGE = images.raw(256 << 10)
PACKED = gzip.compress(IMAGE, mtime=0)
OF_CONTENT, OF_FILE = (f"{{SHA-256}}{hexdigest(one)}" for one in (IMAGE, PACKED))


@pytest.mark.parametrize(
    ("served", "checksum", "of", "code"),
    [
        (PACKED, OF_CONTENT, "content", None),
        (PACKED, OF_FILE, "content", "CHECKSUM_MISMATCH"),
        (PACKED, OF_FILE, "served", None),
        (PACKED, OF_CONTENT, "served", "CHECKSUM_MISMATCH"),
        (PACKED, OF_FILE, None, None),
        (IMAGE, OF_CONTENT, "content", None),
    ],
)
def test_the_checksum_is_of_what_was_named(
    tmp_path: Path, hostile_in_thread: HostileServer, served: bytes, checksum: str, of: str | None, code: str | None
) -> None:
    hostile_in_thread.add("disk.img", served)
    options = [] if of is None else ["--checksum-of", of]
    command = ["fetch", hostile_in_thread.url("disk.img"), tmp_path, "--checksum", checksum, *options, "--json"]
    for _ in "fetched", "called again":
        ran = kvmd(*command)
        assert (ran.code, ran.result["code"]) == (0 if code is None else 3, code)
        if code is None:
            assert ran.result["checksum"] == OF_CONTENT
            assert (tmp_path / "disk.img").read_bytes() == IMAGE


def test_any_other_word_is_refused(tmp_path: Path) -> None:
    ran = kvmd("fetch", "http://127.0.0.1/disk", tmp_path, "--checksum", OF_FILE, "--checksum-of", "both")
    assert ran.code == 2
    assert "--checksum-of" in ran.stderr
