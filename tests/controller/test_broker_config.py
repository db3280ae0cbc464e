"""The rules as data, their two dialects, and the command that writes them."""

from __future__ import annotations

import base64
import stat
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.client import topic_matches_sub

from controller.brokerconfig.access import Access, Identities, accesses
from controller.brokerconfig.nats import subjects
from controller.brokerconfig.site import Listener, Site
from controller.errors import UsageError
from controller.keys.keyring import FleetKeys
from controller.keys.register import EnrolledHost, Publisher
from kvmwire.topics import Topics
from tests.controller.kvmctl import Kvmctl

TOPICS = Topics()
NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,8}", fullmatch=True).filter(
    lambda name: name not in {"all", "host"}
)


@pytest.fixture
def kvmctl(tmp_path: Path) -> Kvmctl:
    """Give a command line without a broker: this command needs none."""
    return Kvmctl("mqtt://127.0.0.1:9", tmp_path)


def of(name: str, identities: Identities) -> Access:
    """Give the rules of one identity."""
    (found,) = (one for one in accesses(TOPICS, identities) if one.name == name)
    return found


@given(st.lists(NAMES, min_size=2, max_size=2, unique=True))
def test_nothing_that_is_a_hosts_own_fits_the_rules_of_another(hosts: list[str]) -> None:
    one, other = hosts
    access = of(one, Identities(hosts=(one, other)))
    status = [f"kvmd/v1/status/{other}/{rest}" for rest in ("host", "receipt/e", "replica/p/t")]
    events = [f"kvmd/v1/{kind}/host/{other}/x" for kind in ("deploy", "credential", "command")]

    for topic in (*status, *events):
        assert not any(topic_matches_sub(rule, topic) for rule in (*access.publishes, *access.reads))
        assert not any(topic_matches_sub(rule, topic) for rule in access.subscriptions)


@given(NAMES)
def test_a_host_may_ask_for_just_what_the_daemon_subscribes(host: str) -> None:
    access = of(host, Identities(hosts=(host,), controllers=()))

    assert access.subscriptions == TOPICS.event_filters(host)


@given(st.lists(st.lists(NAMES, min_size=1, max_size=4).map("/".join), min_size=2, max_size=2, unique=True))
def test_different_topics_are_different_subjects(topics: list[str]) -> None:
    one, other = (subjects(topic) for topic in topics)

    assert len(one) == len(other) == 1
    assert one != other


@pytest.mark.parametrize(
    ("topic_filter", "expected"),
    [
        ("kvmd/v1/register/+", ["kvmd.v1.register.*"]),
        ("kvmd/v1/+/host/kvm01.example/+", ["kvmd.v1.*.host.kvm01//example.*"]),
        ("kvmd/v1/#", ["kvmd.v1", "kvmd.v1.>"]),
    ],
)
def test_a_filter_as_a_subject(topic_filter: str, expected: list[str]) -> None:
    assert subjects(topic_filter) == expected


@pytest.mark.parametrize(
    ("identities", "words"),
    [
        ({"hosts": ("kvm01",), "publishers": ("kvm01",)}, "kvm01: named more than once"),
        ({"hosts": ("controller",)}, "controller: named more than once"),
        ({"hosts": ("kvm01", "kvm01")}, "kvm01: named more than once"),
        ({"hosts": ("all",)}, "a host cannot be named 'all'"),
        ({"hosts": ("host",)}, "a host cannot be named 'host'"),
        ({"hosts": ("kvm01/#",)}, "'kvm01/#' is no name"),
        ({"publishers": ("a\nuser controller",)}, "is no name"),
        ({"controllers": ("+",)}, "'+' is no name"),
    ],
)
def test_names_that_would_share_rights_are_refused(identities: dict[str, tuple[str, ...]], words: str) -> None:
    with pytest.raises(UsageError) as refused:
        Identities(**identities)

    assert words in refused.value.message
    assert "nothing was written" in refused.value.message


@pytest.mark.parametrize("text", ["0.0.0.0:8883", "[::]:8883", "broker.example:1"])
def test_a_listener_is_written_as_it_was_read(text: str) -> None:
    assert str(Listener.parse(text)) == text


@pytest.mark.parametrize("text", ["8883", "0.0.0.0", "0.0.0.0:0", "0.0.0.0:65536", "::8883", "a b:1", "a:1\nuser x"])
def test_what_is_no_listener_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="expected ADDRESS:PORT"):
        Listener.parse(text)


@pytest.mark.parametrize("path", ["ca.pem", "/a\nb", '/a"b', "/a\\b", "/a "])
def test_paths_that_a_line_cannot_hold_are_refused(path: str) -> None:
    good = PurePosixPath("/etc/x.pem")
    with pytest.raises(UsageError, match="expected an absolute path"):
        Site(ca=PurePosixPath(path), cert=good, key=good)


@pytest.mark.parametrize(
    ("broker", "files"), [("mosquitto", ["kvmd.acl", "kvmd.conf"]), ("nats", ["nats-server.conf"])]
)
async def test_out_writes_files_that_the_brokers_user_can_read(
    kvmctl: Kvmctl, tmp_path: Path, broker: str, files: list[str]
) -> None:
    out = tmp_path / "new" / "folder"
    for host in ("kvm01", "kvm02"):
        done = await kvmctl.run("broker-config", broker, "--host", host, "--out", str(out))

        assert (done.code, done.stdout) == (0, ""), done.stderr
        assert sorted(path.name for path in out.iterdir()) == files
        assert {stat.S_IMODE(path.stat().st_mode) for path in out.iterdir()} == {0o644}
    text = "".join(path.read_text() for path in out.iterdir())
    assert "kvm02" in text
    assert "kvm01" not in text
    assert str(out / files[-1]) in done.stderr
    assert "SIGHUP" in done.stderr


