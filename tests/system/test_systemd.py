"""kvmd as the how-to installs it, under a real systemd: broker, controller, daemon and inspector in their units."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import bootable, images
from tests.support.keys import Keys
from tests.support.programs import require_program
from tests.support.tls import Authority
from tests.support.waiting import eventually_blocking
from tests.system.containers import Container
from tests.system.installing import gather, install_commands

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]

POOL = "/var/lib/libvirt/images"
IMAGE = images.qcow2(data_size=2 << 20)
BROKEN = bytearray(images.qcow2())
BROKEN[2 * 65536 : 2 * 65536 + 2] = b"\0\0"

MOSQUITTO = """
listener 8883
cafile /etc/kvmd/ca.pem
certfile /etc/mosquitto/broker.pem
keyfile /etc/mosquitto/broker.key
require_certificate true
use_identity_as_username true
allow_anonymous false
"""
KVMD = """
[mqtt]
url = "mqtts://localhost:8883"
ca = "/etc/kvmd/ca.pem"
cert = "/etc/kvmd/mqtt.pem"
key = "keys/mqtt.key"
[policy]
allowed_networks = ["127.0.0.0/8", "::1/128"]
[metrics]
listen = "127.0.0.1:9105"
[pools.default]
path = "/var/lib/libvirt/images"
[pools.other]
path = "/srv/images"
[pools.raw]
path = "/var/lib/libvirt/images/raw"
format = "raw"
"""
KVMCTL = """
[mqtt]
url = "mqtts://localhost:8883"
ca = "/etc/kvmd/ca.pem"
cert = "/etc/kvmd/controller.pem"
key = "/etc/kvmd/controller.key"
"""
MACHINES = """
[machines]
uri = "qemu:///system"
type = "qemu"
network = "none"
"""
QEMU = """
security_driver = "none"
cgroup_controllers = []
"""
"""All else is Debian's: QEMU runs as libvirt-qemu, virtlogd writes the consoles, polkit lets the group libvirt in."""
SIGNED_ONLY = "/etc/kvmd/kvmd.toml.d/signed.toml"
TAKEN_OVER = """#!/bin/sh
exec 9>&2 2>/dev/null
{
  id -u
  head -c 3 "$6"; echo
  (printf x >>"$6") && echo WRITTEN
  (echo x >/etc/x) && echo MADE
  bash -c ': >/dev/tcp/127.0.0.1/8883' && echo REACHED
  cat /etc/kvmd/kvmd.toml /etc/passwd
  ls /var /srv /home /run
  grep -E 'Cap(Bnd|Eff)|Seccomp:' /proc/self/status
} >&9
exit 1
"""
"""Stands in for qemu-img, tells who it is and tries what it may not."""


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    """Boot a machine and install a broker, an origin, the controller and the host."""
    for program in ("mosquitto", "nginx", "qemu-img"):
        require_program(program)
    folder = tmp_path_factory.mktemp("systemd")
    source = folder / "source"
    source.mkdir()
    gather(source, extra="libvirt")
    authority = Authority(tmp_path_factory.mktemp("authority"))
    with Container(folder / "machine", source) as booted:
        _install(booted)
        _set_up(booted, authority)
        yield booted


def _install(machine: Container) -> None:
    """Follow the how-to; the packages come from the folder instead of an index."""
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    for command in install_commands("The host"):
        machine.run(f"cd /source; {command}")
        if command.startswith("python3 -m venv"):
            machine.run(f"cp -r /source/packages/. /opt/kvmd/lib/{version}/site-packages/")
    for command in install_commands("The controller"):
        if not command.startswith("systemctl enable"):
            machine.run(f"cd /source; {command}")


