"""``kvmctl enroll``: bundles as they are written, for new, renewed, reset and refused hosts, with and without the host's own keys."""

from __future__ import annotations

import json
import stat
import tarfile
import tomllib
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from controller.keys.keyring import FleetKeys
from kvmwire.enrolment import MODES, MQTT_KEY, SEALING_KEY, make_request, read_trust
from kvmwire.trust import keyid_of
from tests.controller.kvmctl import Ended, Kvmctl
from tests.controller.test_keys import assert_tells_no_secret, fleet_of


@pytest.fixture
async def kvmctl(tmp_path: Path) -> Kvmctl:
    """Give a command line with a fleet and without a broker."""
    kvmctl = Kvmctl("mqtt://127.0.0.1:9", tmp_path)
    assert (await kvmctl.run("keys", "init", "--broker-name", "broker.example")).code == 0
    return kvmctl


def members(path: Path) -> dict[str, int]:
    with tarfile.open(path) as archive:
        return {member.name: member.mode for member in archive if member.isreg()}


def read(path: Path, name: str) -> bytes:
    with tarfile.open(path) as archive:
        file = archive.extractfile(name)
        assert file is not None
        return file.read()


async def enrolled(kvmctl: Kvmctl, path: Path, *words: str) -> Path:
    done = await kvmctl.run("enroll", *words, "--out", str(path))
    assert done.code == 0, done.stderr
    return path


def crl_serials(keys: FleetKeys) -> set[int]:
    return {entry.serial_number for entry in x509.load_pem_x509_crl((keys.folder / "crl.pem").read_bytes())}


async def test_a_bundle_is_whole_and_its_parts_fit(kvmctl: Kvmctl, tmp_path: Path) -> None:
    path = await enrolled(kvmctl, tmp_path / "b.tar", "kvm01", "--label", "zone=a", "--pool-path", "/srv/images")

    certificate = x509.load_pem_x509_certificate(read(path, "mqtt.pem"))
    key, sealing = (load_pem_private_key(read(path, name), None) for name in (MQTT_KEY, SEALING_KEY))
    host = fleet_of(kvmctl).register.host("kvm01")
    assert members(path) == MODES
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert key.public_key() == certificate.public_key()
    assert isinstance(sealing, X25519PrivateKey)
    assert host is not None
    assert host.sealing_keyid == keyid_of(sealing.public_key().public_bytes_raw())
    assert certificate.subject.rfc4514_string() == "CN=kvm01"
    certificate.verify_directly_issued_by(fleet_of(kvmctl).authority.certificate)
    assert read_trust(read(path, "trust.toml")) == fleet_of(kvmctl).trust
    assert tomllib.loads(read(path, "kvmd.toml").decode()) == {
        "host": "kvm01",
        "labels": {"zone": "a"},
        "mqtt": {
            "url": "mqtts://broker.example:8883",
            "prefix": "kvmd/v1",
            "ca": "ca.pem",
            "cert": "mqtt.pem",
            "key": "keys/mqtt.key",
        },
        "trust": {"keys": "trust.toml", "sealing_key": "keys/sealing.key"},
        "policy": {"require_signature": True},
        "pools": {"default": {"type": "directory", "path": "/srv/images"}},
    }


