"""``kvmd probe`` and ``kvmd inspect``: tables for people, JSON lines for programs."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from tests.kvmd.cli.test_fetch import run
from tests.kvmd.commands import quick_config
from tests.kvmd.image.zoo import ZOO
from tests.support import images
from tests.support.hostile import HostileServer

IMAGE = images.qcow2()


@pytest.fixture
def origin(hostile_in_thread: HostileServer, monkeypatch: pytest.MonkeyPatch) -> HostileServer:
    """Serve one image; the terminal is narrow."""
    monkeypatch.setenv("COLUMNS", "80")
    hostile_in_thread.add("a-rather-long-name-of-a-cloud-image-12-amd64.qcow2", IMAGE)
    hostile_in_thread.add("d", IMAGE)
    return hostile_in_thread


def test_a_table_fits_80_columns_and_messages_stand_below(
    origin: HostileServer, capsys: pytest.CaptureFixture[str]
) -> None:
    good = origin.url("a-rather-long-name-of-a-cloud-image-12-amd64.qcow2")
    bad = origin.url("d", status=404)
    ran = run(capsys, "probe", good, bad)
    assert ran.code == 0
    header, *rows = ran.stdout.splitlines()
    assert header.split() == ["source", "status", "size", "ranges", "format", "virtual", "seconds"]
    message = rows.pop()
    assert message.startswith("SOURCE_STATUS: source ")
    assert "404" in message
    assert all(len(row) <= 80 for row in rows)
    assert "206" in rows[0]
    assert "qcow2" in rows[0]
    assert "16 MiB" in rows[0]


def test_json_is_one_line_a_source(origin: HostileServer, capsys: pytest.CaptureFixture[str]) -> None:
    ran = run(capsys, "probe", origin.url("d", token="s3cret"), origin.url("d", ranges="off"), "--json")
    assert ran.code == 0
    one, other = (json.loads(line) for line in ran.stdout.splitlines())
    assert one["reachable"] is True
    assert one["size"] == len(IMAGE)
    assert (one["ranges"], other["ranges"]) == (True, False)
    assert (one["format"], one["virtual_size"], one["status"]) == ("qcow2", 16 << 20, 206)
    assert one["etag"] == '"d-1"'
    assert "s3cret" not in ran.stdout


def test_a_probe_costs_one_request_of_64_kib(origin: HostileServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "probe", origin.url("d")).code == 0
    (request,) = origin.requests
    assert (request.method, request.header("Range")) == ("GET", "bytes=0-65535")
    assert request.body_sent == 65536


def test_a_format_that_hides_what_matters_further_inside_costs_a_second_request(
    origin: HostileServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    next(animal for animal in ZOO if animal.name == "vhdx with a log").make(tmp_path / "logged.vhdx")
    origin.add("logged.vhdx", (tmp_path / "logged.vhdx").read_bytes())
    ran = run(capsys, "probe", origin.url("logged.vhdx"), "--json")
    assert (ran.code, ran.result["code"]) == (3, "IMAGE_INVALID")
    assert [request.header("Range") for request in origin.requests] == ["bytes=0-65535", "bytes=65536-262143"]


@pytest.mark.parametrize(
    ("parameters", "exit_code"),
    [({"status": 403}, 4), ({"html": 1}, 3), ({"redirect_to": "http://127.0.0.1:9/"}, 5), ({"encoding": "gzip"}, 1)],
)
def test_the_exit_code_is_that_of_the_verdict(
    origin: HostileServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    parameters: dict[str, object],
    exit_code: int,
) -> None:
    ran = run(capsys, "probe", origin.url("d", **parameters), "--config", quick_config(tmp_path))
    assert ran.code == exit_code


def test_a_redirect_is_shown(origin: HostileServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = quick_config(tmp_path, extra='[policy]\nallowed_networks = ["127.0.0.0/8"]\n')
    ran = run(capsys, "probe", origin.url("d", redirect=1), "--config", config, "--json")
    assert json.loads(ran.stdout)["redirect"].startswith(f"http://127.0.0.1:{origin.port}/d")


@pytest.mark.parametrize(
    ("content", "kind", "virtual_size"),
    [
        (images.qcow2(), "qcow2", 16 << 20),
        (images.raw(), "raw", 1 << 20),
        (images.iso(), "iso", 1 << 20),
        (images.iso(hybrid=True), "iso", 1 << 20),
    ],
)
def test_good_images_are_accepted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, kind: str, virtual_size: int
) -> None:
    (tmp_path / "image").write_bytes(content)
    ran = run(capsys, "inspect", tmp_path / "image", "--json")
    assert ran.code == 0
    expected = {"format": kind, "size": len(content), "virtual_size": virtual_size, "verdict": "accepted"}
    assert {key: ran.result[key] for key in expected} == expected
    shown = run(capsys, "inspect", tmp_path / "image")
    assert shown.code == 0
    assert f"format        {kind}" in shown.stdout
    assert "MiB)" in shown.stdout


BACKED = bytearray(images.qcow2())
BACKED[8:20] = struct.pack(">QI", 1024, 11)
BACKED[1024:1035] = b"/etc/shadow"


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (bytes(BACKED), "IMAGE_UNSAFE"),
        (b"<!DOCTYPE html><html></html>", "FORMAT_MISMATCH"),
        (b"\x1f\x8b\x08" + bytes(100), "FORMAT_MISMATCH"),
        (b"QFI\xfb\x00\x00\x00\x09" + bytes(600), "IMAGE_UNSAFE"),
        (b"QFI\xfb\x00\x00\x00\x03", "IMAGE_INVALID"),
        (b"QED\0" + bytes(600), "IMAGE_UNSAFE"),
    ],
)
def test_bad_images_are_refused_with_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, code: str
) -> None:
    (tmp_path / "image").write_bytes(content)
    ran = run(capsys, "inspect", tmp_path / "image", "--json")
    assert (ran.code, ran.result["code"], ran.result["verdict"]) == (3, code, "refused")
    assert ran.result["message"]
    shown = run(capsys, "inspect", tmp_path / "image")
    assert shown.code == 3
    assert code in shown.stdout


@pytest.mark.parametrize("kind", ["missing", "folder"])
def test_what_cannot_be_read_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    path = tmp_path / "missing" if kind == "missing" else tmp_path
    ran = run(capsys, "inspect", path)
    assert ran.code == 1
    assert str(path) in ran.stderr


def test_an_empty_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "image").write_bytes(b"")
    ran = run(capsys, "inspect", tmp_path / "image", "--json")
    assert (ran.code, ran.result["code"]) == (1, "EMPTY")
