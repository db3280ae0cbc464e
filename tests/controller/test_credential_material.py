"""What ``kvmctl credential add`` takes, asks for and refuses; no word of it shows a secret."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import sys
import termios
from pathlib import Path

import pytest

from controller.program import build_parser
from tests.controller.enrolled import EnrolledFleet
from tests.controller.kvmctl import Ended, Kvmctl
from tests.support.brokers import MosquittoBroker
from tests.support.tls import Authority

TOKEN = "correct-horse-battery"
ORIGIN = ("--for", "https://images.example.org")


@pytest.fixture
def kvmctl(tmp_path: Path) -> Kvmctl:
    """Give a command line without a broker: what is refused here is refused before anything is connected."""
    kvmctl = Kvmctl("mqtt://127.0.0.1:1", tmp_path)
    EnrolledFleet(kvmctl)
    return kvmctl


def written(path: Path, content: str | bytes, mode: int = 0o600) -> str:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    path.chmod(mode)
    return str(path)


async def refused(kvmctl: Kvmctl, *words: str) -> Ended:
    """Run ``credential add`` and see that it fails before it connects."""
    done = await kvmctl.run("credential", "add", "images", *words)
    assert done.code not in {0, 4}, done.stderr
    assert TOKEN not in done.stderr + done.stdout
    return done


@pytest.mark.parametrize(
    ("words", "code", "why"),
    [
        ((*ORIGIN,), 2, "nothing was given"),
        ((*ORIGIN, "--header", f"X-A: {TOKEN}", "--header", f"x-a: {TOKEN}"), 2, "twice"),
        ((*ORIGIN, "--header", f"X-A: {TOKEN}\x01{TOKEN}"), 5, "control character"),
        ((*ORIGIN, "--header", f"X-A: {TOKEN}\x01{TOKEN}"), 5, "Correct the value"),
        (("--for", "http://plain.example", "--header", f"X-A: {TOKEN}"), 5, "--allow-http"),
        (("--for", "https://*", "--header", f"X-A: {TOKEN}"), 1, "expected scheme://host"),
        (("--for", "nfs://files.example", "--header", f"X-A: {TOKEN}"), 2, "https"),
        ((*ORIGIN, "--header", "X-A"), 2, "no terminal"),
        ((*ORIGIN, "--header", "X-A: @/does/not/exist"), 2, "/does/not/exist"),
        ((*ORIGIN, "--bearer"), 2, "--token-file FILE"),
        ((*ORIGIN, "--token-file", "x"), 2, "--bearer"),
        ((*ORIGIN, "--client-cert", "x"), 2, "--key"),
        ((*ORIGIN, "--header", f"X-A: {TOKEN}", "--all", "--host", "kvm01"), 2, "together"),
    ],
)
async def test_what_cannot_be_handed_out_is_refused(
    kvmctl: Kvmctl, words: tuple[str, ...], code: int, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Path(os.devnull).open() as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        done = await refused(kvmctl, *words)
    assert (done.code, why in done.stderr) == (code, True), done.stderr


def test_a_password_on_the_command_line_is_refused_and_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        build_parser().parse_args(["credential", "add", "images", *ORIGIN, "--basic", f"ann:{TOKEN}"])
    told = capsys.readouterr().err
    assert "--password-file" in told
    assert TOKEN not in told


@pytest.mark.parametrize("name", ["Range", "Host", "X Y"])
async def test_a_header_that_is_refused_is_not_shown(kvmctl: Kvmctl, name: str) -> None:
    done = await refused(kvmctl, *ORIGIN, "--header", f"{name}: {TOKEN}")
    assert done.code == 5
    assert "HEADER_FORBIDDEN" in done.stderr
    assert name in done.stderr
    assert "Leave this header out" in done.stderr


async def test_a_line_of_a_header_file_that_is_no_header_is_named_by_its_number(kvmctl: Kvmctl, tmp_path: Path) -> None:
    path = written(tmp_path / "headers", f"X-A: {TOKEN}\n\n{TOKEN}\n")
    done = await refused(kvmctl, *ORIGIN, "--header-file", path)
    assert (done.code, f"{path}, line 3: expected NAME: VALUE" in done.stderr) == (2, True)


def test_a_user_may_be_given_with_a_colon() -> None:
    parse = build_parser().parse_args
    given = [parse(["credential", "add", "images", *ORIGIN, "--basic", text]).basic for text in ("ann", "ann:")]
    assert given == ["ann", "ann"]


async def test_certificates_are_checked_as_hosts_check_them(
    kvmctl: Kvmctl, authority: Authority, tmp_path: Path
) -> None:
    client, server = authority.client, authority.server
    pair = await refused(kvmctl, *ORIGIN, "--client-cert", str(client.certificate), "--key", str(server.key))
    assert "does not belong" in pair.stderr
    ca = await refused(kvmctl, *ORIGIN, "--ca", str(client.certificate))
    assert "neither a CA's" in ca.stderr
    no_pem = written(tmp_path / "ca.txt", "no certificate")
    for option, others in (("--ca", ()), ("--client-cert", ("--key", str(client.key)))):
        told = (await refused(kvmctl, *ORIGIN, option, no_pem, *others)).stderr
        assert f"{option} {no_pem}: the file: expected certificates in PEM" in told
    spoilt = await refused(kvmctl, *ORIGIN, "--client-cert", str(client.certificate), "--key", no_pem)
    assert f"--key {no_pem}: the key: expected a private key in PEM" in spoilt.stderr
    der = await refused(kvmctl, *ORIGIN, "--ca", written(tmp_path / "ca.der", b"\x30\x82\xff\xfe"))
    assert "openssl x509 -inform der" in der.stderr
    both = written(tmp_path / "both.pem", client.certificate.read_text() + client.key.read_text())
    mixed = await refused(kvmctl, *ORIGIN, "--client-cert", both, "--key", str(client.key))
    assert "a private key stands among" in mixed.stderr
    assert "http" in (await refused(kvmctl, "--for", "http://a.example", "--ca", str(authority.ca_file))).stderr


async def test_a_token_has_to_be_one_line(kvmctl: Kvmctl, tmp_path: Path) -> None:
    done = await refused(
        kvmctl, *ORIGIN, "--bearer", "--token-file", written(tmp_path / "token", f"{TOKEN}\n{TOKEN}\n")
    )
    assert "expected one line, got 2" in done.stderr


async def test_a_secret_needs_a_fleet(tmp_path: Path) -> None:
    done = await Kvmctl("mqtt://127.0.0.1:1", tmp_path).run(
        "credential", "add", "images", *ORIGIN, "--header", f"X-A: {TOKEN}"
    )
    assert (done.code, "kvmctl keys init" in done.stderr) == (2, True)


async def test_what_others_can_read_is_warned_of(tmp_path: Path) -> None:
    with MosquittoBroker(tmp_path / "broker") as broker:
        kvmctl = Kvmctl(broker.url, tmp_path)
        EnrolledFleet(kvmctl)
        done = await kvmctl.run(
            *("credential", "add", "images", "--for", "https://*.lan", "--header", f"X-A: {TOKEN}"),
            *("--header", f"X-B: @{written(tmp_path / 'open', TOKEN, 0o644)}"),
        )
        plain = await kvmctl.run(
            *("register", "deb12", "https://images.example.org/a", "--header", f"Authorization: {TOKEN}"),
            *("--header", "Accept: image/*"),
        )
    assert done.code == 0, done.stderr
    for words in ("the value of X-A stood on the command line", "chmod 600", "every server below .lan"):
        assert words in done.stderr
    assert "--header Authorization: everybody who can read the broker reads its value" in plain.stderr
    assert "--header Accept" not in plain.stderr
    assert TOKEN not in done.stderr + done.stdout + plain.stderr + plain.stdout


async def test_a_terminal_is_asked_without_echo(tmp_path: Path) -> None:
    with MosquittoBroker(tmp_path / "broker") as broker:
        kvmctl = Kvmctl(broker.url, tmp_path)
        EnrolledFleet(kvmctl)
        shown, code = await _typed(kvmctl, f"{TOKEN}\n", "--basic", "ann:")
        assert (code, "password of ann" in shown, TOKEN in shown) == (0, True, False)
        kept = await kvmctl.run("credential", "show", "images", "--json")
    assert kept.rows[0]["holds"] == ["headers"]


async def test_ctrl_c_at_the_question_ends_it_at_once(tmp_path: Path) -> None:
    kvmctl = Kvmctl("mqtt://127.0.0.1:1", tmp_path)
    EnrolledFleet(kvmctl)
    _, code = await _typed(kvmctl, "\x03", "--bearer")
    assert code == 130


async def _typed(kvmctl: Kvmctl, keys: str, *words: str) -> tuple[str, int]:
    """Run ``credential add`` on a terminal of its own, type once it asks, and give what it showed and its exit code."""
    ours, theirs = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "controller", "credential", "add", "images", *ORIGIN, *words),
        env=dict(kvmctl.env),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=_take_terminal,
    )
    os.close(theirs)
    shown = bytearray()
    async with asyncio.timeout(15):
        while not shown.rstrip().endswith(b":"):
            shown += await asyncio.to_thread(os.read, ours, 1024)
        os.write(ours, keys.encode())
        while part := await asyncio.to_thread(_read, ours):
            shown += part
        code = await process.wait()
    os.close(ours)
    return shown.decode(), code


def _take_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 1024)
    except OSError:
        return b""  # the terminal's other end was closed
