"""``kvmd fetch`` and ``kvmd probe`` of a Metalink, and a checksum that is the URL of a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.kvmd.cli.test_fetch import run
from tests.support import images
from tests.support.hostile import HostileServer, hexdigest
from tests.support.metalinks import MetalinkFile, metalink4

IMAGE = images.qcow2()
SHA_256 = hexdigest(IMAGE)


@pytest.fixture
def origin(hostile_in_thread: HostileServer, monkeypatch: pytest.MonkeyPatch) -> HostileServer:
    """Serve an image, its copy, and a Metalink of both and a dead mirror; the terminal is narrow."""
    monkeypatch.setenv("COLUMNS", "80")
    server = hostile_in_thread
    for name in ("disk.qcow2", "copy.qcow2"):
        server.add(name, IMAGE)
    urls = [server.url("disk.qcow2"), server.url("gone.qcow2"), server.url("copy.qcow2")]
    server.add("disk.qcow2.meta4", metalink4(MetalinkFile(IMAGE, urls, name="disk.qcow2")))
    return server


def test_a_metalink_is_fetched_and_its_checksum_told(
    origin: HostileServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = run(capsys, "fetch", origin.url("disk.qcow2.meta4"), tmp_path / "x.img", "--json")
    assert (ran.code, ran.result["state"]) == (0, "ready")
    assert (tmp_path / "x.img").read_bytes() == IMAGE
    (told,) = ran.result["found_checksums"]
    assert (told["checksum"], told["signed"]) == (f"{{SHA-256}}{SHA_256}", False)
    names = {source["url"].rpartition("/")[2]: source.get("code") for source in ran.result["sources"]}
    assert names == {"disk.qcow2": None, "gone.qcow2": "SOURCE_STATUS", "copy.qcow2": None}


def test_mirrors_elsewhere_are_under_the_policy_although_the_metalinks_url_was_typed(
    origin: HostileServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    origin.add("x.meta4", metalink4(MetalinkFile(IMAGE, ["http://127.0.0.2:9/disk.qcow2"])))
    ran = run(capsys, "fetch", origin.url("x.meta4"), tmp_path / "x.img", "--json")
    assert (ran.code, ran.result["code"]) == (5, "URL_FORBIDDEN")


def test_probe_shows_the_metalink_and_each_mirror(origin: HostileServer, capsys: pytest.CaptureFixture[str]) -> None:
    ran = run(capsys, "probe", origin.url("disk.qcow2.meta4"), "--json")
    assert ran.code == 0
    rows = [json.loads(line) for line in ran.stdout.splitlines()]
    assert [(row["url"].rpartition("/")[2], row.get("format"), row.get("code")) for row in rows] == [
        ("disk.qcow2.meta4", "metalink", None),
        ("disk.qcow2", "qcow2", None),
        ("gone.qcow2", None, "SOURCE_STATUS"),
        ("copy.qcow2", "qcow2", None),
    ]
    shown = run(capsys, "probe", origin.url("disk.qcow2.meta4"))
    assert shown.code == 0
    assert all(len(line) <= 80 for line in shown.stdout.splitlines() if not line.startswith("SOURCE_STATUS"))
    assert "metalink" in shown.stdout


def test_probe_of_a_metalink_without_a_mirror_that_works_is_bad(
    origin: HostileServer, capsys: pytest.CaptureFixture[str]
) -> None:
    origin.add("x.meta4", metalink4(MetalinkFile(IMAGE, [origin.url("gone.qcow2")])))
    ran = run(capsys, "probe", origin.url("x.meta4"), "--json")
    assert ran.code != 0
    rows = [json.loads(line) for line in ran.stdout.splitlines()]
    assert [row["code"] for row in rows] == ["METALINK_INVALID", "SOURCE_STATUS"]


def test_probe_of_what_is_no_metalink_says_so(origin: HostileServer, capsys: pytest.CaptureFixture[str]) -> None:
    origin.add("x.meta4", b"<html></html>")
    ran = run(capsys, "probe", origin.url("x.meta4"))
    assert ran.code == 1
    assert "METALINK_INVALID" in ran.stdout


@pytest.mark.parametrize(
    ("line", "exit_code", "code"),
    [
        (f"{SHA_256}  disk.qcow2", 0, None),
        (f"{'0' * 64}  disk.qcow2", 3, "CHECKSUM_MISMATCH"),
        (f"{SHA_256}  other.qcow2", 2, "CHECKSUM_FORMAT"),
    ],
)
def test_a_checksum_may_be_the_url_of_a_file(
    origin: HostileServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    line: str,
    exit_code: int,
    code: str | None,
) -> None:
    origin.add("sums/SHA256SUMS", f"{line}\n{'1' * 64}  a\n".encode())
    options = ("--checksum", origin.url("sums/SHA256SUMS"), "--json")
    ran = run(capsys, "fetch", origin.url("disk.qcow2"), tmp_path / "x.img", *options)
    assert (ran.code, ran.result["code"]) == (exit_code, code)
    if code is None:
        assert ran.result["found_checksums"][0]["where"].endswith("/sums/SHA256SUMS")