def _set_up(machine: Container, authority: Authority) -> None:
    host, controller = (authority.issue(f"{name}@kvmd.test", common_name=name) for name in ("kvm01", "controller"))
    machine.write("/etc/kvmd/ca.pem", authority.ca_file.read_bytes())
    machine.write("/etc/kvmd/mqtt.pem", host.certificate.read_bytes())
    machine.write("/etc/kvmd/keys/mqtt.key", host.key.read_bytes(), mode="600")
    machine.write("/etc/kvmd/controller.pem", controller.certificate.read_bytes())
    machine.write("/etc/kvmd/controller.key", controller.key.read_bytes(), mode="600")
    machine.run(
        "chown kvmd-controller: /etc/kvmd/controller.key; install -d -o kvmd -m 755 /srv/images /var/lib/libvirt/images/raw"
    )
    machine.write("/etc/kvmd/kvmd.toml", KVMD)
    machine.write("/etc/kvmd/kvmctl.toml", KVMCTL)
    machine.write("/etc/mosquitto/broker.pem", authority.server.certificate.read_bytes())
    machine.write("/etc/mosquitto/broker.key", authority.server.key.read_bytes(), mode="600")
    machine.run("chown mosquitto: /etc/mosquitto/broker.*")
    machine.write("/etc/mosquitto/conf.d/kvmd.conf", MOSQUITTO)
    machine.write("/var/www/html/disk.qcow2", IMAGE)
    machine.write("/var/www/html/broken.qcow2", bytes(BROKEN))
    machine.write("/etc/systemd/system/kvmd.service.d/watchdog.conf", "[Service]\nWatchdogSec=3\n")
    machine.run("systemctl daemon-reload; systemctl start mosquitto nginx")
    machine.run("systemctl enable --now kvmd-controller kvmd-inspector.socket kvmd")


def kvmctl(machine: Container, words: str, *, check: bool = True) -> str:
    """Run a command of the controller, beside ``kvmctl serve``."""
    return machine.run(f"kvmctl {words}", check=check, env={"KVMCTL_STATE_DIR": "/root/kvmctl"})


def deploy(machine: Container, name: str, file: str, *, pool: str = "default") -> dict[str, object]:
    """Register and deploy a template to all hosts, and give the replica's status once it rests."""
    kvmctl(machine, f"register {name} http://localhost/{file} --format qcow2")
    kvmctl(machine, f"deploy {name} --all --pool {pool}")
    eventually_blocking(
        lambda: replica(machine, name, pool).get("state") in {"ready", "failed", "waiting"},
        what=f"the replica of {name} rests",
        timeout_s=30,
    )
    return replica(machine, name, pool)


def replica(machine: Container, name: str, pool: str = "default") -> dict[str, object]:
    """Give a replica's status."""
    rows = [json.loads(line) for line in kvmctl(machine, "replicas --json", check=False).splitlines()]
    return next((row for row in rows if row.get("template") == name and row.get("pool") == pool), {})


def main_pid(machine: Container) -> int:
    """Give the daemon's process id, 0 where it does not run."""
    return int(machine.show("kvmd", "MainPID"))


def comes_back(machine: Container, pid: int) -> None:
    """Wait until another process is the daemon, and ready."""
    eventually_blocking(
        lambda: main_pid(machine) not in {0, pid} and machine.show("kvmd", "ActiveState") == "active",
        what="the daemon runs again",
        timeout_s=20,
    )


def test_all_units_run_shut_in(machine: Container) -> None:
    for unit in ("mosquitto", "kvmd-controller", "kvmd", "kvmd-inspector.socket"):
        assert machine.show(unit, "ActiveState") == "active", machine.run(f"journalctl --no-pager -u {unit}")
    eventually_blocking(lambda: "broker connected" in machine.show("kvmd", "StatusText"), what="the broker is reached")
    status = machine.run(f"cat /proc/{main_pid(machine)}/status")
    assert "CapBnd:\t0000000000000000" in status
    assert "NoNewPrivs:\t1" in status
    assert "Seccomp:\t2" in status
    assert machine.run("stat -c %U:%a /var/lib/kvmd").strip() == "kvmd:700"
    assert "kvmd_" in machine.run("curl -sf http://127.0.0.1:9105/metrics")


def test_an_image_is_deployed_and_was_inspected(machine: Container) -> None:
    before = int(machine.show("kvmd-inspector.socket", "NAccepted"))
    found = deploy(machine, "disk", "disk.qcow2")
    assert found["state"] == "ready", found
    assert machine.read(f"{POOL}/disk") == IMAGE
    assert machine.run(f"stat -c %U:%a {POOL}/disk").strip() == "kvmd:644"
    assert machine.run(f"setpriv --reuid nobody --clear-groups head -c 3 {POOL}/disk") == "QFI"
    assert int(machine.show("kvmd-inspector.socket", "NAccepted")) == before + 1
    assert machine.run("systemctl list-units --failed --no-legend 'kvmd*'") == ""


