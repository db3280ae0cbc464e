"""Credentials after a restart: what the journal holds is opened again, at once or when the clock is right."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import trustme

from kvmd.core.desired import HostRecord
from kvmd.core.judging import Arrival
from kvmd.core.warrant import Warrant
from kvmd.daemon.credentials import Credentials, Decision, Identification
from kvmd.vault import Vault
from kvmwire.codec import content_of
from kvmwire.events import CredentialData, Event
from kvmwire.status import CredentialState, Outcome
from kvmwire.topics import CredentialTopic

NOW = datetime.now(UTC)
PEM = trustme.CA().cert_pem.bytes().decode()
DATA = CredentialData(credential="ca", origins=("https://a.example",), anchors=PEM)
EVENT = Event("e1", CredentialTopic("ca"), DATA, content_of(DATA), "kvmctl", is_bare=False, generation=1)


def credentials(record: HostRecord, vault: Vault) -> Credentials:
    return Credentials("kvm01", record, identification=Identification(), vault=vault, on_trust=lambda: None)


def installed() -> HostRecord:
    """Give the record of a host that has taken the credential, as its journal holds it."""
    record = HostRecord()
    decision: Decision = credentials(record, Vault()).decide(
        EVENT, DATA, Arrival(now=NOW, is_live=True, earlier=None), Warrant("k", "controller")
    )
    assert decision.judgement.outcome is Outcome.ACCEPTED
    assert decision.record is not None
    record.credentials["ca"] = decision.record
    return record


def test_what_was_installed_is_in_force_again() -> None:
    record, vault = installed(), Vault()
    assert not credentials(record, vault).restore(NOW)
    assert vault.has("ca")
    assert record.credentials["ca"].status.state is CredentialState.INSTALLED


def test_a_clock_that_is_wrong_at_first_costs_nothing_for_good() -> None:
    record, vault = installed(), Vault()
    one = credentials(record, vault)
    long_ago = NOW - timedelta(days=20_000)
    for _ in range(2):
        assert not one.restore(long_ago)
        assert not vault.has("ca")
        refused = record.credentials["ca"].status
        assert (refused.state, refused.code) == (CredentialState.REFUSED, "CREDENTIAL_INVALID")
    assert one.restore(NOW)
    assert vault.has("ca")
    assert record.credentials["ca"].status.state is CredentialState.INSTALLED
    assert not one.restore(NOW)
