"""The fleet's folder: what is in it, that nothing of it gets out, and that a crash, a second process or a stranger cannot break it."""

from __future__ import annotations

import asyncio
import base64
import os
import re
import signal
import ssl
import stat
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from controller.errors import UsageError
from controller.keys import listing
from controller.keys.authority import Authority
from controller.keys.files import locked
from controller.keys.keyring import FleetKeys
from controller.keys.register import FleetRegister
from kvmwire.trust import MAX_KEYS, Role, TrustedKey
from tests.controller.kvmctl import Ended, Kvmctl, ended
from tests.support.programs import require_root
from tests.support.waiting import eventually

NOW = datetime(2030, 1, 1, tzinfo=UTC)


@pytest.fixture
def kvmctl(tmp_path: Path) -> Kvmctl:
    """Give a command line without a broker."""
    return Kvmctl("mqtt://127.0.0.1:9", tmp_path)


@pytest.fixture
def keys(tmp_path: Path) -> FleetKeys:
    """Make a fleet."""
    return FleetKeys.create(tmp_path / "state/fleet", broker_names=["broker.example", "127.0.0.1"], now=NOW)


def fleet_of(kvmctl: Kvmctl) -> FleetKeys:
    return FleetKeys.open(kvmctl.state / "fleet")


def modes(folder: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}


def secrets_in(folder: Path) -> list[str]:
    """Give the lines of every private key below a folder."""
    texts = [path.read_text() for path in folder.rglob("*.key")]
    return [line for text in texts for line in text.splitlines() if not line.startswith("-----")]


def assert_tells_no_secret(done: Ended, folder: Path) -> None:
    lines = secrets_in(folder)
    assert lines
    assert not [line for line in lines if line in done.stdout + done.stderr]
    assert "PRIVATE KEY" not in done.stdout + done.stderr


async def test_init_makes_keys_that_their_owner_alone_can_read(kvmctl: Kvmctl) -> None:
    before = os.umask(0)
    try:
        done = await kvmctl.run("keys", "init", "--broker-name", "broker.example", "--broker-name", "10.0.0.5")
    finally:
        os.umask(before)

    folder = kvmctl.state / "fleet"
    found = modes(folder)
    assert done.code == 0, done.stderr
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {mode for name, mode in found.items() if not name.endswith((".pem", ".toml"))} == {0o600}
    assert sum(name.endswith(".key") for name in found) == 6
    assert_tells_no_secret(done, folder)


async def test_init_writes_settings_that_kvmctl_can_use(kvmctl: Kvmctl) -> None:
    await kvmctl.run("keys", "init", "--broker-name", "broker.example")

    done = await kvmctl.run("keys", "list", "--json", "--config", str(kvmctl.state / "fleet/kvmctl.toml"))

    assert done.code == 0, done.stderr
    assert 'url = "mqtts://broker.example:8883"' in (kvmctl.state / "fleet/kvmctl.toml").read_text()


async def test_init_does_not_overwrite_a_fleet(kvmctl: Kvmctl) -> None:
    await kvmctl.run("keys", "init")
    before = fleet_of(kvmctl).register

    done = await kvmctl.run("keys", "init")

    assert done.code == 2
    assert "there is one already" in done.stderr
    assert fleet_of(kvmctl).register == before
    assert [path.name for path in kvmctl.state.iterdir()] == ["fleet"], "nothing is left of the second one"


async def test_every_command_says_where_a_fleet_is_missing(kvmctl: Kvmctl) -> None:
    for words in (("list",), ("rotate",), ("revoke", "x"), ("renew",), ("add-publisher", "x"), ("publish",)):
        done = await kvmctl.run("keys", *words)
        assert (done.code, "kvmctl keys init" in done.stderr) == (2, True), words


@pytest.mark.parametrize("name", ["", "bad name", "-x", "x.", "a/b", "ä.example"])
async def test_a_broker_name_that_is_none_is_refused(kvmctl: Kvmctl, name: str) -> None:
    with pytest.raises(SystemExit):
        await kvmctl.run("keys", "init", f"--broker-name={name}")


async def test_the_list_names_everything_and_no_secret(kvmctl: Kvmctl, tmp_path: Path) -> None:
    await kvmctl.run("keys", "init")
    await kvmctl.run("enroll", "kvm01", "--label", "zone=a", "--out", str(tmp_path / "kvm01"))

    as_rows, as_tables = await kvmctl.run("keys", "list", "--json"), await kvmctl.run("keys", "list")

    kinds = [row["kind"] for row in as_rows.rows]
    assert kinds == ["certificate"] * 3 + ["key"] * 2 + ["host"]
    assert as_rows.rows[-1]["labels"] == {"zone": "a"}
    assert "kvm01" in as_tables.stdout
    for done in (as_rows, as_tables):
        assert_tells_no_secret(done, kvmctl.state)


def test_the_list_warns_of_what_ends_within_30_days(keys: FleetKeys) -> None:
    assert list(listing.warnings(keys, NOW)) == []
    assert [line.partition(" is")[0] for line in listing.warnings(keys, NOW + timedelta(days=702))] == [
        "warning: broker.pem",
        "warning: controller.pem",
    ]


