"""``kvmctl credential`` over both real brokers, with scripted hosts that have keys of their own."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from controller.credentials.store import CredentialStore
from kvmwire.codes import FailureCode
from kvmwire.events import Ensure
from kvmwire.topics import CredentialTopic
from tests.controller.enrolled import EnrolledFleet
from tests.controller.kvmctl import Ended, Kvmctl
from tests.controller.scripted_host import Script, ScriptedHost
from tests.controller.test_serve import serving
from tests.support.brokers import Broker
from tests.support.tls import Authority
from tests.support.waiting import eventually

ORIGIN = "https://images.example.org"
TOKEN = "correct-horse-battery"


@pytest.fixture
def fleet(kvmctl: Kvmctl) -> EnrolledFleet:
    return EnrolledFleet(kvmctl)


@pytest.fixture
def token(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(TOKEN + "\n")
    path.chmod(0o600)
    return path


@contextlib.asynccontextmanager
async def hosts(broker: Broker, fleet: EnrolledFleet, *names: str) -> AsyncGenerator[list[ScriptedHost], None]:
    """Run enrolled hosts."""
    async with contextlib.AsyncExitStack() as stack:
        found = [ScriptedHost(broker.url, name, sealing=fleet.key(name)) for name in names]
        for host in found:
            await stack.enter_async_context(host.running())
        yield found


async def add(kvmctl: Kvmctl, token: Path, *more: str) -> Ended:
    done = await kvmctl.run(
        "credential", "add", "images", "--for", ORIGIN, "--bearer", "--token-file", str(token), "--json", *more
    )
    assert done.code == 0, done.stderr
    return done


async def listed(kvmctl: Kvmctl) -> dict[str | None, str]:
    """Give the state of the credential by host."""
    done = await kvmctl.run("credential", "list", "--json")
    return {row["host"]: row["state"] for row in done.rows}


def authorization(host: ScriptedHost) -> str:
    return host.secrets["images"].headers["Authorization"].get_secret_value()


async def test_every_enrolled_host_installs_a_token(
    broker: Broker, kvmctl: Kvmctl, fleet: EnrolledFleet, token: Path
) -> None:
    fleet.enrol("kvm01")
    fleet.enrol("kvm02")
    async with hosts(broker, fleet, "kvm01", "kvm02") as both:
        done = await add(kvmctl, token, "--wait")
        assert [(row["host"], row["state"]) for row in done.rows] == [("kvm01", "installed"), ("kvm02", "installed")]
        assert [authorization(host) for host in both] == [f"Bearer {TOKEN}"] * 2
        assert await listed(kvmctl) == {"kvm01": "installed", "kvm02": "installed"}


async def test_only_the_selected_hosts_get_it(
    broker: Broker, kvmctl: Kvmctl, fleet: EnrolledFleet, token: Path
) -> None:
    fleet.enrol("kvm01", {"zone": "east"})
    fleet.enrol("kvm02")
    async with hosts(broker, fleet, "kvm01", "kvm02") as (first, second):
        second.script.labels["zone"] = "east"  # what a host says of itself gives it no secret
        await second.announce()
        await add(kvmctl, token, "--label", "zone=east", "--wait")
        assert (list(first.secrets), list(second.secrets)) == (["images"], [])


async def test_basic_headers_and_a_client_certificate_travel_together(
    broker: Broker, kvmctl: Kvmctl, fleet: EnrolledFleet, token: Path, authority: Authority
) -> None:
    fleet.enrol("kvm01")
    async with hosts(broker, fleet, "kvm01") as (host,):
        done = await kvmctl.run(
            *("credential", "add", "images", "--for", ORIGIN, "https://*.example.org:8443", "--basic", "ann:"),
            *("--password-file", str(token), "--header", f"X-Token: @{token}", "--ca", str(authority.ca_file)),
            *("--client-cert", str(authority.client.certificate), "--key", str(authority.client.key)),
            *("--wait", "--json"),
        )
    assert done.code == 0, done.stderr
    secret = host.secrets["images"]
    assert {name: value.get_secret_value() for name, value in secret.headers.items()} == {
        "Authorization": "Basic YW5uOmNvcnJlY3QtaG9yc2UtYmF0dGVyeQ==",
        "X-Token": TOKEN,
    }
    assert secret.certificate.startswith("-----BEGIN CERTIFICATE-----")
    assert "PRIVATE KEY" in secret.key.get_secret_value()
    assert done.rows[0]["origins"] == [f"{ORIGIN}:443", "https://*.example.org:8443"]


async def test_ca_certificates_alone_go_out_in_clear_to_all(
    broker: Broker, kvmctl: Kvmctl, authority: Authority
) -> None:
    async with ScriptedHost(broker.url, "kvm01").running() as host:
        done = await kvmctl.run(
            "credential", "add", "ca", "--for", ORIGIN, "--ca", str(authority.ca_file), "--wait", "--json"
        )
        assert done.code == 0, done.stderr
        assert host.received[0].topic == CredentialTopic("ca")
        named = await kvmctl.run(
            *("credential", "add", "ca", "--for", ORIGIN, "--ca", str(authority.ca_file), "--host", "kvm01"),
            *("--wait", "--json"),
        )
        assert named.code == 0, named.stderr
        await eventually(lambda: len(host.received) == 3, what="the event for all is taken back")
    assert host.received[1].topic == CredentialTopic("ca", "kvm01")
    assert host.installed["ca"] == host.received[1].generation
    assert (host.received[2].generation or 0) < (host.received[1].generation or 0)


async def test_a_refusal_is_shown_with_its_code_and_gives_the_exit_code(
    broker: Broker, kvmctl: Kvmctl, fleet: EnrolledFleet, token: Path
) -> None:
    key = fleet.enrol("kvm01")
    script = Script(refuses=FailureCode.CREDENTIAL_INVALID)
    async with ScriptedHost(broker.url, "kvm01", script, sealing=key).running():
        done = await kvmctl.run(
            "credential", "add", "images", "--for", ORIGIN, "--bearer", "--token-file", str(token), "--wait"
        )
        shown = await kvmctl.run("credential", "list")
    assert done.code == 1
    assert "CREDENTIAL_INVALID: as the script says" in shown.stdout
    assert "refused" in shown.stdout


async def test_a_host_that_is_enrolled_later_gets_it_by_sync(
    broker: Broker, kvmctl: Kvmctl, fleet: EnrolledFleet, token: Path
) -> None:
    await add(kvmctl, token)
    assert await listed(kvmctl) == {None: "missing"}
    fleet.enrol("kvm01")
    assert await listed(kvmctl) == {"kvm01": "missing"}
    done = await kvmctl.run("credential", "sync", "--json")
    assert [row["topic"] for row in done.rows] == ["kvmd/v1/credential/host/kvm01/images"]
    async with hosts(broker, fleet, "kvm01") as (host,):
        await eventually(lambda: "images" in host.secrets, what="it is installed")
        again = await kvmctl.run("credential", "sync", "--json")
        assert again.rows == []
        fleet.enrol("kvm01")
        await kvmctl.run("credential", "sync", "--json")
        host.sealing = fleet.key("kvm01")
        await eventually(lambda: len(host.received) == 2, what="it comes sealed to the new key")
        await eventually(lambda: host.installed["images"] == host.received[1].generation, what="it is installed")


async def test_serve_hands_it_to_hosts_that_are_enrolled_later(
    broker: Broker, kvmctl: Kvmctl, fleet: EnrolledFleet, token: Path, tmp_path: Path
) -> None:
    fleet.enrol("kvm01")
    await add(kvmctl, token)
    async with serving(kvmctl, tmp_path):
        fleet.enrol("kvm02")
        async with hosts(broker, fleet, "kvm01", "kvm02") as both:
            await eventually(lambda: all("images" in host.secrets for host in both), what="both have it", timeout_s=15)
            await add(kvmctl, token, "--wait")
            assert await listed(kvmctl) == {"kvm01": "installed", "kvm02": "installed"}
            assert [len(host.received) for host in both] == [2, 2]


async def test_revoked_is_revoked(
    broker: Broker, kvmctl: Kvmctl, fleet: EnrolledFleet, token: Path, tmp_path: Path
) -> None:
    fleet.enrol("kvm01")
    async with hosts(broker, fleet, "kvm01") as (host,):
        await add(kvmctl, token, "--wait")
        done = await kvmctl.run("credential", "revoke", "images", "--wait", "--json")
        assert (done.code, await listed(kvmctl)) == (0, {"kvm01": "revoked"})
        assert "images" not in host.secrets
        fleet.enrol("kvm02")
        assert (await kvmctl.run("credential", "sync", "--json")).rows == []
        async with serving(kvmctl, tmp_path), hosts(broker, fleet, "kvm02") as (late,):
            await eventually(lambda: bool(late.received), what="the late host hears of it")
            assert await listed(kvmctl) == {"kvm01": "revoked", "kvm02": "revoked"}
            assert {event.data.ensure for event in late.received} == {Ensure.ABSENT}  # type: ignore[union-attr] # of credentials
    record = CredentialStore(kvmctl.state).read("images")
    assert record is not None
    assert (record.ensure, record.sealed) == (Ensure.ABSENT, None)


async def test_a_revoked_host_is_neither_listed_nor_waited_for(
    broker: Broker, kvmctl: Kvmctl, fleet: EnrolledFleet, token: Path, tmp_path: Path
) -> None:
    fleet.enrol("kvm01")
    fleet.enrol("kvm02")
    async with serving(kvmctl, tmp_path), hosts(broker, fleet, "kvm01", "kvm02") as (kept, _):
        await add(kvmctl, token, "--wait")
        fleet.revoke("kvm02")
        assert [row["host"] for row in (await kvmctl.run("hosts", "--json")).rows] == ["kvm01"]
        assert await listed(kvmctl) == {"kvm01": "installed"}
        done = await add(kvmctl, token, "--wait", "--timeout", "10s")
        assert [row["host"] for row in done.rows] == ["kvm01"]
        assert len(kept.received) == 2


async def test_revoked_on_one_host_it_stays_away_until_the_host_is_named(
    broker: Broker, kvmctl: Kvmctl, fleet: EnrolledFleet, token: Path
) -> None:
    fleet.enrol("kvm01")
    fleet.enrol("kvm02")
    async with hosts(broker, fleet, "kvm01", "kvm02") as (first, second):
        await add(kvmctl, token, "--wait")
        await kvmctl.run("credential", "revoke", "images", "--host", "kvm01", "--wait")
        assert await listed(kvmctl) == {"kvm01": "revoked", "kvm02": "installed"}
        await kvmctl.run("credential", "sync")
        rotated = await add(kvmctl, token, "--wait")
        assert "not for kvm01" in rotated.stderr
        assert await listed(kvmctl) == {"kvm01": "revoked", "kvm02": "installed"}
        assert ("images" in first.secrets, "images" in second.secrets) == (False, True)
        await add(kvmctl, token, "--host", "kvm01", "--host", "kvm02", "--wait")
        assert await listed(kvmctl) == {"kvm01": "installed", "kvm02": "installed"}


async def test_rotation_to_fewer_hosts_takes_it_from_the_others(
    broker: Broker, kvmctl: Kvmctl, fleet: EnrolledFleet, token: Path
) -> None:
    fleet.enrol("kvm01")
    fleet.enrol("kvm02")
    async with hosts(broker, fleet, "kvm01", "kvm02") as (first, second):
        await add(kvmctl, token, "--wait")
        await add(kvmctl, token, "--host", "kvm01", "--wait")
        await eventually(lambda: "images" not in second.secrets, what="the other one has dropped it")
        assert "images" in first.secrets
        assert await listed(kvmctl) == {"kvm01": "installed", "kvm02": "revoked"}


async def test_where_there_is_nothing_to_publish_nothing_is_called_published(
    kvmctl: Kvmctl, fleet: EnrolledFleet, token: Path, authority: Authority
) -> None:
    fleet.enrol("kvm01")
    secret = ("credential", "add", "images", "--for", ORIGIN, "--bearer", "--token-file", str(token))
    public = ("credential", "add", "ca", "--for", ORIGIN, "--ca", str(authority.ca_file))
    for words in (secret, public):
        added = await kvmctl.run(*words, "--label", "zone=nowhere")
        assert (added.code, added.stdout) == (0, "")
        assert "no host that it is for is enrolled" in added.stderr
        assert "nothing was published yet" in added.stderr
    synced = await kvmctl.run("credential", "sync")
    assert (synced.code, synced.stdout, synced.stderr) == (
        0, "", "nothing was published: no enrolled host lacks anything\n",
    )  # fmt: skip
    assert "published" in (await kvmctl.run("credential", "revoke", "images")).stdout
    again = await kvmctl.run("credential", "revoke", "images")
    assert (again.code, again.stdout, again.stderr) == (0, "", "nothing was published: it was taken back already\n")


async def test_a_generation_that_cannot_be_sealed_ends_neither_serve_nor_add_by_a_defect(
    broker: Broker, kvmctl: Kvmctl, fleet: EnrolledFleet, token: Path
) -> None:
    await add(kvmctl, token)
    status = {
        "credential": "images", "generation": 2**53, "state": "revoked", "since": dt.datetime.now(dt.UTC).isoformat(),
    }  # fmt: skip
    async with broker.client() as client:
        await client.publish("kvmd/v1/status/kvm01/credential/images", json.dumps(status), retain=True)
    fleet.enrol("kvm01")

    async with kvmctl.started("serve") as serve:
        assert serve.stderr is not None
        async with asyncio.timeout(10):
            await serve.stderr.readuntil(b"credentials cannot be handed out")
        assert serve.returncode is None
    done = await kvmctl.run("credential", "add", "images", "--for", ORIGIN, "--bearer", "--token-file", str(token))

    assert done.code == 1
    assert "EVENT_STALE: generation 90071992547409" in done.stderr


async def test_expiry_is_told_a_month_ahead(broker: Broker, kvmctl: Kvmctl, fleet: EnrolledFleet, token: Path) -> None:
    key = fleet.enrol("kvm01")
    script = Script(expires=dt.datetime.now(dt.UTC) + dt.timedelta(days=20, hours=1))
    async with ScriptedHost(broker.url, "kvm01", script, sealing=key).running():
        await add(kvmctl, token, "--wait")
        shown = await kvmctl.run("credential", "list")
        rows = (await kvmctl.run("credential", "list", "--json")).rows
    assert "expires in 20 days" in shown.stdout
    assert rows[0]["expires_soon"] is True


async def test_show_tells_what_is_kept_but_not_the_secret(
    broker: Broker, kvmctl: Kvmctl, fleet: EnrolledFleet, token: Path
) -> None:
    fleet.enrol("kvm01")
    async with hosts(broker, fleet, "kvm01"):
        await add(kvmctl, token, "--wait")
        rows = (await kvmctl.run("credential", "show", "images", "--json")).rows
        shown = await kvmctl.run("credential", "show", "images")
        unknown = await kvmctl.run("credential", "show", "other")
    assert [row["kind"] for row in rows] == ["kept", "credential"]
    assert rows[0]["holds"] == ["headers"]
    assert TOKEN not in shown.stdout + json.dumps(rows)
    assert (unknown.code, "credential other" in unknown.stderr) == (1, True)


async def test_explain_and_status_name_a_credential_that_a_host_lacks(
    broker: Broker, kvmctl: Kvmctl, fleet: EnrolledFleet, token: Path
) -> None:
    fleet.enrol("kvm01")
    async with hosts(broker, fleet, "kvm01"):
        await kvmctl.run("register", "deb12", f"{ORIGIN}/deb12.qcow2", "--credential", "images")
        missing = await kvmctl.run("explain", "deb12", "kvm01")
        status = await kvmctl.run("status", "deb12", "--json")
        await add(kvmctl, token, "--wait")
        there = await kvmctl.run("explain", "deb12", "kvm01")
        complete = await kvmctl.run("status", "deb12", "--json")
    assert "kvm01 lacks the credential images" in missing.stdout
    assert "kvmctl credential add images" in missing.stdout
    assert [row["state"] for row in status.rows if row["kind"] == "credential"] == ["missing"]
    assert "lacks" not in there.stdout
    assert not [row for row in complete.rows if row["kind"] == "credential"]
