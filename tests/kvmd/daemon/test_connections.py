"""The broker comes, goes, forgets and refuses; the host's work goes on and its last word arrives."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.kvmd.daemon.harness import HOST, PREFIX, Daemon, Site, record, running, sha256, site
from tests.support import images
from tests.support.brokers import Broker, MosquittoBroker, NatsBroker
from tests.support.hostile import HostileServer
from tests.support.relay import Relay
from tests.support.tls import Authority
from tests.support.waiting import eventually

IMAGE = images.qcow2(data_size=512 << 10)
HOST_TOPIC = f"{PREFIX}/status/{HOST}/host"


async def test_the_birth_is_retained_and_describes_the_host(broker: Broker, tmp_path: Path) -> None:
    tables = {"labels": {"zone": "lab"}}
    async with running(Daemon(tmp_path / "kvm01", broker.url, tables=tables)) as daemon, site(broker) as late:
        birth = await late.watch.host("online")

        assert (birth.labels, birth.protocols) == ({"zone": "lab"}, ("http", "https"))
        (pool,) = birth.pools
        assert (pool.name, pool.type, pool.path, pool.state) == ("default", "directory", str(daemon.pool), "active")
        assert pool.available
        assert birth.started
        assert next(one for one in late.client.messages if one.topic == HOST_TOPIC).retain


async def test_a_killed_daemon_is_announced_by_its_last_will(kvmd: Daemon, lab: Site, broker: Broker) -> None:
    await lab.watch.host("online")

    await kvmd.kill()

    await lab.watch.host("offline")
    async with site(broker) as late:
        await late.watch.host("offline")
    before = len(lab.client.messages)
    await kvmd.start()
    await eventually(
        lambda: any(m.topic == HOST_TOPIC and b"online" in m.payload for m in lab.client.messages[before:]),
        what="online again",
    )


async def test_a_clean_stop_says_offline(kvmd: Daemon, lab: Site) -> None:
    await lab.watch.host("online")

    assert await kvmd.stop() == 0

    await lab.watch.host("offline")


async def test_selected_labels_reach_the_host(
    broker: Broker, lab: Site, tmp_path: Path, hostile: HostileServer
) -> None:
    hostile.add("disk.qcow2", IMAGE)
    template = record("deb12", hostile.url("disk.qcow2"), IMAGE)
    async with running(Daemon(tmp_path / "kvm01", broker.url, tables={"labels": {"zone": "lab", "rack": "7"}})):
        await lab.deploy(template, hosts={"labels": {"zone": "lab"}})

        await lab.watch.replica("deb12", "ready")


@pytest.mark.usefixtures("kvmd")
async def test_a_wiped_broker_hears_everything_again(broker: Broker, hostile: HostileServer) -> None:
    hostile.add("disk.qcow2", IMAGE)
    async with site(broker) as before:
        await before.register("deb12", hostile.url("disk.qcow2"), checksum=sha256(IMAGE))
        await before.deploy("deb12")
        await before.watch.replica("deb12", "ready")
        await before.watch.probe("deb12")
    requests = len(hostile.requests)

    await asyncio.to_thread(broker.restart, wipe=True)

    async with site(broker) as after:
        await after.watch.host("online")
        assert (await after.watch.replica("deb12", "ready")).checksum == sha256(IMAGE)
        assert (await after.watch.probe("deb12")).verdict == "good"
        again = await after.register("other", hostile.url("disk.qcow2"))
        assert (await after.watch.receipt(again)).outcome == "accepted"
        await after.watch.probe("other")
    assert len(hostile.requests_for("disk.qcow2")) == requests + 1


@pytest.mark.usefixtures("kvmd")
async def test_a_broker_that_is_wiped_in_mid_download_changes_nothing(broker: Broker, hostile: HostileServer) -> None:
    hostile.add("disk.qcow2", IMAGE)
    async with site(broker) as before:
        await before.deploy(record("deb12", hostile.url("disk.qcow2", hold="200000@2-"), IMAGE))
        await eventually(lambda: hostile.holding("disk.qcow2"), what="the download is under way")

    await asyncio.to_thread(broker.restart, wipe=True)
    hostile.release("disk.qcow2")

    async with site(broker) as after:
        await after.watch.replica("deb12", "ready")
    assert hostile.bytes_sent("disk.qcow2") < 2 * len(IMAGE)


async def test_a_cut_connection_does_not_disturb_a_download(
    broker: Broker, lab: Site, tmp_path: Path, hostile: HostileServer
) -> None:
    hostile.add("disk.qcow2", IMAGE)
    async with Relay(broker.port) as relay:
        url = f"mqtt://127.0.0.1:{relay.port}"
        async with running(Daemon(tmp_path / "kvm01", url)) as daemon:
            await lab.deploy(record("deb12", hostile.url("disk.qcow2", hold="200000@2-"), IMAGE))
            await eventually(lambda: hostile.holding("disk.qcow2"), what="the download is under way")

            await relay.refuse()
            relay.cut()
            hostile.release("disk.qcow2")
            await eventually(lambda: daemon.volume("deb12").exists(), what="the volume is there")
            await daemon.has_logged("replica", state="ready")
            assert "ready" not in lab.watch.states("deb12")
            await relay.accept()

            await lab.watch.replica("deb12", "ready")
            states = lab.watch.states("deb12")
            way = ["queued", "probing", "downloading", "verifying", "committing", "ready"]
            assert states == [one for one in way if one in states]
            assert relay.accepted >= 2


async def test_a_broker_that_comes_late_is_waited_for(
    broker_kind: type[Broker], tmp_path: Path, hostile: HostileServer
) -> None:
    hostile.add("disk.qcow2", IMAGE)
    late = broker_kind(tmp_path / "broker")
    async with running(Daemon(tmp_path / "kvm01", late.url), is_connected=False) as daemon:
        await daemon.has_logged("broker not reachable", times=2)
        assert daemon.process.running
        with late:
            async with site(late) as lab:
                await lab.deploy(record("deb12", hostile.url("disk.qcow2"), IMAGE))

                await lab.watch.replica("deb12", "ready")


@pytest.mark.parametrize("version", ["auto", "5", "3.1.1"])
async def test_both_versions_of_mqtt_work_where_the_broker_has_them(
    broker: Broker, lab: Site, tmp_path: Path, hostile: HostileServer, version: str
) -> None:
    hostile.add("disk.qcow2", IMAGE)
    works = broker.supports_v5 or version != "5"
    spoken = "V5" if broker.supports_v5 and version != "3.1.1" else "V311"
    daemon = Daemon(tmp_path / "kvm01", broker.url, tables={"mqtt": {"version": version}})
    async with running(daemon, is_connected=works):
        if not works:
            await daemon.has_logged("broker not reachable", times=2)
            return
        await daemon.has_logged("broker connected", mqtt=spoken)
        await lab.deploy(record("deb12", hostile.url("disk.qcow2"), IMAGE))
        await lab.watch.replica("deb12", "ready")
        await daemon.kill()
        await lab.watch.host("offline")


async def test_tls_with_ca_and_client_certificate(
    broker_kind: type[Broker], tmp_path: Path, authority: Authority, hostile: HostileServer
) -> None:
    hostile.add("disk.qcow2", IMAGE)
    files = {
        "ca": str(authority.ca_file),
        "cert": str(authority.client.certificate),
        "key": str(authority.client.key),
    }
    with broker_kind(tmp_path / "broker", authority=authority) as broker:
        async with site(broker) as lab, running(Daemon(tmp_path / "kvm01", broker.url, tables={"mqtt": files})):
            await lab.deploy(record("deb12", hostile.url("disk.qcow2"), IMAGE))

            await lab.watch.replica("deb12", "ready")


async def test_a_broker_with_an_unknown_ca_is_refused_and_named(
    broker_kind: type[Broker], tmp_path: Path, authority: Authority
) -> None:
    with broker_kind(tmp_path / "broker", authority=authority) as broker:
        async with running(Daemon(tmp_path / "kvm01", broker.url), is_connected=False) as daemon:
            await daemon.has_logged("broker not reachable", times=2)

            assert "certificate verify failed" in daemon.logged("broker not reachable")[0]["reason"]
            assert daemon.logged("broker connected") == []


async def test_username_and_password(broker_kind: type[Broker], tmp_path: Path, hostile: HostileServer) -> None:
    hostile.add("disk.qcow2", IMAGE)
    password_file = tmp_path / "password"
    password_file.write_text("let me in\n")
    password_file.chmod(0o600)
    login = {"username": "host", "password_file": str(password_file)}
    with broker_kind(tmp_path / "broker", username="host", password="let me in") as broker:
        async with (
            site(broker) as lab,
            running(Daemon(tmp_path / "kvm01", broker.url, tables={"mqtt": login})) as daemon,
        ):
            await lab.deploy(record("deb12", hostile.url("disk.qcow2"), IMAGE))

            await lab.watch.replica("deb12", "ready")
            assert "let me in" not in daemon.process.log_text()
            assert "let me in" not in "".join(daemon.python().cmdline())


async def test_a_wrong_password_is_told_and_tried_again(broker_kind: type[Broker], tmp_path: Path) -> None:
    password_file = tmp_path / "password"
    password_file.write_text("guess\n")
    password_file.chmod(0o600)
    login = {"username": "host", "password_file": str(password_file)}
    with broker_kind(tmp_path / "broker", username="host", password="let me in") as broker:
        daemon = Daemon(tmp_path / "kvm01", broker.url, tables={"mqtt": login})
        async with running(daemon, is_connected=False):
            await daemon.has_logged("broker not reachable", times=2)

            assert "authori" in daemon.logged("broker not reachable")[0]["reason"].lower()
            assert daemon.process.running


async def test_a_refused_subscription_is_told_and_tried_again(tmp_path: Path) -> None:
    broker = NatsBroker(tmp_path / "broker")
    user = 'user: host, password: secret, permissions: { subscribe: { deny: "kvmd.v1.register.*" } }'
    with broker.config.open("a") as file:
        file.write(f"authorization {{ users: [ {{ {user} }} ] }}\n")
    password_file = tmp_path / "password"
    password_file.write_text("secret\n")
    password_file.chmod(0o600)
    login = {"username": "host", "password_file": str(password_file)}
    daemon = Daemon(tmp_path / "kvm01", broker.url, tables={"mqtt": login})
    with broker:
        async with running(daemon, is_connected=False):
            await daemon.has_logged("broker not reachable", times=2)

            told = daemon.logged("broker not reachable")[0]["reason"]
            assert "refused the subscription" in told
            assert f"{PREFIX}/register/+" in told


async def test_a_refused_publication_is_an_error_in_the_log(tmp_path: Path) -> None:
    broker = MosquittoBroker(tmp_path / "broker")
    access = tmp_path / "access"
    access.write_text("topic read #\n")
    access.chmod(0o600)
    with broker.config.open("a") as file:
        file.write(f"acl_file {access}\n")
    with broker:
        async with running(Daemon(tmp_path / "kvm01", broker.url)) as daemon:
            await daemon.has_logged("the broker refused what we published", level="error")


async def test_a_certificate_that_the_broker_refuses_is_told_at_once(tmp_path: Path, authority: Authority) -> None:
    (tmp_path / "other").mkdir()
    stranger = Authority(tmp_path / "other").client
    with MosquittoBroker(tmp_path / "broker", authority=authority) as broker:
        files = {"ca": str(authority.ca_file), "cert": str(stranger.certificate), "key": str(stranger.key)}
        async with running(
            Daemon(tmp_path / "kvm01", broker.url, tables={"mqtt": files}), is_connected=False
        ) as daemon:
            await eventually(
                lambda: "does not accept this host's certificate" in daemon.process.log_text(), timeout_s=5
            )
