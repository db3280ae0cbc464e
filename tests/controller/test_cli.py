"""The command line: what it understands, and what it refuses before anything is published."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from controller.commands.invocation import byte_count, deadline, duration_s
from controller.program import build_parser
from controller.registry import Registry, Stored
from kvmwire import __version__
from tests.controller.kvmctl import CHECKSUM, URL, Kvmctl
from tests.support.ports import free_port


@pytest.fixture
def alone(tmp_path: Path) -> Kvmctl:
    """Give kvmctl without a broker: what is refused here is refused before anything is connected."""
    return Kvmctl(f"mqtt://127.0.0.1:{free_port()}", tmp_path)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["register", "t", URL, "--checksum", "abc"], 2, "CHECKSUM_FORMAT"),
        (["register", "t", URL, "--checksum", "{SHA-256}ab"], 2, "64 hexadecimal digits"),
        (["register", "t", "http://user:secret@x/"], 2, "URL_INVALID"),
        (["register", "t", "not a url"], 2, "URL_INVALID"),
        (["register", "t", URL, "--header", "Host: x"], 5, "HEADER_FORBIDDEN"),
        (["register", "t", URL, "--check", "any", "--check", "kvm01"], 2, "stand alone"),
        (["deploy", "t"], 2, "exactly one of --host, --label and --all"),
        (["deploy", "t", "--all", "--host", "kvm01"], 2, "exactly one"),
        (["deploy", "t", "--all", "--machine", "/nothing"], 2, "--machine /nothing"),
    ],
)
async def test_bad_input_is_refused_at_once(alone: Kvmctl, words: list[str], code: int, said: str) -> None:
    done = await alone.run(*words)
    assert done.code == code
    assert said in done.stderr
    assert "secret" not in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["nosuch"],
        ["register", "a/b", URL],
        ["deploy", "+", "--all"],
        ["deploy", "t", "--all", "--deadline", "soon"],
        ["deploy", "t", "--label", "zone"],
        ["register", "t", URL, "--header", "no colon"],
        ["register", "t", URL, "--check", "a/b"],
        ["lab", "--hosts", "0"],
        ["lab", "--hosts", "-1"],
        ["lab", "--hosts", "65"],
    ],
)
def test_what_argparse_can_refuse_ends_with_2(words: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        build_parser().parse_args(words)
    assert caught.value.code == 2


async def test_a_machine_is_read_and_checked(alone: Kvmctl, tmp_path: Path) -> None:
    good, bad = tmp_path / "good.toml", tmp_path / "bad.json"
    good.write_text('name = "web"\nvcpus = 2\n')
    bad.write_text('{"name": "web", "cpus": 2}')
    assert (await alone.run("deploy", "t", "--all", "--machine", str(good))).code == 4, "only the broker is missing"
    done = await alone.run("deploy", "t", "--all", "--machine", str(bad))
    assert done.code == 2
    assert "cpus: unknown field" in done.stderr


@pytest.mark.parametrize("words", [["--help"], ["hosts"], ["lab"]])
def test_ctrl_c_while_python_still_imports_shows_no_traceback(tmp_path: Path, words: list[str]) -> None:
    """A folder of ours stands in for the slow disk: the import of the program says when it has begun, and waits."""
    hook = tmp_path / "pydantic.py"
    hook.write_text("import sys\nprint('importing', flush=True)\nsys.stdin.read()\n")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    with subprocess.Popen(
        [sys.executable, "-c", "import sys; from controller.cli import main; sys.exit(main(sys.argv[1:]))", *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "importing\n"
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=10)
    assert (process.returncode, stderr) == (-signal.SIGINT, "")


def test_common_options_may_stand_before_or_after_the_command() -> None:
    for words in (["--mqtt", "mqtt://x", "--json", "hosts"], ["hosts", "--mqtt", "mqtt://x", "--json"]):
        arguments = build_parser().parse_args(words)
        assert (arguments.mqtt, arguments.json) == ("mqtt://x", True)


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("1.5s", 1.5), ("30m", 1800), ("2h", 7200), ("1d", 86400)])
def test_time_spans(text: str, seconds: float) -> None:
    assert duration_s(text) == seconds


@pytest.mark.parametrize(("text", "count"), [("7", 7), ("1K", 1024), ("10MiB", 10 * 2**20), ("2gb", 2 * 2**30)])
def test_byte_counts(text: str, count: int) -> None:
    assert byte_count(text) == count


def test_a_deadline_is_a_moment_or_a_span() -> None:
    assert deadline("2030-01-31T18:00:00Z") == datetime(2030, 1, 31, 18, tzinfo=UTC)
    assert timedelta(minutes=119) < deadline("2h") - datetime.now(UTC) <= timedelta(hours=2)


def test_the_program_tells_its_version_and_never_a_traceback() -> None:
    version = subprocess.run(
        [sys.executable, "-m", "controller", "--version"], capture_output=True, text=True, check=True
    )
    assert version.stdout == f"kvmctl {__version__}\n"
    unreachable = subprocess.run(
        [sys.executable, "-m", "controller", "--mqtt", f"mqtt://127.0.0.1:{free_port()}", "hosts"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert unreachable.returncode == 4
    assert "Traceback" not in unreachable.stderr


async def test_a_checksum_without_its_algorithm_is_read_back(alone: Kvmctl) -> None:
    done = await alone.run("register", "t", URL, "--checksum", "ab" * 20)
    assert "checksum read as {SHA-1}" in done.stderr
    assert CHECKSUM not in done.stderr


@pytest.mark.parametrize("words", [["--help"], ["events"], ["events", "--json"], ["hosts", "--json"]])
def test_a_reader_who_left_is_no_error(tmp_path: Path, words: list[str]) -> None:
    registry = Registry(tmp_path)
    with contextlib.closing(registry):
        registry.store(Stored("e1", "t", b"", generation=1, is_retained=True, is_ours=True, created=1.0), ["kvm01"])
    reading, writing = os.pipe()
    os.close(reading)
    url = f"mqtt://127.0.0.1:{free_port()}"
    env = {**os.environ, "KVMCTL_STATE_DIR": str(tmp_path), "KVMCTL_MQTT_URL": url}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "controller", *words], stdout=writing, stderr=subprocess.PIPE, env=env, check=False
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_locale_without_the_letters_is_no_error(tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONIOENCODING": "ascii", "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "controller", "hosts", "--config", "/caf\u00e9"],
        capture_output=True,
        env=env,
        check=False,
    )
    assert done.returncode == 2
    assert b"settings /caf\\xe9" in done.stderr


async def test_a_typo_in_the_settings_names_file_and_key(tmp_path: Path) -> None:
    (tmp_path / "kvmctl.toml").write_text('[mqtt]\nurrl = "mqtt://x"\n')
    done = await Kvmctl("mqtt://127.0.0.1:1", tmp_path).run("hosts", "--config", str(tmp_path / "kvmctl.toml"))
    assert done.code == 2
    assert f"{tmp_path}/kvmctl.toml: mqtt.urrl: there is no such setting. Is mqtt.url meant?" in done.stderr
