"""What a qemu-img that an image has taken over could do: nothing but read that image, for a while."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil
import pytest

import kvmd
from kvmd.sandbox import landlock
from kvmd.sandbox.limits import MAX_FILES, MAX_TASKS, NOBODY
from kvmd.sandbox.protocol import Answer, Request, Task
from tests.support import images
from tests.support.programs import require_kernel, require_program, require_root
from tests.support.waiting import eventually_blocking

SIZE = 16 << 20
GOOD = images.qcow2(SIZE)
MEMORY = 300 << 20
TIMEOUT_S = 5.0
VOLUME = "$6"
"""The volume among the words of a script that stands for qemu-img."""
Fake = Callable[[str], Path]


@pytest.fixture(params=["root", "unprivileged"])
def user(request: pytest.FixtureRequest) -> str:
    """Start the inspector as root, and as a user who owns the image himself."""
    require_root("starts the inspector as root and as nobody")
    require_kernel("Landlock", is_there=landlock.version() > 0)
    kind: str = request.param
    return kind


@pytest.fixture
def folder() -> Iterator[Path]:
    """Make a folder that every user can read, with a copy of the inspector."""
    made = Path(tempfile.mkdtemp(prefix="kvmd-sandbox-"))
    made.chmod(0o755)
    (made / "kvmd").mkdir()
    (made / "kvmd/__init__.py").touch()
    shutil.copytree(Path(kvmd.__file__).parent / "sandbox", made / "kvmd/sandbox")
    yield made
    shutil.rmtree(made)


@contextlib.contextmanager
def asking(
    folder: Path, user: str, content: bytes = GOOD, *, tracer: Sequence[str | Path] = (), task: Task = Task.LOOK
) -> Iterator[tuple[subprocess.Popen[bytes], socket.socket]]:
    """Start an inspector and ask it. Unprivileged, it runs as the owner of the image, who may do anything with it.

    A conversion goes to the file ``raw``.
    """
    image, raw = folder / "disk", folder / "raw"
    image.write_bytes(content)
    image.chmod(0o644)
    raw.touch()
    raw.chmod(0o666)
    words: list[str | Path] = [*tracer, "/usr/bin/python3", "-m", "kvmd.sandbox"]
    if user == "unprivileged":
        os.chown(image, NOBODY, NOBODY)
        words = [require_program("setpriv"), f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *words]
    ours, theirs = socket.socketpair()
    with ours, image.open("rb") as volume, raw.open("r+b") as target:
        with theirs:
            process = subprocess.Popen(words, stdin=theirs, cwd=folder, env={"PATH": os.environ["PATH"]})
        try:
            request = Request("qcow2", TIMEOUT_S, MEMORY, task, SIZE if task is Task.CONVERT else 0)
            files = [volume.fileno(), *((target.fileno(),) if task is Task.CONVERT else ())]
            socket.send_fds(ours, [request.encode()], files)
            ours.settimeout(10)
            yield process, ours
        finally:
            process.kill()
            process.wait()


def ask(
    folder: Path, user: str, content: bytes = GOOD, *, tracer: Sequence[str | Path] = (), task: Task = Task.LOOK
) -> Answer:
    """Give the inspector's answer."""
    with asking(folder, user, content, tracer=tracer, task=task) as (process, channel):
        text = b""
        while block := channel.recv(65536):
            text += block
        process.wait(10)
    return Answer.decode(text)


def said(answer: Answer) -> str:
    """Give what the script wrote to standard error."""
    return answer.runs[0].said


def test_the_real_one_works(user: str, folder: Path) -> None:
    assert require_program("qemu-img")
    answer = ask(folder, user)
    assert [(run.exit_code, run.said) for run in answer.runs] == [(0, ""), (0, "")]


def test_the_volume_can_be_read_and_not_written(user: str, folder: Path, fake: Fake) -> None:
    fake(
        f'head -c 3 "{VOLUME}" >&2\n'
        f'for word in ">>" "<>" ">"; do eval "(printf x $word \\"{VOLUME}\\") && echo WRITTEN >&2"; done\n'
        f'n=$(basename "{VOLUME}"); eval "(printf x >&$n) && echo WRITTEN >&2"\n'
        f'chmod 600 "{VOLUME}" && echo CHANGED >&2; exit 1'
    )
    text = said(ask(folder, user))
    assert text.startswith("QFI")
    assert "WRITTEN" not in text
    assert (folder / "disk").read_bytes() == GOOD


def test_a_conversion_writes_its_target_up_to_its_size_and_nothing_else(user: str, folder: Path, fake: Fake) -> None:
    fake(
        'printf raw 1<> "${11}" && echo DONE >&2\n'
        'for word in ">>" "<>" ">"; do eval "(printf x $word \\"${10}\\") && echo WRITTEN >&2"; done\n'
        "for file in /tmp/kvmd-was-here /dev/shm/x; do (printf x > $file) && echo WRITTEN >&2; done\n"
        "exec bash -c 'ulimit -f >&2; exit 1'"
    )
    text = said(ask(folder, user, task=Task.CONVERT))
    assert text.startswith("DONE")
    assert "WRITTEN" not in text
    assert text.endswith(f"{SIZE // 1024}\n")
    assert ((folder / "raw").read_bytes(), (folder / "disk").read_bytes()) == (b"raw", GOOD)


