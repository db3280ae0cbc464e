from __future__ import annotations

import signal
import sys
from pathlib import Path

import psutil
import pytest

from tests.support.ports import accepts, free_port
from tests.support.processes import ChildProcess
from tests.support.programs import require_program
from tests.support.waiting import eventually_blocking

_LISTEN = (
    "import socket, sys; s = socket.create_server(('127.0.0.1', int(sys.argv[1])))\nwhile True: s.accept()[0].close()"
)


def test_it_waits_for_the_port_and_restarts_on_the_same(tmp_path: Path) -> None:
    port = free_port()
    with ChildProcess([sys.executable, "-c", _LISTEN, str(port)], log=tmp_path / "log", port=port) as child:
        first = child.pid
        assert accepts(port)
        child.restart()
        assert accepts(port)
        assert child.pid != first
        assert not psutil.pid_exists(first)
    assert child.returncode == -signal.SIGKILL
    assert not accepts(port)


def test_a_program_that_ends_early_fails_with_its_log(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit('no config')"]
    with pytest.raises(AssertionError, match="ended with 1:\nno config"):
        ChildProcess(command, log=tmp_path / "log", port=free_port()).start()


def test_leaving_kills_the_whole_group(tmp_path: Path) -> None:
    with ChildProcess(["sh", "-c", "sleep 60 & echo $!; wait"], log=tmp_path / "log") as child:
        grandchild = psutil.Process(int(eventually_blocking(child.log_text)))
    eventually_blocking(lambda: not grandchild.is_running() or grandchild.status() == psutil.STATUS_ZOMBIE)
    assert not child.running


def test_terminate_returns_the_exit_code(tmp_path: Path) -> None:
    script = "trap 'exit 7' TERM; echo ready; while :; do sleep 0.01; done"
    with ChildProcess(["sh", "-c", script], log=tmp_path / "log") as child:
        eventually_blocking(child.log_text)
        assert child.terminate() == 7


@pytest.mark.parametrize(("ci", "outcome"), [("true", pytest.fail.Exception), ("", pytest.skip.Exception)])
def test_a_missing_program_fails_in_ci_and_skips_elsewhere(
    ci: str, outcome: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", ci)
    with pytest.raises(outcome, match="'no-such-program' is not installed"):
        require_program("no-such-program")
