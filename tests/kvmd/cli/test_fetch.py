"""``kvmd fetch``: what it writes, and the exit codes that scripts rely on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvmd.cli import main
from tests.kvmd.commands import Ran, kvmd, quick_config
from tests.support import images
from tests.support.hostile import HostileServer, hexdigest
from tests.support.ports import free_port

IMAGE = images.qcow2()
CHECKSUM = "{SHA-256}" + hexdigest(IMAGE)
WRONG = "{SHA-256}" + "0" * 64
KEYS = {
    *("state", "code", "message", "hint", "path", "size", "checksum", "format", "virtual_size"),
    *("resumed_from", "refetched", "connections", "retries", "found_checksums", "sources", "seconds"),
}


@pytest.fixture
def origin(hostile_in_thread: HostileServer) -> HostileServer:
    """Serve one image."""
    hostile_in_thread.add("disk.qcow2", IMAGE)
    return hostile_in_thread


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> Ran:
    """Run the command in this process."""
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as exc:
        code = int(str(exc.code))
    written = capsys.readouterr()
    return Ran(code, written.out, written.err)


def test_a_fetched_image_is_there_and_told(
    origin: HostileServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = run(capsys, "fetch", origin.url("disk.qcow2"), tmp_path / "x.img", "--checksum", CHECKSUM, "--json")
    assert ran.code == 0
    assert (tmp_path / "x.img").read_bytes() == IMAGE
    assert set(ran.result) == KEYS
    expected = {"state": "ready", "code": None, "path": str(tmp_path / "x.img"), "size": len(IMAGE)}
    expected |= {"checksum": CHECKSUM, "format": "qcow2", "virtual_size": 16 << 20, "resumed_from": 0}
    assert {key: ran.result[key] for key in expected} == expected
    assert ran.stderr == ""


def test_people_read_a_line_with_path_and_checksum(
    origin: HostileServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = run(capsys, "fetch", origin.url("disk.qcow2"), tmp_path)
    assert ran.code == 0
    assert ran.stdout.startswith(f"{tmp_path}/disk.qcow2  {CHECKSUM}  {len(IMAGE)} bytes, qcow2")
    assert ran.stderr.splitlines()[0] == "probing"


def test_called_again_it_is_done_without_a_request(
    origin: HostileServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        assert run(capsys, "fetch", origin.url("disk.qcow2"), tmp_path, "--checksum", CHECKSUM).code == 0
    assert len(origin.requests) == 2


@pytest.mark.parametrize(
    ("parameters", "options", "exit_code", "code"),
    [
        ({}, ["--checksum", WRONG], 3, "CHECKSUM_MISMATCH"),
        ({}, ["--format", "iso"], 3, "FORMAT_MISMATCH"),
        ({"html": 1}, [], 3, "FORMAT_MISMATCH"),
        ({"status": 404}, [], 4, "SOURCE_STATUS"),
        ({"drop": "fin"}, [], 4, "SOURCE_UNREACHABLE"),
        ({"header_trickle": 0.2}, [], 4, "SOURCE_STALLED"),
        ({"redirect": "loop"}, [], 4, "REDIRECT_LIMIT"),
        ({"redirect_to": "http://127.0.0.1:9/"}, [], 5, "URL_FORBIDDEN"),
        ({"redirect_to": "file:///etc/passwd"}, [], 5, "REDIRECT_FORBIDDEN"),
        ({}, ["--checksum", "{MD5}" + "0" * 32], 5, "CHECKSUM_WEAK"),
        ({"encoding": "gzip"}, [], 1, "CONTENT_ENCODING"),
        ({"header_bytes": 20_000}, [], 1, "PROTOCOL"),
    ],
)
def test_each_class_of_failure_has_its_exit_code(
    origin: HostileServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    *,
    parameters: dict[str, object],
    options: list[str],
    exit_code: int,
    code: str,
) -> None:
    url, pool = origin.url("disk.qcow2", **parameters), tmp_path / "pool"
    pool.mkdir()
    ran = run(capsys, "fetch", url, pool, *options, "--json", "--config", quick_config(tmp_path))
    assert (ran.code, ran.result["code"]) == (exit_code, code)
    assert set(ran.result) == KEYS
    assert ran.result["state"] == "failed"
    assert ran.result["message"]
    assert ran.result["hint"]
    assert {path.name for path in pool.iterdir()} <= {".kvmd"}
    told = run(capsys, "fetch", url, pool, *options, "--config", tmp_path / "kvmd.toml")
    assert told.code == exit_code
    assert f"kvmd: {code}: " in told.stderr
    assert told.stdout == ""


def test_nobody_listening_is_told_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ran = run(capsys, "fetch", f"http://127.0.0.1:{free_port()}/disk", tmp_path)
    assert ran.code == 4
    assert "Connection refused" in ran.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["http://127.0.0.1/disk"],
        ["not a url", "."],
        ["ftp:/broken", "."],
        ["http://user:secret@127.0.0.1/disk", "."],
        ["http://2130706433/disk", "."],
        ["http://0x7f000001/disk", "."],
        ["http://127.1/disk", "."],
        ["http://0177.0.0.1/disk", "."],
        ["http://①②⑦.0.0.1/disk", "."],
        ["http://127.0.0.1/disk%00", "."],
        ["http://127.0.0.1/disk", ".", "--checksum", "{SHA-256}12"],
        ["http://127.0.0.1/disk", ".", "--format", "floppy"],
        ["http://127.0.0.1/disk", ".", "--header", "no colon"],
        ["http://127.0.0.1/disk", ".", "--header", "Host: evil"],
        ["http://127.0.0.1/disk", ".", "--header", "Range: bytes=0-"],
        ["http://127.0.0.1/disk", ".", "--header", "X: a\r\nY: b"],
        ["http://127.0.0.1/disk", ".", "--ca", "/nonexistent.pem"],
        ["http://127.0.0.1/disk", ".", "--config", "/nonexistent.toml"],
    ],
)
def test_wrong_arguments_are_told_before_anything_is_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = run(capsys, "fetch", *arguments)
    assert ran.code == 2
    assert ran.stderr
    assert "secret" not in ran.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_certificate_file_that_is_none_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "ca.pem").write_text("rubbish")
    ran = run(capsys, "fetch", "https://127.0.0.1/disk", tmp_path, "--ca", tmp_path / "ca.pem")
    assert ran.code == 2
    assert "--ca" in ran.stderr


@pytest.mark.parametrize("destination", ["missing/disk", "missing/"])
def test_a_missing_folder_is_told(
    origin: HostileServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], destination: str
) -> None:
    ran = run(capsys, "fetch", origin.url("disk.qcow2"), f"{tmp_path}/{destination}", "--json")
    assert (ran.code, ran.result["code"]) == (1, "POOL_MISSING")
    assert "missing" in ran.result["message"]
    assert origin.connections == 0


def test_a_folder_needs_a_name_at_the_end_of_the_url(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ran = run(capsys, "fetch", "http://127.0.0.1/", tmp_path, "--json")
    assert ran.code == 1
    assert "Name a file" in ran.result["hint"]


def test_a_file_with_other_content_stays(
    origin: HostileServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "disk.qcow2").write_text("mine")
    ran = run(capsys, "fetch", origin.url("disk.qcow2"), tmp_path, "--checksum", CHECKSUM, "--json")
    assert (ran.code, ran.result["code"]) == (1, "EXISTS")
    assert (tmp_path / "disk.qcow2").read_text() == "mine"


def test_headers_are_sent_and_never_shown(
    origin: HostileServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = origin.url("disk.qcow2", require="X-Token:s3cret", token="query-s3cret")
    ran = run(capsys, "fetch", url, tmp_path, "--header", "X-Token: s3cret", "--json")
    assert ran.code == 0
    assert "s3cret" not in ran.stdout + ran.stderr
    refused = run(capsys, "fetch", url, tmp_path / "other", "--header", "X-Token: wr0ng")
    assert refused.code == 4
    assert "s3cret" not in refused.stderr
    assert "wr0ng" not in refused.stderr


def test_all_urls_are_mirrors(origin: HostileServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    urls = [origin.url("disk.qcow2", mirror="a", status=404), origin.url("disk.qcow2", mirror="b")]
    ran = run(capsys, "fetch", *urls, tmp_path / "x", "--checksum", CHECKSUM, "--json")
    assert ran.code == 0
    assert [source.get("code") for source in ran.result["sources"]] == ["SOURCE_STATUS", None]


@pytest.mark.parametrize("limit", [6, 8])
def test_few_open_files_are_told_with_their_limit(origin: HostileServer, tmp_path: Path, limit: int) -> None:
    limited = ["prlimit", f"--nofile={limit}"]
    ran = kvmd("fetch", origin.url("disk.qcow2"), tmp_path / "x", "--json", under=limited)
    assert ran.code == 1
    assert ran.result["code"] == "INTERNAL"
    assert f"no more than {limit} files" in ran.result["message"]


def test_sixty_four_open_files_are_enough(origin: HostileServer, tmp_path: Path) -> None:
    ran = kvmd("fetch", origin.url("disk.qcow2"), tmp_path / "x", "--json", under=["prlimit", "--nofile=64"])
    assert ran.code == 0


def test_the_config_of_the_daemon_does_not_matter_unless_it_is_named(
    origin: HostileServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = quick_config(tmp_path, extra="[policy]\nrequire_checksum = true\n")
    ran = run(capsys, "fetch", origin.url("disk.qcow2"), tmp_path / "x", "--config", config, "--json")
    assert (ran.code, ran.result["code"]) == (5, "POLICY")
    assert json.loads(ran.stdout)["hint"]
    assert run(capsys, "fetch", origin.url("disk.qcow2"), tmp_path / "x").code == 0