async def test_a_bundle_is_readable_by_its_owner_alone_and_nothing_secret_is_told(
    kvmctl: Kvmctl, tmp_path: Path
) -> None:
    as_file = await enrolled(kvmctl, tmp_path / "b.tar", "kvm01")
    done = await kvmctl.run("enroll", "kvm02", "--out", str(tmp_path / "b"))

    folder = tmp_path / "b"
    assert stat.S_IMODE(as_file.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == stat.S_IMODE((folder / "keys").stat().st_mode) == 0o700
    assert {
        str(p.relative_to(folder)): stat.S_IMODE(p.stat().st_mode) for p in folder.rglob("*") if p.is_file()
    } == MODES
    assert_tells_no_secret(done, folder)


async def test_the_brokers_url_of_the_settings_goes_first_where_it_is_encrypted(kvmctl: Kvmctl, tmp_path: Path) -> None:
    out = tmp_path / "b.tar"

    done = await kvmctl.run("enroll", "kvm01", "--mqtt", "mqtts://[fd00::1]:1234", "--out", str(out))

    assert b'url = "mqtts://[fd00::1]:1234"' in read(out, "kvmd.toml")
    assert "connect to fd00::1, and the broker's certificate is for broker.example alone" in done.stderr


async def test_a_broker_that_its_certificate_names_is_no_reason_to_warn(kvmctl: Kvmctl, tmp_path: Path) -> None:
    done = await kvmctl.run(
        "enroll", "kvm01", "--mqtt", "mqtts://broker.example:1234", "--out", str(tmp_path / "b.tar")
    )

    assert (done.code, "warning" in done.stderr) == (0, False)


async def test_a_host_is_enrolled_once(kvmctl: Kvmctl, tmp_path: Path) -> None:
    await enrolled(kvmctl, tmp_path / "b.tar", "kvm01")

    done = await kvmctl.run("enroll", "kvm01", "--out", str(tmp_path / "c.tar"))

    assert done.code == 2
    assert "--renew" in done.stderr
    assert not (tmp_path / "c.tar").exists()


async def test_a_renewed_host_keeps_its_sealing_key_and_its_old_certificate_for_now(
    kvmctl: Kvmctl, tmp_path: Path
) -> None:
    await enrolled(kvmctl, tmp_path / "b.tar", "kvm01", "--label", "zone=a")
    before = fleet_of(kvmctl).register.host("kvm01")

    path = await enrolled(kvmctl, tmp_path / "c.tar", "kvm01", "--renew")

    after = fleet_of(kvmctl).register.host("kvm01")
    assert before is not None
    assert after is not None
    assert members(path).keys() == MODES.keys() - {SEALING_KEY}
    assert (after.sealing, after.labels) == (before.sealing, {"zone": "a"})
    assert [one.revoked for one in after.certificates] == [None, None]
    assert crl_serials(fleet_of(kvmctl)) == set()


async def test_a_reset_host_gets_new_keys_and_its_old_certificate_is_revoked(kvmctl: Kvmctl, tmp_path: Path) -> None:
    old = x509.load_pem_x509_certificate(read(await enrolled(kvmctl, tmp_path / "b.tar", "kvm01"), "mqtt.pem"))
    before = fleet_of(kvmctl).register.host("kvm01")

    path = await enrolled(kvmctl, tmp_path / "c.tar", "kvm01", "--reset")

    after = fleet_of(kvmctl).register.host("kvm01")
    assert before is not None
    assert after is not None
    assert members(path) == MODES
    assert after.sealing != before.sealing
    assert crl_serials(fleet_of(kvmctl)) == {old.serial_number}


@pytest.mark.parametrize("words", [("kvm09", "--renew"), ("all",), ("host",), ("controller",), ()])
async def test_a_host_that_cannot_be_is_refused(kvmctl: Kvmctl, tmp_path: Path, words: tuple[str, ...]) -> None:
    done = await kvmctl.run("enroll", *words, "--out", str(tmp_path / "b.tar"))

    assert done.code == 2
    assert fleet_of(kvmctl).hosts() == ()
    assert not (tmp_path / "b.tar").exists()


@pytest.mark.parametrize(
    "words", [("a b",), ("../x",), ("kvm01", "--pool-path", "x"), ("kvm01", "--pool-path", "/a/../b")]
)
async def test_words_that_make_no_sense_are_refused(kvmctl: Kvmctl, words: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit):
        await kvmctl.run("enroll", *words)


@pytest.mark.parametrize("name", ["b.tar", "b"])
async def test_what_is_there_is_not_overwritten_and_the_host_is_not_enrolled(
    kvmctl: Kvmctl, tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_text("mine")

    done = await kvmctl.run("enroll", "kvm01", "--out", str(tmp_path / name))

    assert done.code == 2
    assert (tmp_path / name).read_text() == "mine"
    assert fleet_of(kvmctl).hosts() == ()


@pytest.mark.parametrize("name", ["no/b.tar", "no/b"])
async def test_a_place_that_cannot_be_written_enrolls_nobody(kvmctl: Kvmctl, tmp_path: Path, name: str) -> None:
    done = await kvmctl.run("enroll", "kvm01", "--out", str(tmp_path / name))

    assert done.code == 2
    assert "cannot be written" in done.stderr
    assert fleet_of(kvmctl).hosts() == ()


def request_of(path: Path, host: str = "kvm01", sealing: X25519PrivateKey | None = None) -> ec.EllipticCurvePrivateKey:
    key = ec.generate_private_key(ec.SECP256R1())
    sealing = sealing or X25519PrivateKey.generate()
    path.write_bytes(make_request(host, key, sealing.public_key()).encode())
    return key


async def signed(kvmctl: Kvmctl, request: Path, out: Path, *words: str) -> Ended:
    return await kvmctl.run("enroll", "--sign", str(request), "--out", str(out), *words)


async def test_the_bundle_of_a_request_holds_no_private_key(kvmctl: Kvmctl, tmp_path: Path) -> None:
    key = request_of(tmp_path / "request.json")

    done = await signed(kvmctl, tmp_path / "request.json", tmp_path / "b.tar")

    assert done.code == 0, done.stderr
    assert members(tmp_path / "b.tar").keys() == MODES.keys() - {MQTT_KEY, SEALING_KEY}
    certificate = x509.load_pem_x509_certificate(read(tmp_path / "b.tar", "mqtt.pem"))
    assert certificate.public_key() == key.public_key()


async def test_a_request_of_another_host_than_named_is_refused(kvmctl: Kvmctl, tmp_path: Path) -> None:
    request_of(tmp_path / "request.json")

    done = await signed(kvmctl, tmp_path / "request.json", tmp_path / "b.tar", "kvm02")

    assert done.code == 2
    assert "the request is of the host kvm01" in done.stderr


async def test_a_forged_request_is_refused_with_its_code(kvmctl: Kvmctl, tmp_path: Path) -> None:
    path = tmp_path / "request.json"
    request_of(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), "host": "kvm02"}))

    done = await signed(kvmctl, path, tmp_path / "b.tar")

    assert done.code == 1
    assert "CREDENTIAL_INVALID" in done.stderr
    assert fleet_of(kvmctl).hosts() == ()


