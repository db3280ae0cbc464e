"""The credentials and signing keys of this host: judged, kept sealed in the journal, opened in memory alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from kvmd.core.credential import Opened, open_credential
from kvmd.core.desired import CredentialRecord, Desired, HostRecord, Stamp, rechecked
from kvmd.core.judging import Arrival, Judgement, judge
from kvmd.core.warrant import Warrant, warrant
from kvmd.errors import CredentialInvalidError, KvmdError, SignatureError
from kvmd.log import get_logger
from kvmd.vault import Vault
from kvmwire.codes import FailureCode
from kvmwire.events import CredentialData, Ensure, Event
from kvmwire.origins import OriginPattern
from kvmwire.source import SourceUrl
from kvmwire.status import CredentialState, CredentialStatus, Failure, Outcome, ReplicaState
from kvmwire.trust import ROOT, Role, TrustList

log = get_logger(__name__)

_MENDED = {FailureCode.TLS_VERIFY, FailureCode.TLS_CLIENT_CERT, FailureCode.SOURCE_STATUS, FailureCode.SOURCE_EXPIRED}
"""Final failures that a credential may mend."""


@dataclass(frozen=True, slots=True)
class Identification:
    """What enrolment gave to this host: the keys it believes, whether it believes nobody else, and its own sealing key."""

    trust: TrustList = TrustList()
    requires_signature: bool = False
    sealing_key: X25519PrivateKey | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of a credential event: ``record`` is to be journaled, then ``opened`` is in force."""

    judgement: Judgement
    record: CredentialRecord | None = None
    opened: Opened | None = None


