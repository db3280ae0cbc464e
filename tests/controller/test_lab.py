"""The lab and the demo: everything real, from the command line to the bytes in the pools."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import sys
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from controller.errors import ControlError, UsageError
from controller.lab import brokers
from controller.lab.cluster import Lab
from tests.controller.kvmctl import Kvmctl, ended
from tests.support.processes import ChildProcess
from tests.support.programs import require_program
from tests.support.waiting import eventually

DEMO = Path(__file__).parents[2] / "examples/demo/demo.py"
PROGRAMS = {"nats": "nats-server", "mosquitto": "mosquitto"}


def is_alive(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


@contextlib.asynccontextmanager
async def demo(folder: Path, *words: str) -> AsyncGenerator[asyncio.subprocess.Process, None]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *(str(DEMO), *words),
        env={**os.environ, "TMPDIR": str(folder)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        await process.communicate()


@pytest.mark.parametrize("kind", list(PROGRAMS))
async def test_a_lab_brings_all_hosts_online_and_ends_every_child(tmp_path: Path, kind: str) -> None:
    require_program(PROGRAMS[kind])
    async with Lab(tmp_path / "lab", hosts=2, broker=kind) as lab:
        pids = [child.pid for child in lab.children]
        done = await Kvmctl(lab.url, tmp_path).run("hosts", "--json", "--config", str(lab.config))
        assert [(row["host"], row["state"]) for row in done.rows] == [("kvm01", "online"), ("kvm02", "online")]
    assert len(pids) == 4
    assert not any(map(is_alive, pids))


async def test_a_child_that_dies_ends_the_lab_and_is_quoted(tmp_path: Path) -> None:
    async with Lab(tmp_path / "lab", hosts=1) as lab:
        victim = next(child for child in lab.children if child.name == "kvm01")
        os.kill(victim.pid, signal.SIGKILL)
        with pytest.raises(ControlError, match="kvm01 ended with -9") as caught:
            await lab.broken()
    assert str(tmp_path / "lab/kvm01.log") in caught.value.hint


def test_without_a_broker_it_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        brokers.command("auto", tmp_path, 1883, where=[str(tmp_path)])
    assert "kvmd[lab]" in caught.value.hint


async def test_the_lab_command_tells_how_to_talk_to_it_and_ends_on_sigterm(tmp_path: Path) -> None:
    kvmctl = Kvmctl("mqtt://127.0.0.1:1", tmp_path)
    async with kvmctl.started("lab", "--hosts", "1", "--dir", str(tmp_path / "lab")) as process:
        assert process.stderr is not None
        async with asyncio.timeout(15):
            told = (await process.stderr.readuntil(b"Ctrl-C ends it")).decode()
        process.send_signal(signal.SIGTERM)
        done = await ended(process)
    assert f"export KVMCTL_CONFIG={tmp_path / 'lab/kvmctl.toml'}" in told
    assert done.code == 0


async def test_the_demo_makes_every_host_ready_and_leaves_nothing_behind(tmp_path: Path) -> None:
    async with demo(tmp_path) as process:
        done = await ended(process, timeout_s=19)
    assert done.code == 0, done.stderr
    assert "all 3 hosts are ready" in done.stdout
    assert len(re.findall(r"kvm0\d  \S+  \{SHA-256\}[0-9a-f]{64}  ok", done.stdout)) == 3
    assert list(tmp_path.iterdir()) == []


async def test_the_demo_with_a_wrong_checksum_ends_with_3_and_says_why(tmp_path: Path) -> None:
    async with demo(tmp_path, "--hosts", "1", "--checksum", "{SHA-256}" + "00" * 32) as process:
        done = await ended(process, timeout_s=19)
    assert done.code == 3
    assert "CHECKSUM_MISMATCH" in done.stdout
    assert list(tmp_path.iterdir()) == []


async def test_ctrl_c_ends_the_demo_and_its_children(tmp_path: Path) -> None:
    async with demo(tmp_path, "--hosts", "1") as process:
        await eventually(lambda: list(tmp_path.glob("*/lab/controller.log")), what="the lab starts")
        process.send_signal(signal.SIGINT)
        done = await ended(process)
    assert done.code == 130
    assert list(tmp_path.iterdir()) == []


def test_the_fallback_image_is_a_valid_qcow2(tmp_path: Path) -> None:
    qemu_img = require_program("qemu-img")
    writer = f"import sys; sys.path.insert(0, {str(DEMO.parent)!r}); from images import write_qcow2; "
    code = f"{writer}from pathlib import Path; write_qcow2(Path('a.qcow2'), clusters=3)"
    for number, words in enumerate(([sys.executable, "-c", code], [qemu_img, "check", "--output=json", "a.qcow2"])):
        with ChildProcess(words, log=tmp_path / f"{number}.log", cwd=tmp_path) as child:
            assert child.wait() == 0, child.log_text()
    checked = json.loads((tmp_path / "1.log").read_text())
    assert (checked["allocated-clusters"], checked["total-clusters"], checked["check-errors"]) == (3, 3, 0)


async def test_ctrl_c_while_the_lab_is_still_being_started_ends_it(tmp_path: Path) -> None:
    async with Kvmctl("mqtt://127.0.0.1:1", tmp_path).started("lab", "--dir", str(tmp_path / "lab")) as process:
        await eventually(lambda: list(tmp_path.glob("lab/broker.log")), what="the first child is started")
        process.send_signal(signal.SIGINT)
        done = await ended(process, timeout_s=10)
    assert (done.code, done.stderr) == (0, "")
    assert not (tmp_path / "lab/kvm03.log").exists(), "it did not first finish what it had begun"


async def test_a_lab_keeps_away_from_the_broker_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("KVMCTL_MQTT_URL", "KVMD_MQTT_URL"):
        monkeypatch.setenv(name, "mqtt://127.0.0.1:1")
    monkeypatch.setenv("KVMD_HOST", "production")
    async with Lab(tmp_path / 'a "b" c', hosts=1) as lab:
        await eventually(lambda: lab.url in (lab.folder / "controller.log").read_text(), what="the controller tells")
        done = await Kvmctl(lab.url, tmp_path).run("hosts", "--json", "--mqtt", lab.url)
    assert [row["host"] for row in done.rows] == ["kvm01"]
    assert done.rows[0]["pools"][0]["path"] == str(lab.pool("kvm01"))


async def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = await Kvmctl("mqtt://127.0.0.1:1", tmp_path).run("lab", "--dir", str(tmp_path / "file/lab"))
    assert done.code == 2
    assert f"--dir {tmp_path}/file/lab: it cannot be made: Not a directory." in done.stderr