def test_an_image_is_converted_by_the_inspector(machine: Container) -> None:
    before = int(machine.show("kvmd-inspector.socket", "NAccepted"))
    found = deploy(machine, "flat", "disk.qcow2", pool="raw")
    assert (found["state"], found["format"], found["size"]) == ("ready", "raw", 16 << 20), found
    assert machine.read(f"{POOL}/raw/flat") == images.payload(2 << 20).ljust(16 << 20, b"\0")
    assert int(machine.run(f"stat -c %b {POOL}/raw/flat")) * 512 < 3 << 20
    assert machine.run(f"stat -c %U:%a {POOL}/raw/flat").strip() == "kvmd:644"
    assert int(machine.show("kvmd-inspector.socket", "NAccepted")) == before + 3  # looked at, measured, converted
    assert machine.run("systemctl list-units --failed --no-legend 'kvmd*'") == ""


def test_a_broken_image_is_refused_by_the_inspector(machine: Container) -> None:
    found = deploy(machine, "broken", "broken.qcow2")
    assert (found["state"], found["code"]) == ("failed", "IMAGE_INVALID")
    assert "refcount=0" in str(found["message"])


def test_a_qemu_img_that_an_image_took_over_can_do_nothing(machine: Container) -> None:
    machine.run("mv /usr/bin/qemu-img /usr/bin/qemu-img.real")
    try:
        machine.write("/usr/bin/qemu-img", TAKEN_OVER, mode="755")
        found = deploy(machine, "hostile", "disk.qcow2")
    finally:
        machine.run("mv -f /usr/bin/qemu-img.real /usr/bin/qemu-img")
    message = str(found["message"])
    assert found["code"] == "IMAGE_INVALID"
    words = message.split()
    user = next(int(word) for word in words if word.isdecimal() and int(word) > 1)
    assert user not in {0, int(machine.run("id -u kvmd"))}
    assert "QFI" in words
    assert "CapEff: 0000000000000000 CapBnd: 0000000000000000 Seccomp: 2" in message
    for word in ("WRITTEN", "REACHED", "MADE", "root:", "mqtts:", "libvirt"):
        assert word not in message


def test_the_daemon_writes_nowhere_but_into_state_and_pools(machine: Container) -> None:
    """As root, so that modes stop nothing, within what the unit lets the daemon see."""
    inside = f"nsenter -t {main_pid(machine)} -m --"
    for folder in ("/etc", "/etc/kvmd", "/usr/local/bin", "/opt/kvmd", "/var/lib", "/var/log", "/srv/images", "/"):
        assert "Read-only file system" in machine.run(f"{inside} touch {folder}/kvmd-was-here 2>&1", check=False), (
            folder
        )
    for folder in (POOL, "/var/lib/kvmd"):
        machine.run(f"{inside} touch {folder}/x; {inside} rm {folder}/x")
    machine.write(f"{POOL}/of-a-machine", "another's disk")
    as_kvmd = "setpriv --reuid kvmd --regid kvmd --clear-groups"
    assert "not permitted" in machine.run(f"{as_kvmd} rm -f {POOL}/of-a-machine 2>&1", check=False)
    assert "denied" in machine.run(f"{as_kvmd} cat /etc/kvmd/keys/mqtt.key 2>&1", check=False)


def test_a_pool_that_the_unit_does_not_name_waits_for_the_drop_in(machine: Container) -> None:
    found = deploy(machine, "disk", "disk.qcow2", pool="other")
    assert (found["state"], found["code"]) == ("waiting", "POOL_READONLY"), found
    machine.run("cp /source/systemd/kvmd.service.d/pools.conf /etc/systemd/system/kvmd.service.d/")
    machine.run("systemctl daemon-reload; systemctl restart kvmd")
    kvmctl(machine, "recheck disk")
    eventually_blocking(
        lambda: replica(machine, "disk", "other").get("state") == "ready", what="the replica is ready", timeout_s=30
    )
    assert machine.read("/srv/images/disk") == IMAGE