async def test_without_out_the_files_are_printed(kvmctl: Kvmctl) -> None:
    done = await kvmctl.run("broker-config", "mosquitto", "--host", "kvm01", "--publisher", "portal")

    assert done.code == 0, done.stderr
    assert "listener 8883 0.0.0.0\n" in done.stdout
    for user in ("controller", "portal", "kvm01"):
        assert f"\nuser {user}\n" in done.stdout
    assert "pattern" not in done.stdout
    assert "crlfile /" not in done.stdout


async def test_json_gives_a_file_a_line(kvmctl: Kvmctl, tmp_path: Path) -> None:
    printed = await kvmctl.run("broker-config", "nats", "--json", "--store", "/srv/nats")
    written = await kvmctl.run("broker-config", "nats", "--json", "--out", str(tmp_path))

    ((row,), (kept,)) = printed.rows, written.rows
    assert (row["kind"], row["path"]) == ("file", "/etc/nats/nats-server.conf")
    assert 'store_dir: "/srv/nats"' in row["text"]
    assert kept["written"] == str(tmp_path / "nats-server.conf")


async def test_the_prefix_of_the_settings_is_the_prefix_of_the_rules(kvmctl: Kvmctl) -> None:
    kvmctl.set_env(KVMCTL_MQTT_PREFIX="site.7/kvmd")

    done = await kvmctl.run("broker-config", "nats", "--host", "kvm01")

    assert '"site//7.kvmd.status.kvm01.>"' in done.stdout
    assert "kvmd.v1" not in done.stdout


@pytest.fixture
def fleet(kvmctl: Kvmctl) -> FleetKeys:
    """Make a fleet of two hosts and two publishers, one of each revoked."""
    now = datetime.now(UTC)
    keys = FleetKeys.create(kvmctl.state / "fleet", broker_names=["127.0.0.1"], now=now)
    register = keys.register
    sealing = base64.b64encode(bytes(32)).decode()
    for name, revoked in (("kvm01", None), ("kvm02", now)):
        register = register.with_host(EnrolledHost(name=name, sealing=sealing, enrolled=now, revoked=revoked))
    for name, revoked in (("portal", None), ("script", now)):
        register = register.with_publisher(Publisher(name=name, keyid="k", enrolled=now, revoked=revoked))
    keys.save(register)
    return keys


@pytest.mark.usefixtures("fleet")
@pytest.mark.parametrize("broker", ["mosquitto", "nats"])
async def test_the_fleets_hosts_and_publishers_are_listed_but_for_revoked_ones(kvmctl: Kvmctl, broker: str) -> None:
    done = await kvmctl.run("broker-config", broker, "--host", "extra", "--host", "kvm01")

    assert "2 hosts, controllers controller, publishers portal" in done.stderr
    for name, is_listed in (("kvm01", True), ("extra", True), ("portal", True), ("kvm02", False), ("script", False)):
        assert (name in done.stdout) is is_listed


@pytest.mark.usefixtures("fleet")
@pytest.mark.parametrize("words", [("--host", "kvm02"), ("--publisher", "script")])
async def test_a_revoked_name_is_not_let_in_by_an_option(kvmctl: Kvmctl, words: tuple[str, str]) -> None:
    done = await kvmctl.run("broker-config", "nats", *words)

    assert (done.code, done.stdout) == (2, "")
    assert f"{words[1]}: revoked in the fleet" in done.stderr


async def test_a_fleet_brings_its_certificates_and_its_revocation_list(
    kvmctl: Kvmctl, fleet: FleetKeys, tmp_path: Path
) -> None:
    done = await kvmctl.run("broker-config", "mosquitto", "--out", str(tmp_path / "out"))

    assert "\ncrlfile /etc/mosquitto/certs/crl.pem\n" in (tmp_path / "out" / "kvmd.conf").read_text()
    for name in ("ca.pem", "broker.pem", "crl.pem", "broker.key"):
        assert (fleet.folder / name).exists()
        assert f"{fleet.folder / name} /etc/mosquitto/certs/{name}" in done.stderr


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("nats", "--crl", "/etc/crl.pem"), "--crl is for mosquitto alone"),
        (("nats", "--acl", "/etc/acl"), "--acl is for mosquitto alone"),
        (("mosquitto", "--store", "/srv"), "--store is for nats alone"),
        (("mosquitto", "--listen", "8883"), "expected ADDRESS:PORT"),
        (("mosquitto", "--acl", "kvmd.acl"), "expected an absolute path"),
        (("nats", "--store", "nats"), "expected an absolute path"),
        (("nats", "--host", "controller"), "named more than once"),
    ],
)
async def test_what_cannot_be_written_is_a_usage_error_and_leaves_no_file(
    kvmctl: Kvmctl, tmp_path: Path, words: tuple[str, ...], expected: str
) -> None:
    out = tmp_path / "out"

    done = await kvmctl.run("broker-config", *words, "--out", str(out))

    assert done.code == 2
    assert expected in done.stderr
    assert not out.exists()


async def test_a_folder_that_cannot_be_written_is_named(kvmctl: Kvmctl, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    done = await kvmctl.run("broker-config", "nats", "--out", str(tmp_path / "file"))

    assert done.code == 2
    assert f"--out {tmp_path / 'file'}" in done.stderr