async def test_renewed_certificates_fit_the_keys_that_brokers_have(kvmctl: Kvmctl) -> None:
    await kvmctl.run("keys", "init", "--broker-name", "old.example")
    before = fleet_of(kvmctl).certificate("broker.pem")

    done = await kvmctl.run("keys", "renew", "--broker-name", "new.example")

    after = fleet_of(kvmctl).certificate("broker.pem")
    names = after.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert done.code == 0
    assert after.public_key() == before.public_key()
    assert names.get_values_for_type(x509.DNSName) == ["new.example"]


@pytest.mark.parametrize("name", ["ca.pem", "broker.pem", "controller.pem"])
def test_certificates_say_what_rfc_5280_asks_for(keys: FleetKeys, name: str) -> None:
    certificate = keys.certificate(name)
    extensions = certificate.extensions
    usage = extensions.get_extension_for_class(x509.KeyUsage)
    constraints = extensions.get_extension_for_class(x509.BasicConstraints)
    is_ca = name == "ca.pem"

    assert (constraints.critical, constraints.value.ca) == (True, is_ca)
    assert (usage.critical, usage.value.key_cert_sign, usage.value.digital_signature) == (True, is_ca, not is_ca)
    assert extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    assert extensions.get_extension_for_class(x509.AuthorityKeyIdentifier)
    assert certificate.not_valid_before_utc == NOW - timedelta(minutes=5)
    assert isinstance(certificate.public_key(), ec.EllipticCurvePublicKey)
    certificate.verify_directly_issued_by(keys.certificate("ca.pem"))


def test_a_client_is_a_client_and_its_subject_is_its_name_alone(keys: FleetKeys) -> None:
    certificate = keys.certificate("controller.pem")
    purposes = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value

    assert certificate.subject.rfc4514_string() == "CN=controller"
    assert len(list(certificate.subject)) == 1
    assert list(purposes) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    with pytest.raises(x509.ExtensionNotFound):
        certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)


def test_a_certificate_does_not_outlive_its_ca(keys: FleetKeys) -> None:
    end = keys.authority.certificate.not_valid_after_utc
    key = ec.generate_private_key(ec.SECP256R1()).public_key()

    assert keys.authority.client("kvm01", key, end - timedelta(days=1)).not_valid_after_utc == end


def test_a_list_of_revoked_certificates_is_good_as_long_as_the_ca(keys: FleetKeys) -> None:
    crl = x509.load_pem_x509_crl((keys.folder / "crl.pem").read_bytes())

    assert crl.is_signature_valid(keys.authority.key.public_key())
    assert crl.next_update_utc == keys.authority.certificate.not_valid_after_utc


def test_two_fleets_have_different_names() -> None:
    assert Authority.new(NOW).certificate.subject != Authority.new(NOW).certificate.subject


def strict_context(folder: Path, purpose: ssl.Purpose) -> ssl.SSLContext:
    context = ssl.create_default_context(purpose, cafile=folder / "ca.pem")
    context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_STRICT
    return context


async def test_a_strict_handshake_of_both_sides_succeeds(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    folder = FleetKeys.create(tmp_path / "fleet", broker_names=["localhost", "127.0.0.1", "::1"], now=now).folder
    server_context = strict_context(folder, ssl.Purpose.CLIENT_AUTH)
    server_context.verify_mode = ssl.CERT_REQUIRED
    server_context.load_cert_chain(folder / "broker.pem", folder / "broker.key")
    client_context = strict_context(folder, ssl.Purpose.SERVER_AUTH)
    client_context.load_cert_chain(folder / "controller.pem", folder / "controller.key")
    seen = asyncio.get_running_loop().create_future()

    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.set_result(writer.get_extra_info("peercert")["subject"])
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", 0, ssl=server_context) as server:
        port = server.sockets[0].getsockname()[1]
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client_context)
        assert await seen == ((("commonName", "controller"),),)
        writer.close()
        await writer.wait_closed()


def test_changes_of_two_processes_are_both_kept(keys: FleetKeys) -> None:
    folder = keys.folder
    with FleetKeys.changing(folder) as first:
        first.save(first.register.with_next_crl())
    with FleetKeys.changing(folder) as second:
        second.save(second.register.with_next_crl())

    assert FleetKeys.open(folder).register.crl_number == keys.register.crl_number + 2


async def test_a_second_process_waits_for_the_first(kvmctl: Kvmctl, tmp_path: Path) -> None:
    await kvmctl.run("keys", "init")
    lock = kvmctl.state / "fleet/lock"
    out = tmp_path / "kvm01"
    with locked(lock):
        async with kvmctl.started("enroll", "kvm01", "--out", str(out)) as process:
            await eventually(lambda: str(lock) in open_files(process.pid), what="it waits for the lock")
            assert not out.exists()
            os.kill(process.pid, signal.SIGKILL)
            await ended(process)
    async with kvmctl.started("enroll", "kvm01", "--out", str(out)) as process:
        assert (await ended(process)).code == 0