async def test_a_renewal_by_request_must_keep_the_sealing_key(kvmctl: Kvmctl, tmp_path: Path) -> None:
    sealing = X25519PrivateKey.generate()
    for name, key in (("first", sealing), ("same", sealing), ("other", None)):
        request_of(tmp_path / name, sealing=key)

    first = await signed(kvmctl, tmp_path / "first", tmp_path / "a.tar")
    same = await signed(kvmctl, tmp_path / "same", tmp_path / "b.tar", "--renew")
    other = await signed(kvmctl, tmp_path / "other", tmp_path / "c.tar", "--renew")
    reset = await signed(kvmctl, tmp_path / "other", tmp_path / "d.tar", "--reset")

    assert [first.code, same.code, other.code, reset.code] == [0, 0, 2, 0]
    assert "another sealing key" in other.stderr


async def test_a_request_that_is_not_there_is_named(kvmctl: Kvmctl, tmp_path: Path) -> None:
    done = await signed(kvmctl, tmp_path / "no.json", tmp_path / "b.tar")

    assert done.code == 2
    assert f"--sign {tmp_path}/no.json: it cannot be read" in done.stderr


async def test_a_revoked_host_comes_back_only_by_a_reset(kvmctl: Kvmctl, tmp_path: Path) -> None:
    await enrolled(kvmctl, tmp_path / "b.tar", "kvm01")
    await kvmctl.run("keys", "revoke", "--host", "kvm01")

    refused = [await kvmctl.run("enroll", "kvm01", *words) for words in ((), ("--renew",))]
    await enrolled(kvmctl, tmp_path / "c.tar", "kvm01", "--reset")

    host = fleet_of(kvmctl).register.host("kvm01")
    assert [done.code for done in refused] == [2, 2]
    assert host is not None
    assert not host.is_revoked
    assert [one.revoked is None for one in host.certificates] == [False, True]
