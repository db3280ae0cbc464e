"""What the system calls of a commit are, in which order, and what their errors lead to."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.kvmd.commands import kvmd
from tests.support.contents import GeneratedContent, hexdigest
from tests.support.hostile import HostileServer
from tests.support.programs import require_program

DISK = GeneratedContent(3 << 20, seed=1)
CALLS = "pwrite64,pwritev,pwritev2,fdatasync,fsync,renameat,renameat2,fallocate,fchmod,unlinkat"


def strace(log: Path, *options: str) -> list[str | Path]:
    """Give the words that run a command under strace."""
    return [require_program("strace"), "-f", "-qq", "-y", "--seccomp-bpf", "-o", log, *options]


def test_a_volume_gets_its_name_only_after_it_is_synced_and_verified(
    tmp_path: Path, hostile_in_thread: HostileServer
) -> None:
    hostile_in_thread.add("disk", DISK)
    log, dest = tmp_path / "strace.log", tmp_path / "pool"
    dest.mkdir()
    url, checksum = hostile_in_thread.url("disk"), "{SHA-256}" + hexdigest(DISK)
    ran = kvmd("fetch", url, dest, "--checksum", checksum, under=strace(log, f"-etrace={CALLS}"))
    assert ran.code == 0, ran.stderr
    calls = [line.split(" ", 1)[1].strip() for line in log.read_text().splitlines()]
    allocated = _first(calls, r"fallocate\(.*\.part")
    writes = [i for i, call in enumerate(calls) if re.match(r"pwrite(v|v2|64)\(.*\.part", call)]
    synced = [i for i, call in enumerate(calls) if re.match(r"fdatasync\(.*\.part", call)]
    durable = _first(calls, r"fsync\(\d+<[^>]*\.part>")
    renamed = _first(calls, r"renameat2\(.*\.part.*\"disk\", RENAME_NOREPLACE")
    folder = _first(calls, rf"fsync\(\d+<{re.escape(str(dest))}>")
    forgotten = _first(calls, r"unlinkat\(.*\.json\", 0\)\s+= 0")
    assert allocated < writes[0]
    assert writes[-1] < synced[-1] < durable < renamed < folder < forgotten


@pytest.mark.parametrize(
    ("call", "error", "code"),
    [
        ("/^pwrite", "EIO", "IO"),
        ("/^pwrite", "ENOSPC", "NO_SPACE"),
        ("/^pwrite", "EDQUOT", "NO_SPACE"),
        ("/^pwrite", "EROFS", "POOL_READONLY"),
        ("fdatasync", "EIO", "IO"),
        ("fsync", "EIO", "IO"),
        ("renameat2", "EIO", "IO"),
        ("renameat2", "EEXIST", "EXISTS"),
        ("fallocate", "ENOSPC", "NO_SPACE"),
        ("fallocate", "EOPNOTSUPP", None),
        ("renameat2", "EINVAL", None),
    ],
)
def test_an_error_of_the_disk_leaves_nothing(
    tmp_path: Path, hostile_in_thread: HostileServer, call: str, error: str, code: str | None
) -> None:
    hostile_in_thread.add("disk", DISK)
    dest = tmp_path / "pool"
    dest.mkdir()
    under = strace(tmp_path / "strace.log", f"-etrace={call}", f"-einject={call}:error={error}")
    checksum = "{SHA-256}" + hexdigest(DISK)
    ran = kvmd("fetch", hostile_in_thread.url("disk"), dest, "--checksum", checksum, "--json", under=under)
    left = sorted(path.name for path in (dest / ".kvmd").iterdir())
    assert left == []
    if code is None:
        assert ran.result["state"] == "ready"
        assert (dest / "disk").stat().st_size == DISK.size
        return
    assert ran.result["code"] == code
    assert ran.code == 1
    assert str(dest) in ran.result["message"]
    assert not (dest / "disk").exists()


def _first(calls: list[str], pattern: str) -> int:
    found = [i for i, call in enumerate(calls) if re.match(pattern, call)]
    assert found, f"no {pattern} in {calls}"
    return found[0]
