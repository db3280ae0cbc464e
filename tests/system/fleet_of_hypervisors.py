"""Four hosts with a libvirtd each, in namespaces of their own, and a hub with the broker, the controller and the origin."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.controller.kvmctl import Ended
from tests.kvmd.daemon.harness import Daemon, sha256
from tests.support.libvirtd import Libvirtd
from tests.support.namespaces import HUB, Network
from tests.support.processes import ChildProcess
from tests.support.programs import require_program
from tests.support.waiting import eventually_blocking

HOSTS = ("kvm01", "kvm02", "kvm03", "kvm04")
SMALL = "kvm03"
"""The pool of this host is a filesystem of its own, which a test may fill."""
SMALL_SIZE = 4 << 20
_SLOWLY = 150 << 10
"""Bytes a second and connection that the origin sends below ``/slow/``: a template of 640 KiB takes seconds."""


class Hypervisor:
    """A host: its libvirtd, the folder of its only pool, and its daemon."""

    def __init__(self, name: str, folder: Path, network: Network, broker: str) -> None:
        self.name = name
        self.libvirtd = Libvirtd(host=name, wrapper=network.inside(name))
        self.pool = self.libvirtd.shared / "images"
        self._folder = folder
        self._broker = broker
        self._parts = ExitStack()

    def start(self) -> None:
        """Start libvirtd, define the pool, and start the daemon beside it."""
        self._parts.enter_context(self.libvirtd)
        self.pool.mkdir()
        if self.name == SMALL:
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SMALL_SIZE}", "tmpfs", self.pool], check=True)
        self.libvirtd.define_pool(
            f"<pool type='dir'><name>images</name><target><path>{self.pool}</path></target></pool>"
        )
        uri = self.libvirtd.uri
        tables = {
            "machines": {"uri": uri, "type": "qemu", "network": "none"},
            "pools": {"default": {"type": "libvirt", "uri": uri, "pool": "images"}},
        }
        daemon = Daemon(self._folder, self._broker, host=self.name, tables=tables, wrapper=self.libvirtd.inside())
        self._parts.enter_context(daemon)
        eventually_blocking(
            lambda: daemon.logged("broker connected"),
            what=f"{self.name} is connected; log: {daemon.process.log_text()[-3000:]}",
        )

    def end(self) -> None:
        """End all of it. Raises AssertionError where the daemon has met a defect."""
        self._parts.close()

    def console(self, machine: str) -> str:
        """Give what a machine has written."""
        path = self.pool / f"{machine}+console.log"
        return path.read_text(errors="replace") if path.exists() else ""


class Fleet:
    """All of it; ``hosts`` by name."""

    def __init__(self, folder: Path, network: Network) -> None:
        self.network = network
        self.origin = folder / "origin"
        (self.origin / "slow").mkdir(parents=True)
        broker = f"mqtt://{network.address(HUB)}:1883"
        self.hosts = {name: Hypervisor(name, folder / name, network, broker) for name in HOSTS}
        self.env = {"HOME": str(folder), "KVMCTL_STATE_DIR": str(folder / "controller"), "KVMCTL_MQTT_URL": broker}
        self._folder = folder

    @contextlib.contextmanager
    def running(self) -> Generator[None]:
        """Run everything, the hosts side by side."""
        with ExitStack() as parts:
            for part in self._hub():
                parts.enter_context(part)
            with ThreadPoolExecutor(len(HOSTS)) as threads:
                for host in self.hosts.values():
                    parts.callback(host.end)
                for started in [threads.submit(host.start) for host in self.hosts.values()]:
                    started.result()
            yield

    def register(self, name: str, content: bytes, *, is_slow: bool = False, **options: str) -> None:
        """Let the origin serve a template, and register it with the hosts."""
        path = f"slow/{name}" if is_slow else name
        (self.origin / path).write_bytes(content)
        words = [word for option, value in options.items() for word in (f"--{option}", value)]
        url = f"http://{self.network.address(HUB)}/{path}"
        done = self.kvmctl("register", name, url, "--checksum", sha256(content), *words, "--wait")
        assert done.code == 0, done.stdout + done.stderr

    def kvmctl(self, *words: str | Path) -> Ended:
        """Run a command at the hub, to its end."""
        with self.kvmctl_started(*words) as process:
            stdout, stderr = process.communicate(timeout=60)
            return Ended(process.returncode, stdout, stderr)

    @contextlib.contextmanager
    def kvmctl_started(self, *words: str | Path) -> Generator[subprocess.Popen[str]]:
        """Start a command at the hub."""
        command = [*self.network.inside(HUB), sys.executable, "-m", "controller", *map(str, words)]
        with subprocess.Popen(
            command, env={**os.environ, **self.env}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def machine(self, **values: Any) -> Path:
        """Write a machine's file."""
        path = self._folder / f"{values['name']}.json"
        path.write_text(json.dumps({"memory_mib": 64, **values}))
        return path

    def machines(self, name: str) -> Mapping[str, Mapping[str, Any]]:
        """Give what hosts say of a machine, by host."""
        rows = self.kvmctl("machine", "list", "--json").rows
        return {row["host"]: row for row in rows if row["name"] == name}

    def _hub(self) -> list[ChildProcess]:
        inside, address, folder = self.network.inside(HUB), self.network.address(HUB), self._folder
        (folder / "mosquitto.conf").write_text(f"listener 1883 {address}\nallow_anonymous true\nuser root\n")
        (folder / "nginx.conf").write_text(
            f"""
            daemon off; master_process off; user root; pid {folder}/nginx.pid;
            events {{ worker_connections 128; }}
            http {{
                access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
                fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
                server {{ listen {address}:80; root {self.origin}; location /slow/ {{ limit_rate {_SLOWLY}; }} }}
            }}
            """
        )
        commands: dict[str, list[str | Path]] = {
            "mosquitto": [require_program("mosquitto"), "-c", folder / "mosquitto.conf"],
            "nginx": [require_program("nginx"), "-p", folder, "-c", folder / "nginx.conf", "-e", "stderr"],
            "controller": [sys.executable, "-m", "controller", "serve"],
        }
        return [
            ChildProcess([*inside, *command], log=folder / f"{name}.log", env=self.env)
            for name, command in commands.items()
        ]