def test_signed_checksum_files_are_checked_by_gpgv(machine: Container, tmp_path: Path) -> None:
    sums = f"{hashlib.sha256(IMAGE).hexdigest()}  disk.qcow2\n".encode()
    with Keys() as keys:
        keys.make("publisher")
        keys.make("stranger")
        ring = keys.export(tmp_path / "keyring.gpg", "publisher").read_bytes()
        for name in ("publisher", "stranger"):
            machine.write(f"/var/www/html/{name}/disk.qcow2", IMAGE)
            machine.write(f"/var/www/html/{name}/SHA256SUMS", sums)
            machine.write(f"/var/www/html/{name}/SHA256SUMS.gpg", keys.sign(sums, name))
    machine.write("/etc/kvmd/keyring.gpg", ring)
    machine.write(SIGNED_ONLY, '[policy]\nkeyring = "/etc/kvmd/keyring.gpg"\nrequire_checksum = true\n')
    try:
        machine.run("systemctl restart kvmd")
        vouched = deploy(machine, "vouched", "publisher/disk.qcow2")
        forged = deploy(machine, "forged", "stranger/disk.qcow2")
    finally:
        machine.run(f"rm {SIGNED_ONLY}; systemctl restart kvmd")
    assert vouched["state"] == "ready", vouched
    assert (forged["state"], forged["code"]) == ("failed", "EVENT_SIGNATURE"), forged
    assert "gpgv says" in str(forged["message"])


def test_after_kill_9_it_comes_back_with_all_it_had(machine: Container) -> None:
    deploy(machine, "disk", "disk.qcow2")
    pid = main_pid(machine)
    machine.run("systemctl kill --signal=KILL --kill-whom=main kvmd")
    comes_back(machine, pid)
    eventually_blocking(
        lambda: replica(machine, "disk").get("state") == "ready", what="the replica is ready again", timeout_s=20
    )


def test_a_daemon_that_hangs_is_ended_by_the_watchdog(machine: Container) -> None:
    pid, restarts = main_pid(machine), int(machine.show("kvmd", "NRestarts"))
    machine.run(f"kill -STOP {pid}")
    comes_back(machine, pid)
    assert int(machine.show("kvmd", "NRestarts")) == restarts + 1
    assert "Watchdog timeout" in machine.run("journalctl --no-pager -u kvmd")


def test_without_keys_the_unit_starts_too(machine: Container) -> None:
    """A broker without TLS needs none; the folder is empty, but there."""
    machine.run("mv /etc/kvmd/keys/mqtt.key /root/; mv /etc/kvmd/kvmd.toml /root/")
    try:
        machine.write("/etc/kvmd/kvmd.toml", '[pools.default]\npath = "/var/lib/libvirt/images"\n')
        machine.run("systemctl restart kvmd")
        assert machine.show("kvmd", "ActiveState") == "active"
    finally:
        machine.run("mv /root/mqtt.key /etc/kvmd/keys/; mv /root/kvmd.toml /etc/kvmd/; systemctl restart kvmd")


def test_a_machine_runs_as_qemus_user_from_what_kvmds_user_made_and_leaves_nothing_behind(machine: Container) -> None:
    machine.write("/etc/libvirt/qemu.conf", QEMU)
    machine.write("/etc/kvmd/kvmd.toml.d/machines.toml", MACHINES)
    machine.write("/var/www/html/guest.qcow2", bootable.qcow2("a guest greets"))
    machine.write("/root/vm1.toml", 'name = "vm1"\nmemory_mib = 64\n')
    machine.run("usermod --append --groups libvirt kvmd; systemctl start libvirtd; systemctl restart kvmd")

    kvmctl(machine, "register guest http://localhost/guest.qcow2 --format qcow2")
    kvmctl(machine, "deploy guest --all --machine /root/vm1.toml --wait")

    assert machine.run("ps -o user:20= -C qemu-system-x86_64").strip() == "libvirt-qemu"
    assert machine.run(f"stat -c %U:%a {POOL}/guest {POOL}/vm1+root.qcow2").split() == ["kvmd:644", "libvirt-qemu:600"]
    eventually_blocking(
        lambda: "a guest greets" in kvmctl(machine, "machine console-log vm1"), what="the console", timeout_s=30
    )
    assert machine.read(f"{POOL}/guest") == bootable.qcow2("a guest greets")

    kvmctl(machine, "machine stop vm1")
    machine.run("virsh -c qemu:///system destroy vm1")
    machine.run(f"chown libvirt-qemu: {POOL}/vm1+root.qcow2")  # as it stays when the host loses its power
    machine.run(f"touch {POOL}/vm1+console.log.0")  # as virtlogd leaves it, which is root
    kvmctl(machine, "machine remove vm1 --wait")
    assert machine.run(f"find {POOL} -name '*+*'") == ""
    assert machine.run("virsh -c qemu:///system -q list --all --name; virsh -c qemu:///system -q pool-list --all") == ""