class Credentials:
    """Tells whom to believe, decides about credential events, and keeps the vault in step with the journal.

    ``on_trust`` is called when other keys count than before: what was refused may be acceptable now.
    """

    def __init__(
        self,
        host: str,
        record: HostRecord,
        *,
        identification: Identification,
        vault: Vault,
        on_trust: Callable[[], None],
    ) -> None:
        self._host = host
        self._record = record
        self._identification = identification
        self._vault = vault
        self._on_trust = on_trust
        self._unusable = set[str]()

    def warrant(self, event: Event, *, now: datetime) -> Warrant | None:
        """Give who vouches for the event; see ``kvmd.core.warrant``."""
        trust, is_required = self._record.trust(self._identification.trust), self._identification.requires_signature
        return warrant(event, trust, is_required=is_required, now=now)

    def restore(self, now: datetime) -> bool:
        """Open what the journal holds and is not in force; true where something comes into force that could not be opened before.

        What cannot be opened is not used, and its status says so. It may be later: machines wake up with wrong clocks.
        """
        has_recovered = False
        for record in list(self._record.credentials.values()):
            if not record.is_present or record.data is None or record.stamp is None or record.name == ROOT:
                continue
            if self._vault.has(record.name):
                continue
            try:
                opened = self._open(record.data, record.stamp.generation, now=now)
            except KvmdError as exc:
                self._set_aside(record, record.stamp.generation, exc, now=now)
                continue
            self._vault.put(opened)
            if record.name in self._unusable:
                self._unusable.discard(record.name)
                status = _installed(record.data, record.stamp.generation, opened, now=now)
                self._record.credentials[record.name] = replace(record, status=status)
                has_recovered = True
        return has_recovered

    def _set_aside(self, record: CredentialRecord, generation: int, error: KvmdError, *, now: datetime) -> None:
        """Tell once that it cannot be used."""
        if record.name in self._unusable:
            return
        log.error("credential cannot be used", credential=record.name, code=error.code, message=error.message)
        self._unusable.add(record.name)
        status = _refused(record, generation, error.failure, now=now)
        self._record.credentials[record.name] = replace(record, status=status)

    def decide(self, event: Event, data: CredentialData, arrival: Arrival, vouched: Warrant | None) -> Decision:
        """Judge an event, and open what it brings; nothing is in force before ``enact``."""
        known = self._record.credentials.get(data.credential)
        judgement = judge(event, known.stamp if known else None, arrival)
        if not judgement.is_accepted:
            return Decision(judgement)
        stamp = Stamp(judgement.generation, event.content, event.id, vouched.keyid if vouched else "")
        try:
            status, opened = self._accept(data, stamp, vouched, now=arrival.now)
        except KvmdError as exc:
            refused = Judgement(Outcome.REFUSED, known.stamp.generation if known and known.stamp else 0, exc.failure)
            before = known or CredentialRecord(_nothing(data, stamp.generation, arrival.now))
            return Decision(
                refused, replace(before, status=_refused(before, stamp.generation, exc.failure, now=arrival.now))
            )
        return Decision(judgement, CredentialRecord(status, stamp, data), opened)

    def retried(self, decision: Decision) -> tuple[Desired, ...]:
        """Give the wishes that failed for want of what has just come: their servers are covered by it."""
        data = decision.record.data if decision.record is not None else None
        if not decision.judgement.is_accepted or data is None or data.ensure is Ensure.ABSENT:
            return ()
        patterns = [OriginPattern.parse(origin) for origin in data.origins or ()]
        return tuple(rechecked(wish) for wish in self._record.desired.values() if self._may_help(wish, patterns))

    def _may_help(self, wish: Desired, patterns: Sequence[OriginPattern]) -> bool:
        replica, template = self._record.replicas.get(wish.key), wish.template(self._record.templates)
        if replica is None or template is None or replica.status.state is not ReplicaState.FAILED:
            return False
        origins = [SourceUrl.parse(url).origin for url in template.urls]
        return replica.status.code in _MENDED and any(one.covers(origin) for one in patterns for origin in origins)

    def enact(self, decision: Decision) -> None:
        """Put in force what has been journaled: what is under way ends with the old, the next request uses the new."""
        record = decision.record
        if record is None or not decision.judgement.is_accepted:
            return
        self._unusable.discard(record.name)
        if record.name == ROOT:
            self._on_trust()
        elif decision.opened is not None:
            self._vault.put(decision.opened)
        else:
            self._vault.drop(record.name)
        log.info("credential", credential=record.name, state=record.status.state, generation=record.status.generation)

    def _accept(
        self, data: CredentialData, stamp: Stamp, vouched: Warrant | None, *, now: datetime
    ) -> tuple[CredentialStatus, Opened | None]:
        if data.credential == ROOT or data.trust is not None:
            self._check_list(data, vouched, now=now)
            listed = _nothing(data, stamp.generation, now)
            return listed.model_copy(update={"installed": stamp.generation, "holds": ("keys",)}), None
        if data.ensure is Ensure.ABSENT:
            revoked = _nothing(data, stamp.generation, now)
            return revoked.model_copy(update={"state": CredentialState.REVOKED, "origins": ()}), None
        opened = self._open(data, stamp.generation, now=now)
        return _installed(data, stamp.generation, opened, now=now), opened

    def _open(self, data: CredentialData, generation: int, *, now: datetime) -> Opened:
        return open_credential(
            data, generation=generation, host=self._host, key=self._identification.sealing_key, now=now
        )

    def _check_list(self, data: CredentialData, vouched: Warrant | None, *, now: datetime) -> None:
        """Refuse a list of keys that nobody vouches for, or that nobody could ever replace again."""
        if vouched is None:
            raise SignatureError(
                "signature: a list of signing keys counts only from a key that this host knows; refused."
            )
        if data.credential != ROOT or data.trust is None:
            raise CredentialInvalidError(
                f"credential {data.credential}: {ROOT} alone carries a list of keys, and always one; refused."
            )
        able = [
            key for key in data.trust.keys if Role.TRUST in key.roles and not key.is_revoked and key.is_valid_at(now)
        ]
        if not able:
            raise CredentialInvalidError(
                "the list of signing keys has no valid key with the role trust: nobody could change it; refused."
            )


def _nothing(data: CredentialData, generation: int, now: datetime) -> CredentialStatus:
    return CredentialStatus(
        credential=data.credential,
        state=CredentialState.INSTALLED,
        generation=generation,
        origins=data.origins or (),
        since=now,
    )


def _installed(data: CredentialData, generation: int, opened: Opened, *, now: datetime) -> CredentialStatus:
    return _nothing(data, generation, now).model_copy(update={**asdict(opened.facts), "installed": generation})


def _refused(before: CredentialRecord, generation: int, failure: Failure, *, now: datetime) -> CredentialStatus:
    """Tell of a refusal; what an earlier one holds stays told."""
    return before.status.model_copy(
        update={
            "state": CredentialState.REFUSED,
            "generation": generation,
            "installed": before.stamp.generation if before.is_present and before.stamp else None,
            "code": failure.code,
            "message": failure.message,
            "hint": failure.hint,
            "since": now,
        }
    )