def test_no_other_file_can_be_read_or_made(user: str, folder: Path, fake: Fake) -> None:
    (folder / "secret").write_text("s3cret")
    fake(
        f"cat {folder}/secret /etc/passwd /etc/hostname /proc/$PPID/environ /proc/$PPID/maps >&2\n"
        "for folder in /tmp /dev/shm /var/tmp /run; do (echo x > $folder/kvmd-was-here) && echo WRITTEN >&2; done; exit 1"
    )
    text = said(ask(folder, user))
    assert "s3cret" not in text
    assert "root:" not in text
    assert "PATH=" not in text
    assert "WRITTEN" not in text
    assert text.count("Permission denied") == 9


def test_no_network_can_be_reached(user: str, folder: Path, fake: Fake) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        fake(f"exec bash -c '(exec 3<>/dev/tcp/127.0.0.1/{port}) && echo REACHED >&2; exit 1'")
        text = said(ask(folder, user))
    assert "REACHED" not in text
    assert "Network is unreachable" in text or "Connection refused" in text


def test_the_limits_hold(user: str, folder: Path, fake: Fake) -> None:
    fake("id -u >&2; exec bash -c 'ulimit -c -f -n -t -u -v >&2; exit 1'")
    text = said(ask(folder, user))
    assert text.startswith(f"{NOBODY}\n")
    limits = {line.split("(")[0].strip(): line.split()[-1] for line in text.splitlines() if "(" in line}
    assert limits == {
        "core file size": "0",
        "file size": "0",
        "open files": str(MAX_FILES),
        "cpu time": str(round(TIMEOUT_S)),
        "max user processes": str(MAX_TASKS),
        "virtual memory": str(MEMORY // 1024),
    }


def test_memory_is_bounded(user: str, folder: Path, fake: Fake) -> None:
    fake("exec bash -c 'x=$(head -c 400000000 /dev/urandom | base64); echo ${#x} >&2'")
    run = ask(folder, user).runs[0]
    assert run.exit_code != 0
    assert "cannot allocate" in run.said or run.ended_for


def test_a_fork_bomb_stays_small(user: str, folder: Path, fake: Fake) -> None:
    fake("for i in $(seq 300); do sleep 30 & done; exit 1")
    answer = ask(folder, user)
    assert "Cannot fork" in said(answer)
    eventually_blocking(lambda: not _running("sleep"), what="no process of the bomb is left")


def test_when_kvmd_goes_away_so_do_the_inspector_and_qemu_img(user: str, folder: Path, fake: Fake) -> None:
    fake("exec sleep 31")
    with asking(folder, user) as (process, channel):
        eventually_blocking(lambda: _running("sleep"), what="qemu-img runs")
        channel.close()
        process.wait(5)
        eventually_blocking(lambda: not _running("sleep"), what="qemu-img is gone")


def test_when_the_inspector_is_killed_qemu_img_goes_with_it(user: str, folder: Path, fake: Fake) -> None:
    fake("exec sleep 31")
    with asking(folder, user) as (process, _):
        eventually_blocking(lambda: _running("sleep"), what="qemu-img runs")
        process.send_signal(signal.SIGKILL)
        eventually_blocking(lambda: not _running("sleep"), what="qemu-img is gone")


def test_no_referenced_file_is_opened(user: str, folder: Path) -> None:
    """The pure inspection would never let such an image get here."""
    secret = folder / "secret"
    secret.write_bytes(images.raw())
    image, name = bytearray(GOOD), str(secret).encode()
    image[8:20] = struct.pack(">QI", 1024, len(name))
    image[1024 : 1024 + len(name)] = name
    trace = folder / "trace"
    tracer = [require_program("strace"), "-f", "-qq", "-o", trace, "-e", "trace=open,openat,openat2,execve,connect"]
    trace.touch()
    trace.chmod(0o666)
    ask(folder, user, bytes(image), tracer=tracer)
    opened = _opened_by_qemu(trace.read_text())
    assert any(path.startswith("/proc/self/fd/") for path in opened)
    allowed = r"/proc/self/fd/\d+|/(usr/)?lib(32|64)?/.*|/etc/ld\.so\.cache|/dev/(null|urandom)"
    assert [path for path in opened if not re.fullmatch(allowed, path)] == []


def _opened_by_qemu(trace: str) -> list[str]:
    """Give the paths that were opened after the first start of qemu-img."""
    after = re.split(r"execve\(\"[^\"]*/qemu-img\"", trace, maxsplit=1)[1]
    assert "connect(" not in after
    return re.findall(r'open(?:at2?)?\((?:AT_FDCWD, )?"([^"]+)".* = \d+', after)


def _running(name: str) -> list[psutil.Process]:
    """Give the sleeping processes that scripts of these tests have started."""
    return [
        one
        for one in psutil.process_iter(["name", "cmdline"])
        if one.info["name"] == name and (one.info["cmdline"] or [""])[-1] in {"30", "31"}
    ]