def open_files(pid: int) -> list[str]:
    found = list[str]()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.append(str(link.readlink()))
        except FileNotFoundError:
            continue
    return found


async def test_what_root_makes_belongs_to_the_owner_of_the_state_and_a_bundle_to_root(
    kvmctl: Kvmctl, tmp_path: Path
) -> None:
    """As root may call kvmctl where `kvmctl serve` has a user of its own."""
    require_root("gives files away")
    nobody = 65534
    theirs = tmp_path / "theirs"
    for folder in (kvmctl.state, theirs):
        folder.mkdir()
        os.chown(folder, nobody, nobody)

    await kvmctl.run("keys", "init")
    await kvmctl.run("enroll", "kvm01", "--out", str(theirs / "b.tar"))
    await kvmctl.run("enroll", "kvm02", "--out", str(theirs / "c"))

    assert {path.stat().st_uid for path in (kvmctl.state / "fleet", *(kvmctl.state / "fleet").iterdir())} == {nobody}
    assert {path.stat().st_uid for path in theirs.rglob("*")} == {0}


def test_what_a_killed_process_left_is_tidied_by_the_next(keys: FleetKeys) -> None:
    (keys.folder / ".fleet.json.abc").write_text("half")
    (keys.folder / "signing-0123.key").write_text("a key that no register names")
    (keys.folder / "crl.pem").unlink()

    with FleetKeys.changing(keys.folder):
        pass

    names = {path.name for path in keys.folder.iterdir()}
    assert names.isdisjoint({".fleet.json.abc", "signing-0123.key"})
    assert "crl.pem" in names


def test_a_reader_finds_the_new_signing_key_when_the_old_one_is_gone_meanwhile(keys: FleetKeys) -> None:
    reader = FleetKeys.open(keys.folder)
    path = keys.folder / f"signing-{keys.register.signing}.key"
    with FleetKeys.changing(keys.folder) as changing:
        new = changing.root_key
        changing.write_signing_key(new)
        changing.save(changing.register.model_copy(update={"signing": changing.register.root}))

    assert not path.exists()
    assert reader.signing_key.public_key() == new.public_key()


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"version": 1', "\x00", '{"version": 2}'])
def test_a_register_that_cannot_be_read_is_named(keys: FleetKeys, content: str) -> None:
    (keys.folder / "fleet.json").write_text(content)

    with pytest.raises(UsageError, match=re.escape(str(keys.folder / "fleet.json"))):
        FleetKeys.open(keys.folder)


@pytest.mark.parametrize(
    "spoil", [lambda path: path.unlink(), lambda path: path.write_text("-----BEGIN PRIVATE KEY-----")]
)
def test_a_key_that_cannot_be_read_is_named_and_not_shown(keys: FleetKeys, spoil: Callable[[Path], object]) -> None:
    spoil(keys.folder / "sealing.key")

    with pytest.raises(UsageError, match=r"sealing\.key: it cannot be used") as caught:
        _ = keys.sealing_key
    assert "BEGIN" not in caught.value.message


def test_a_key_of_another_kind_is_refused(keys: FleetKeys) -> None:
    (keys.folder / "sealing.key").write_bytes((keys.folder / "root.key").read_bytes())

    with pytest.raises(UsageError, match="expected a key for X25519"):
        _ = keys.sealing_key


def test_the_root_key_signs_lists_and_the_controllers_key_all_else(keys: FleetKeys) -> None:
    roles = {key.name.partition("-")[0]: set(key.roles) for key in keys.trust.keys}

    assert roles == {"root": {Role.TRUST}, "controller": set(Role) - {Role.TRUST}}


def with_many_keys(register: FleetRegister, count: int, *, is_revoked: bool) -> FleetRegister:
    key = register.trust.keys[1]
    many = [
        key.model_copy(update={"name": f"k{n}", "public": public(n), "is_revoked": is_revoked}) for n in range(count)
    ]
    return register.with_trust((*register.trust.keys, *map(rebuilt, many)), NOW)


def public(number: int) -> str:
    return base64.b64encode(number.to_bytes(32)).decode()


def rebuilt(key: TrustedKey) -> TrustedKey:
    return TrustedKey.model_validate(key.model_dump())


def test_dead_keys_make_room_and_living_ones_do_not(keys: FleetKeys) -> None:
    register = with_many_keys(keys.register, 80, is_revoked=True)

    assert len(register.trust.keys) == MAX_KEYS
    assert register.trust.keys[:2] == keys.trust.keys
    with pytest.raises(UsageError, match="hosts take at most 64"):
        with_many_keys(keys.register, 80, is_revoked=False)


def test_generations_of_the_list_rise_even_when_the_clock_goes_back(keys: FleetKeys) -> None:
    later = keys.register.with_trust(keys.trust.keys, NOW - timedelta(days=1))

    assert later.trust.generation == keys.trust.generation + 1
